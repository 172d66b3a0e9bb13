"""The functions of `visionflow_hf.metrics` under their earlier name, so that existing imports keep working."""

from visionflow_hf.metrics import *  # noqa: F403
