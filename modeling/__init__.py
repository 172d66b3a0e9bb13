"""The code that is saved beside the weights of a model; installed as `visionflow_hf.modeling`."""

from .configuration_visionflow import VisionFlowConfig
from .modeling_visionflow import VisionFlowModel, VisionFlowOutput
from .processing_visionflow import VisionFlowProcessor

# `save_pretrained` then copies these files, so that `trust_remote_code=True` loads a model without this package.
VisionFlowConfig.register_for_auto_class()
VisionFlowModel.register_for_auto_class("AutoModel")
VisionFlowProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["VisionFlowConfig", "VisionFlowModel", "VisionFlowOutput", "VisionFlowProcessor"]
