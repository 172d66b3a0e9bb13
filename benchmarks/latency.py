"""How long encoding and decoding take, against the bare forward pass of the ViT in them.

    python benchmarks/latency.py WORK [--voxels 39548]

A ViT-B/16 of random weights, pictures of 224 px, one subject; no preprocessing. Prints a table and
writes WORK/latency.json.

    bare ViT    ViTModel on the same pictures
    encode      `predict_fmri`: images to fMRI
    decode      `reconstruct_image`: fMRI to images
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import finish_work, keep
from transformers import ViTConfig

from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel

BATCHES = (1, 64)


def seconds(call: Callable, repeats: int) -> float:
    """The median of some calls after one to warm up."""
    spent = []
    for _ in range(repeats + 1):
        finish_work()
        start = time.perf_counter()
        call()
        finish_work()
        spent.append(time.perf_counter() - start)
    return float(np.median(spent[1:]))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--voxels", type=int, default=39548)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    config = VisionFlowConfig(
        vision_config=ViTConfig(),
        latent_dim=256,
        linear_dim=256,
        subjects=["subj01"],
        num_voxels=[args.voxels],
        bridge_hidden_size=1024,
        linear_share=0.5,
    )
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model = VisionFlowModel(config).eval().to(device)
    found = {}
    for batch in BATCHES:
        images = torch.rand(batch, 3, 224, 224, device=device)
        fmri = torch.randn(batch, args.voxels, device=device)
        repeats = 20 if batch == 1 else 2
        found[batch] = {
            "bare ViT": seconds(lambda images=images: model.encoder(images), repeats),
            "encode": seconds(lambda images=images: model.predict_fmri(images), repeats),
            "decode": seconds(lambda fmri=fmri: model.reconstruct_image(fmri), repeats),
        }
    keep(args.work / "latency.json", {"voxels": args.voxels, "seconds by batch": found})
    print("| | batch | ms | bare ViT = 1 |\n|---|---|---|---|")
    for batch, spent in found.items():
        for name, value in spent.items():
            print(f"| {name} | {batch} | {1000 * value:.0f} | {value / spent['bare ViT']:.2f} |")


if __name__ == "__main__":
    main()
