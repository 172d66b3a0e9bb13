"""What begins the script of a stranger's process: our package cannot be imported there, even where it is installed."""

STRANGER = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("visionflow_hf", "modeling"):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
import numpy as np
import torch
"""
