"""The files that travel to the Hub beside the weights; installed as `visionflow_hf.modeling`."""

from .configuration_visionflow import VisionFlowConfig
from .modeling_visionflow import VisionFlowModel, VisionFlowOutput
from .processing_visionflow import VisionFlowProcessor

__all__ = ["VisionFlowConfig", "VisionFlowModel", "VisionFlowOutput", "VisionFlowProcessor"]
