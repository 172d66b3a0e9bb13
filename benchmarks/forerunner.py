"""The recipe of the notebook that this project grew out of, trained on the same rows as a model, and its figures.

    python benchmarks/forerunner.py RUN CORPUS REPORT [--encoder NAME | scratch] [--seed 0]

RUN is a model folder, REPORT the report that `visionflow evaluate RUN CORPUS REPORT` wrote. Prints the figures of the
recipe beside those of the model and of ridge.

    image -> ViT, class token -> mean, logvar -> z -> linear -> 512 x 7 x 7 -> five ConvTranspose2d -> 224 px
    z -> 256-512-voxels -> fmri                       fmri -> voxels-512-256 -> z_fmri
    loss = sum (image - decode(z))^2 + sum KL + sum (z - z_fmri)^2 + sum (fmri - to_fmri(z))^2

Every loss is a sum over elements with weight 1; Adam with learning rate 1e-4 on all weights, those of the ViT included;
batches of 16; 5 epochs; pixels in 0..1 without normalisation or augmentation; float32. Source: `VAE_Testing.ipynb` and
the README of VisionFlow (github.com/sanpdy/VisionFlow). The README says 5 epochs, the notebook's loop would run 20. An
epoch had 24,450 rows there. On a small corpus 5 epochs are few steps; the recipe is not lengthened to compensate.

Differences from the source:
- It has one pair of MLPs for three subjects with equal numbers of vertices. Here each subject has its own pair.
- Its responses are z-scored by session. Here they are standardised by the mean and standard deviation of train.
- It reconstructs images from predicted fMRI. Here z_fmri of measured fMRI is decoded, and fMRI is predicted from the
  mean latent.
- Trials of one stimulus are separate rows, as for the model.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModel, PreTrainedModel

from visionflow_hf.corpus.responses import pairs_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.evaluation.predictions import to_array
from visionflow_hf.evaluation.report import print_table
from visionflow_hf.evaluation.scores import score
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowProcessor

LATENT, HIDDEN, SIDE = 256, 512, 224
BATCH, EPOCHS, LEARNING_RATE = 16, 5, 1e-4


class Forerunner(nn.Module):
    """The network of the recipe; `voxels` gives the number of voxels of each subject."""

    def __init__(self, encoder: PreTrainedModel, voxels: dict[str, int]):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.Linear(encoder.config.hidden_size, 2 * LATENT)
        self.grid = nn.Linear(LATENT, 512 * 7 * 7)
        layers = []
        for before, after in ((512, 256), (256, 128), (128, 64), (64, 32), (32, 3)):
            layers += [nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1), nn.ReLU()]
        self.decoder = nn.Sequential(*layers[:-1], nn.Sigmoid())
        self.place = {subject: place for place, subject in enumerate(voxels)}
        self.to_latent = nn.ModuleList(_mlp(number, LATENT) for number in voxels.values())
        self.to_fmri = nn.ModuleList(_mlp(LATENT, number) for number in voxels.values())

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance (images, 256) of pixels (images, 3, 224, 224) in 0..1."""
        size, channels = encoder_size(self.encoder), self.encoder.config.num_channels
        if list(pixels.shape[-2:]) != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        pixels = pixels if channels == 3 else pixels.mean(1, keepdim=True)
        return self.heads(self.encoder(pixel_values=pixels).last_hidden_state[:, 0]).chunk(2, dim=1)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Pixels (rows, 3, 224, 224) in 0..1."""
        return self.decoder(self.grid(latent).unflatten(1, (512, 7, 7)))

    def loss(self, pixels: torch.Tensor, fmri: dict[str, tuple[list[int], torch.Tensor]]) -> torch.Tensor:
        """The sum of all losses of a batch.

        Args:
            fmri: of each subject the rows that are theirs, and their standardised responses (rows, voxels).
        """
        mean, logvar = self.encode(pixels)
        latent = mean + (logvar / 2).exp() * torch.randn_like(mean)
        loss = F.mse_loss(self.decode(latent), pixels, reduction="sum")
        loss = loss - (1 + logvar - mean**2 - logvar.exp()).sum() / 2
        for subject, (rows, measured) in fmri.items():
            place = self.place[subject]
            loss = loss + F.mse_loss(self.to_latent[place](measured), latent[rows], reduction="sum")
            loss = loss + F.mse_loss(self.to_fmri[place](latent[rows]), measured, reduction="sum")
        return loss


def load_encoder(name: str, run_config, seed: int = 0) -> PreTrainedModel:
    """A pretrained ViT by name or folder; `scratch` for one of the architecture `run_config` with random weights."""
    if name != "scratch":
        return AutoModel.from_pretrained(name)
    torch.manual_seed(seed)
    return AutoModel.from_config(run_config)


def encoder_size(encoder: PreTrainedModel) -> list[int]:
    """Height and width in px of what an encoder takes."""
    size = getattr(encoder.config, "image_size", SIDE)
    return [size, size] if isinstance(size, int) else list(size)


def forerunner_predictions(
    encoder: PreTrainedModel,
    processor: VisionFlowProcessor,
    train: Dataset,
    predictions: dict[str, np.ndarray],
    device: torch.device | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Train the recipe on the pairs of `train`, and predict the rows of `predictions` in both directions.

    Args:
        predictions: the arrays of `visionflow_hf.evaluation.predictions`.
        device: where to train; the accelerator by default, if there is one.

    Returns:
        `forerunner/reconstruction`, `single_trial/forerunner/reconstruction` where there are single trials, and
        `forerunner/fmri_predicted/S`, laid out as the model's own.
    """
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    subjects = list(dict.fromkeys(predictions["subject"].tolist()))
    torch.manual_seed(seed)
    model = Forerunner(encoder, {subject: len(processor.fmri_mean[subject]) for subject in subjects}).to(device)
    train_forerunner(model, processor, train.select(np.flatnonzero(np.isin(train["subject"], subjects))), seed)
    size = predictions["image"].shape[2:0:-1]
    found = {}
    for subject in subjects:
        images = list(map(Image.fromarray, predictions["image"][predictions["subject"] == subject]))
        with torch.no_grad():
            latent = torch.cat([model.encode(as_pixels(images[i : i + BATCH], device))[0] for i in _starts(images)])
            fmri = model.to_fmri[model.place[subject]](latent).cpu().numpy()
        found[f"forerunner/fmri_predicted/{subject}"] = (
            fmri * processor.fmri_std[subject] + processor.fmri_mean[subject]
        )
    for prefix in ("", "single_trial/"):
        measured = {subject: predictions.get(f"{prefix}fmri/{subject}") for subject in subjects}
        parts = [
            to_array(_reconstruct(model, processor, fmri, subject, device), processor, size)
            for subject, fmri in measured.items()
            if fmri is not None
        ]
        if parts:
            found[f"{prefix}forerunner/reconstruction"] = np.concatenate(parts)
    return found


