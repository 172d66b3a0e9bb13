"""The code that is saved beside the weights of a model; installed as `visionflow_hf.modeling`."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_visionflow import VisionFlowConfig
from .modeling_visionflow import VisionFlowModel, VisionFlowOutput
from .processing_visionflow import VisionFlowProcessor

# `save_pretrained` then copies these files, so that `trust_remote_code=True` loads a model without this package.
VisionFlowConfig.register_for_auto_class()
VisionFlowModel.register_for_auto_class("AutoModel")
VisionFlowProcessor.register_for_auto_class("AutoProcessor")

# And `AutoModel.from_pretrained` then finds the classes here, without `trust_remote_code`.
AutoConfig.register(VisionFlowConfig.model_type, VisionFlowConfig, exist_ok=True)
AutoModel.register(VisionFlowConfig, VisionFlowModel, exist_ok=True)
AutoProcessor.register(VisionFlowConfig, VisionFlowProcessor, exist_ok=True)

__all__ = ["VisionFlowConfig", "VisionFlowModel", "VisionFlowOutput", "VisionFlowProcessor"]
