"""Rows of a corpus to batches for `transformers.Trainer`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from visionflow_hf.modeling import VisionFlowProcessor
from visionflow_hf.modeling.augmentation import MANY_STIMULI, augment

COLUMNS = ("image", "fmri", "subject")


@dataclass
class VisionFlowCollator:
    """What `VisionFlowModel.forward` takes, of rows with the columns `image`, `fmri` and `subject`.

    A row may lack its image or its fMRI (`None`), and its subject where it has no fMRI. Every batch is as wide as the
    subject with the most voxels needs, with zeros beyond a subject's own, so that Trainer hands one array of fMRI to
    `compute_metrics`.

    Args:
        processor (`VisionFlowProcessor`): that of the model.
    """

    processor: VisionFlowProcessor

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        """
        Returns:
            `pixel_values`, `fmri`, `subject_ids` and, where rows lack one, `has_image` and `has_fmri`, as in
            `VisionFlowProcessor.__call__`.

        Raises:
            ValueError: the rows lack a column or a subject, or have what the processor refuses.
        """
        missing = [name for name in COLUMNS if name not in rows[0]]
        if missing:
            raise ValueError(
                f"the rows have no {', '.join(missing)}, only {', '.join(rows[0]) or 'nothing'}: "
                "give TrainingArguments remove_unused_columns=False"
            )
        images, fmri, subjects = ([row[name] for row in rows] for name in COLUMNS)
        batch = self.processor(images=images, fmri=fmri, subject=subjects)
        widest = max(map(len, self.processor.fmri_mean.values()))
        batch["fmri"] = pad(batch["fmri"], (0, widest - batch["fmri"].shape[1]))
        return {name: values for name, values in batch.items() if name not in ("fmri_mean", "fmri_std")}


@dataclass
class ImageCollator:
    """Augmented images alone, of rows with the column `image`: what the image side is trained on from scratch.

    With responses in the loss, the latent of a train image comes to hold the noise of its responses. So gradient
    descent sees images alone, and `model.refit` then fits the fMRI side to all rows. Each image comes twice: as two
    augmented copies, or, of 300 distinct stimuli and more, as it is and as one copy. For training, not for evaluation.

    Args:
        processor (`VisionFlowProcessor`): that of the model.
        distinct (`int`): how many distinct stimuli there are; of fewer than 50, half of the copies are composed of two.
    """

    processor: VisionFlowProcessor
    distinct: int

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        """
        Returns:
            `pixel_values` of shape `(2 * images, num_channels, height, width)`; a row may lack its image.
        """
        images = [row["image"] for row in rows if row["image"] is not None]
        pixels = self.processor(images=images)["pixel_values"]
        first = pixels if self.distinct >= MANY_STIMULI else augment(pixels, self.distinct)
        return {"pixel_values": torch.cat([first, augment(pixels, self.distinct)])}
