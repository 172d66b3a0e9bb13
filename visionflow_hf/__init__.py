"""VisionFlow: images and the human fMRI that they evoke, in one latent Gaussian."""

import importlib

__version__ = "0.1.0"
__all__ = [
    *("VisionFlowCollator", "VisionFlowConfig", "VisionFlowModel", "VisionFlowOutput", "VisionFlowProcessor"),
    "VisionFlowTrainer",
]
OF_TRAINING = {"VisionFlowCollator": "visionflow_hf.collator", "VisionFlowTrainer": "visionflow_hf.trainer"}


def __getattr__(name: str):
    """The classes, on first use: `visionflow --help` need not wait for torch."""
    if name in __all__:
        return getattr(importlib.import_module(OF_TRAINING.get(name, "visionflow_hf.modeling")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
