"""What the benchmarks share: random corpora and encoders of real dimensions, and what is said of the machine."""

import json
import os
import platform
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from visionflow_hf.corpus.schema import voxel_table, write_corpus


def random_corpus(folder: Path, images: int, voxels: int, side: int = 224) -> Path:
    """A corpus of one subject with as many random pictures in train, two more in test, and noise for fMRI."""
    rng = np.random.default_rng(0)

    def rows(split: str, count: int) -> Callable[[], Iterator[dict]]:
        def make() -> Iterator[dict]:
            for number in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                picture = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
                picture = (picture + rng.integers(-8, 9, picture.shape)).clip(0, 255).astype(np.uint8)
                yield {
                    "image": Image.fromarray(picture),
                    "fmri": rng.standard_normal(voxels, dtype=np.float32),
                    "subject": "subj01",
                    "stimulus_id": f"{split}-{number}",
                    "repeat": 0,
                }

        return make

    splits = {"train": rows("train", images), "test": rows("test", 2)}
    write_corpus(folder, splits, voxel_table("subj01", voxels), unit="noise", overwrite=True)
    return folder


def vit_b_16(folder: Path, layers: int = 12) -> Path:
    """A ViT-B/16 for 224 px with random weights: nothing here depends on what it has learned."""
    torch.manual_seed(0)
    ViTModel(ViTConfig(num_hidden_layers=layers), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return folder


def finish_work() -> None:
    """Wait until a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict:
    """Where and with what a figure was measured."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": date.today().isoformat(),
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "datasets", "accelerate", "numpy")},
    }


def cpu_name() -> str:
    """As Linux gives it; elsewhere the architecture alone."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.machine()


def keep(file: Path, found: dict) -> None:
    """Write what was found, and where."""
    file.write_text(json.dumps({"machine": machine(), **found}, indent=2) + "\n")
