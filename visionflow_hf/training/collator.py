"""Rows of a corpus to a batch for the model."""

from dataclasses import dataclass, field

import torch

from visionflow_hf.modeling import VisionFlowProcessor


@dataclass
class PairCollator:
    """Images and responses through the processor, and the features of images whose encoder is frozen.

    Attributes:
        image_features: for each stimulus what a frozen encoder makes of it, tensor of shape (features,); empty where
            the encoder learns.
    """

    processor: VisionFlowProcessor
    image_features: dict[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.processor(
            images=[row["image"] for row in rows],
            fmri=[row["fmri"] for row in rows],
            subject=[row["subject"] for row in rows],
        )
        del batch["fmri_mean"], batch["fmri_std"]  # training stays in standard units
        return dict(batch) | self._features(rows)

    def images(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """The same without fMRI."""
        return {"pixel_values": self.processor(images=[row["image"] for row in rows])["pixel_values"]} | self._features(
            rows
        )

    def _features(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        if not self.image_features:
            return {}
        return {"image_features": torch.stack([self.image_features[row["stimulus_id"]] for row in rows])}