def train_forerunner(model: Forerunner, processor: VisionFlowProcessor, rows: Dataset, seed: int) -> list[float]:
    """Train on all rows; returns the loss of each step, divided by its number of rows."""
    device = next(model.parameters()).device
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches = [
        batch.tolist() for _ in range(EPOCHS) for batch in torch.randperm(len(rows), generator=order).split(BATCH)
    ]
    losses = []
    model.train()
    with tqdm(batches, desc="training the forerunner", unit="step", disable=None) as bar:
        for batch in map(rows.__getitem__, bar):
            fmri = {}
            for subject in dict.fromkeys(batch["subject"]):
                theirs = [row for row, name in enumerate(batch["subject"]) if name == subject]
                responses = np.array([batch["fmri"][row] for row in theirs], dtype=np.float32)
                fmri[subject] = theirs, standardise(responses, processor, subject, device)
            loss = model.loss(as_pixels(batch["image"], device), fmri)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() / len(batch["image"]))
            bar.set_postfix(loss=f"{losses[-1]:.0f}")
    model.eval()
    return losses


def _reconstruct(
    model: Forerunner, processor: VisionFlowProcessor, fmri: np.ndarray, subject: str, device
) -> list[Image.Image]:
    pictures = []
    for start in _starts(fmri):
        standard = standardise(fmri[start : start + BATCH], processor, subject, device)
        with torch.no_grad():
            pixels = model.decode(model.to_latent[model.place[subject]](standard))
        pictures += map(Image.fromarray, (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return pictures


def as_pixels(pictures: list[Image.Image], device) -> torch.Tensor:
    """(pictures, 3, 224, 224) in 0..1."""
    resized = [picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in resized])).to(device).permute(0, 3, 1, 2) / 255


def standardise(fmri: np.ndarray, processor: VisionFlowProcessor, subject: str, device) -> torch.Tensor:
    return torch.from_numpy((fmri - processor.fmri_mean[subject]) / processor.fmri_std[subject]).float().to(device)


def _starts(rows) -> range:
    return range(0, len(rows), BATCH)


def _mlp(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, after))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("corpus")
    parser.add_argument("report", type=Path)
    parser.add_argument("--encoder", default="google/vit-base-patch16-224-in21k")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, processor = load_model(args.run)
    with np.load(args.report / "predictions.npz") as file:
        arrays = dict(file)
    encoder = load_encoder(args.encoder, model.config.vision_config, args.seed)
    train = pairs_of(open_corpus(args.corpus, allow_leakage=True).splits["train"])
    arrays |= forerunner_predictions(encoder, processor, train, arrays, seed=args.seed)
    counts = {"n_stimuli": len(np.unique(arrays["stimulus_id"])), "n_trials": int(arrays["trials"].sum())}
    print_table({"split": str(args.report), **counts, **score(arrays)})


if __name__ == "__main__":
    main()
