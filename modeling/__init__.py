"""The files that travel to the Hub beside the weights; installed as `visionflow_hf.modeling`."""

from .configuration_visionflow import VisionFlowConfig
from .modeling_visionflow import VisionFlowModel, VisionFlowOutput
from .processing_visionflow import VisionFlowProcessor

# `save_pretrained` then copies these files beside the weights, so that a stranger needs no package of ours.
VisionFlowConfig.register_for_auto_class()
VisionFlowModel.register_for_auto_class("AutoModel")
VisionFlowProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["VisionFlowConfig", "VisionFlowModel", "VisionFlowOutput", "VisionFlowProcessor"]
