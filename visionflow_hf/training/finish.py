"""What is fitted when the Trainer has run: the linear maps, the wavelet dimensions, and the alignment stage."""

from datasets import Dataset

from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.training.add_wavelets import add_wavelets
from visionflow_hf.training.alignment_stage import align
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.fit_bridges import fit_bridges
from visionflow_hf.training.stimuli import Stimuli


def finish(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    rows: Dataset,
    stimuli: Stimuli,
    wavelet_dim: int,
    mlp_share: float,
    args: VisionFlowTrainingArguments,
) -> tuple[VisionFlowModel, float]:
    """The model with all that follows from its image side and `rows`, and the gain of its linear maps."""
    gain = fit_bridges(model, processor, rows, stimuli)
    model = add_wavelets(model, processor, rows, stimuli, wavelet_dim, args.seed)
    align(model, processor, rows, stimuli, mlp_share, args)
    return model, gain
