"""The image stage: the Hugging Face Trainer trains the posterior's head and the image decoder, without fMRI.

    loss = image_weight * loss_image + kl_weight * loss_kl

The images are the stimuli, images without fMRI, and augmented copies of both. The encoder is trained too where it is
not frozen. The fMRI side is fitted to the latent when this stage has ended (see `train`).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Trainer, TrainerState
from transformers.utils import logging

from visionflow_hf.errors import UserError, count
from visionflow_hf.folders import writing
from visionflow_hf.modeling.augmentation import augment
from visionflow_hf.stimuli import Stimuli

LOSSES = ("loss_image", "loss_kl")


class ImageBatches(torch.utils.data.Dataset):
    """Batches of stimuli; where there are images without fMRI, half of each batch is drawn from these at random.

    Args:
        stimulus_ids: of the stimuli with fMRI.
        unpaired: of the images without.
        batch: rows of a batch. So that every batch is full, some stimuli come twice in a pass.
        with_linear: as in `Stimuli.image_features`; needed where the whole latent is predicted, as in validation.
    """

    def __init__(
        self,
        stimuli: Stimuli,
        stimulus_ids: Sequence[str],
        unpaired: Sequence[str] = (),
        batch: int = 1,
        with_linear: bool = True,
    ):
        self.stimuli, self.stimulus_ids, self.unpaired = stimuli, list(stimulus_ids), list(unpaired)
        self.with_linear = with_linear
        self.length = math.ceil(len(self.stimulus_ids) / batch) * batch

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """`pixel_values`, `image_features` where the encoder is frozen, and the names of the stimuli."""
        names = [self.stimulus_ids[row % len(self.stimulus_ids)] for row in rows]
        if self.unpaired:
            own = torch.Generator().manual_seed(hash(tuple(rows)) % 2**63)  # where a run goes on, too
            drawn = torch.randint(len(self.unpaired), (len(rows) // 2,), generator=own).tolist()
            names[len(rows) - len(drawn) :] = [self.unpaired[row] for row in drawn]
        batch = {"pixel_values": self.stimuli.pixel_values(names), "stimulus_ids": names}
        features = self.stimuli.image_features(names, self.with_linear)
        return batch if features is None else batch | {"image_features": features}


class ImageTrainer(Trainer):
    """Trainer of the image side of a `VisionFlowModel`; its datasets are `ImageBatches`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, data_collator=dict, **kwargs)  # they come as batches
        self.distinct = len(self.train_dataset.stimulus_ids) + len(self.train_dataset.unpaired)
        self._sums: dict[str, list[torch.Tensor]] = {}

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As in `Trainer`; a checkpoint of the last step is only loaded, where `Trainer` would take one step more."""
        if resume_from_checkpoint is not None:
            checkpoint = Path(resume_from_checkpoint)
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if state.global_step >= self.args.max_steps:
                best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
                self._load_from_checkpoint(str(checkpoint.with_name(Path(best).name) if best else checkpoint))
                self.state = state
                return
        super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the images and, unless a frozen encoder's features are at hand, of augmented copies.

        Without validation the corpus is small: then no image comes as it is, so that the decoder memorises none.

        Raises:
            UserError: the loss is not finite in training, whose weights would be lost.
        """
        names = inputs.pop("stimulus_ids")
        if model.training and "image_features" not in inputs:
            pixels = inputs["pixel_values"]
            first = augment(pixels, self.distinct) if self.eval_dataset is None else pixels
            inputs = {"pixel_values": torch.cat([first, augment(pixels, self.distinct)])}
        outputs = model(**inputs)
        for name in LOSSES:
            self._sums.setdefault(name if model.training else f"eval_{name}", []).append(outputs[name].detach().mean())
        loss = outputs.loss.mean()
        if model.training and not loss.isfinite():
            losses = ", ".join(f"{name} {outputs[name].detach().mean().item():g}" for name in LOSSES)
            self._end(f"the loss is {loss.item():g}", f" ({losses})", names)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, *args, **kwargs):
        """As in `Trainer`.

        Raises:
            UserError: a gradient is not finite, as a loss at the edge of its range can give it.
        """
        names = inputs["stimulus_ids"]
        loss = super().training_step(model, inputs, *args, **kwargs)
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        finite = self.accelerator.scaler is not None or torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        if not finite:  # in float16 the scaler leaves such steps out
            self._end("a gradient is not finite", f" (loss {loss.item():g})", names)
        return loss

    def _end(self, what: str, losses: str, names: Sequence[str]) -> None:
        raise UserError(
            f"{what} in step {self.state.global_step + 1}{losses}, with {count(names, 'stimulus')}: earlier "
            "checkpoints are kept; try a smaller --learning_rate"
        )

    def log(self, logs, start_time=None):
        """Each loss by its name beside their weighted sum."""
        for name in LOSSES:
            name = f"eval_{name}" if "eval_loss" in logs else name
            if ("loss" in logs or "eval_loss" in logs) and name in self._sums:
                mean = torch.stack(self._sums.pop(name)).mean()
                logs[name] = self.accelerator.gather(mean).mean().item()
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial):
        with writing(self.args.output_dir):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir=None, state_dict=None):
        shown = logging.is_progress_bar_enabled()  # the bar of each checkpoint would tear the one of the training
        logging.disable_progress_bar()
        super()._save(output_dir, state_dict)
        if shown:
            logging.enable_progress_bar()
