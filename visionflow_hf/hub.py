"""Model folders: config, weights, processor, the code that reads them, and the card."""

import os
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from visionflow_hf.errors import UserError
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor

PACKAGE = Path(__file__).parent
CARD = "model_card.md"  # the wheel keeps it in visionflow_hf/card, a checkout at its root
TEMPLATE = PACKAGE / "card" / CARD if (PACKAGE / "card").is_dir() else PACKAGE.parent / CARD


def save_model(
    model: VisionFlowModel, processor: VisionFlowProcessor, folder: str | os.PathLike, training: dict
) -> None:
    """Write everything that a stranger needs to use the model, its card included.

    Args:
        training: what the card says of the training: `unit`, `n_stimuli`, `n_trials`, `steps` and `seed`.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = model.config
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            tags=["visionflow", "fmri", "visual-cortex", "brain-decoding", "brain-encoding"],
        ),
        template_path=str(TEMPLATE),
        model_id=str(folder),
        encoder=config.vision_config._name_or_path or f"{config.vision_config.model_type} trained from scratch",
        subjects=config.subjects,
        voxel_counts=dict(zip(config.subjects, config.num_voxels, strict=True)),
        image_size=config.image_size,
        num_channels=config.num_channels,
        latent_dim=config.latent_dim,
        **training,
    )
    card.save(folder / "README.md")


def load_model(name_or_path: str | os.PathLike) -> tuple[VisionFlowModel, VisionFlowProcessor]:
    """A trained model and its processor, from a folder or the Hub, with this package's code."""
    name = str(name_or_path)
    if not (Path(name) / "config.json").is_file() and (Path(name).exists() or name.count("/") != 1):
        raise UserError(
            f"{name} is no model folder (no config.json in it): give a RUN that `train` finished, or ORG/NAME"
        )
    try:
        return VisionFlowModel.from_pretrained(name).eval(), VisionFlowProcessor.from_pretrained(name)
    except OSError as error:
        raise UserError(f"no model at {name}: {' '.join(str(error).split())}") from error
