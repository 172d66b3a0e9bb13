"""VisionFlow: images and the human fMRI that they evoke, in one latent Gaussian."""

import importlib

__version__ = "0.1.0"
__all__ = ["VisionFlowConfig", "VisionFlowModel", "VisionFlowOutput", "VisionFlowProcessor"]


def __getattr__(name: str):
    """The classes of `visionflow_hf.modeling`, on first use: `visionflow --help` need not wait for torch."""
    if name in __all__:
        return getattr(importlib.import_module("visionflow_hf.modeling"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
