"""VisionFlow: images and the human fMRI that they evoke, in one latent Gaussian."""

import importlib
import sys

__version__ = "0.1.0"
OF_TRAINING = {
    "ImageCollator": "visionflow_hf.collator",
    "VisionFlowCollator": "visionflow_hf.collator",
    "VisionFlowTrainer": "visionflow_hf.trainer",
}
__all__ = [*OF_TRAINING, "VisionFlowConfig", "VisionFlowModel", "VisionFlowOutput", "VisionFlowProcessor"]


def __getattr__(name: str):
    """The classes, on first use: `visionflow --help` need not wait for torch."""
    if name in __all__:
        return getattr(importlib.import_module(OF_TRAINING.get(name, "visionflow_hf.modeling")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if "transformers" in sys.modules:  # else its Auto classes learn of ours when one is first used
    importlib.import_module("visionflow_hf.modeling")
