"""VisionFlow: images and the human fMRI that they evoke, in one latent Gaussian."""

from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel, VisionFlowOutput, VisionFlowProcessor

__version__ = "0.1.0"

# `save_pretrained` then copies the files of modeling/ beside the weights, so that a stranger needs no package of ours.
VisionFlowConfig.register_for_auto_class()
VisionFlowModel.register_for_auto_class("AutoModel")
VisionFlowProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["VisionFlowConfig", "VisionFlowModel", "VisionFlowOutput", "VisionFlowProcessor"]
