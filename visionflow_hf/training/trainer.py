"""The image stage: the Hugging Face Trainer trains the posterior's head and the image decoder, without fMRI.

    loss = image_weight * loss_image + kl_weight * loss_kl

The images are the stimuli, images without fMRI, and augmented copies of both. The encoder is trained too where it is
not frozen. The fMRI side is fitted to the latent when this stage has ended (see `train`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import Trainer
from transformers.utils import logging

from visionflow_hf.training.augmentation import augment
from visionflow_hf.training.stimuli import Stimuli

LOSSES = ("loss_image", "loss_kl")


class ImageBatches(torch.utils.data.Dataset):
    """Batches of stimuli and, where there are images without fMRI, as many of these drawn at random.

    Args:
        stimulus_ids: of the stimuli with fMRI.
        unpaired: of the images without.
        seed: which of the latter go with which stimuli.
    """

    def __init__(self, stimuli: Stimuli, stimulus_ids: Sequence[str], unpaired: Sequence[str] = (), seed: int = 0):
        self.stimuli, self.stimulus_ids, self.unpaired = stimuli, list(stimulus_ids), list(unpaired)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.stimulus_ids)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """`pixel_values`, and `image_features` where the encoder is frozen."""
        names = [self.stimulus_ids[row] for row in rows]
        if self.unpaired:
            random = np.random.default_rng([self.seed, *rows])  # the same in a resumed run
            names += [self.unpaired[row] for row in random.integers(len(self.unpaired), size=len(rows))]
        batch = {"pixel_values": self.stimuli.pixel_values(names)}
        features = self.stimuli.image_features(names)
        return batch if features is None else batch | {"image_features": features}


class ImageTrainer(Trainer):
    """Trainer of the image side of a `VisionFlowModel`; its datasets are `ImageBatches`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, data_collator=dict, **kwargs)  # they come as batches
        self.distinct = len(self.train_dataset.stimulus_ids) + len(self.train_dataset.unpaired)
        self._sums = dict.fromkeys(LOSSES, 0.0)
        self._steps = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the images and, unless a frozen encoder's features are at hand, of augmented copies.

        Without validation the corpus is small: then no image comes as it is, so that the decoder memorises none.
        """
        if model.training and "image_features" not in inputs:
            pixels = inputs["pixel_values"]
            first = augment(pixels, self.distinct) if self.eval_dataset is None else pixels
            inputs = {"pixel_values": torch.cat([first, augment(pixels, self.distinct)])}
        outputs = model(**inputs)
        if model.training:
            for name in LOSSES:
                self._sums[name] = self._sums[name] + outputs[name].detach().mean()
            self._steps += 1
        return (outputs.loss.mean(), outputs) if return_outputs else outputs.loss.mean()

    def log(self, logs, start_time=None):
        """Each loss by its name beside their weighted sum."""
        if "loss" in logs and self._steps:
            for name in LOSSES:
                mean = torch.as_tensor(self._sums[name] / self._steps, device=self.args.device)
                logs[name] = self.accelerator.gather(mean).mean().item()
                self._sums[name] = 0.0
            self._steps = 0
        super().log(logs, start_time)

    def _save(self, output_dir=None, state_dict=None):
        shown = logging.is_progress_bar_enabled()  # the bar of each checkpoint would tear the one of the training
        logging.disable_progress_bar()
        super()._save(output_dir, state_dict)
        if shown:
            logging.enable_progress_bar()
