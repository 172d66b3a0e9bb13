"""VisionFlow: images and the human fMRI that they evoke, in one latent Gaussian."""

import importlib

__version__ = "0.1.0"
__all__ = ["VisionFlowCollator", "VisionFlowConfig", "VisionFlowModel", "VisionFlowOutput", "VisionFlowProcessor"]


def __getattr__(name: str):
    """The classes, on first use: `visionflow --help` need not wait for torch."""
    if name in __all__:
        module = "visionflow_hf.collator" if name == "VisionFlowCollator" else "visionflow_hf.modeling"
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
