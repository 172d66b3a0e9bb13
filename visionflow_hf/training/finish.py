"""What is fitted when the Trainer has run: the linear maps, the wavelet dimensions, and the alignment stage."""

import torch
from datasets import Dataset

from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.training.add_wavelets import add_wavelets
from visionflow_hf.training.alignment_stage import align
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.fit_bridges import fit_bridges


def finish(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    rows: Dataset,
    features: dict[str, torch.Tensor],
    wavelet_dim: int,
    mlp_share: float,
    args: VisionFlowTrainingArguments,
) -> tuple[VisionFlowModel, float]:
    """The model with all that follows from its image side and `rows`, and the gain of its linear maps."""
    gain = fit_bridges(model, processor, rows, features)
    model = add_wavelets(model, processor, rows, features, wavelet_dim, args.seed)
    align(model, processor, rows, features, mlp_share, args)
    return model, gain
