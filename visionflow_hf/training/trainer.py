"""The Hugging Face Trainer with VisionFlow's two stages and its losses by name.

image stage   the image side learns alone, from the stimuli, from images without fMRI, and from images made of them
pair stage    the linear maps between voxels and latent are fitted to the finished latent; then the MLP from latent to
              fMRI and the image decoder learn from pairs, while the image side's encoder is held. Without validation,
              which would tell when it has learned the pairs by heart, the decoder is held too

The MLP from fMRI to latent learns when all else is finished (see `alignment_stage`).
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.utils import broadcast
from datasets import Dataset
from transformers import Trainer
from transformers.utils import logging

from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.row_noise import draw_rows, part_of_batch
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.augmentation import FEW_STIMULI, augment
from visionflow_hf.training.fit_bridges import fit_bridges
from visionflow_hf.training.pairs import Pairs
from visionflow_hf.training.stimuli import Stimuli

logger = logging.get_logger("visionflow_hf")

LOSSES = ("loss_image", "loss_kl", "loss_alignment", "loss_fmri")


class VisionFlowTrainer(Trainer):
    """Trainer for `VisionFlowModel`, with our processor; its arguments name `max_steps`, its datasets are `Pairs`.

    Several processes draw the same random numbers for the same rows as one process with all the rows would.

    Args:
        images: stimuli without fMRI, of which each step of the image stage draws as many as it has pairs.
    """

    def __init__(self, *args, images: list[str], **kwargs):
        super().__init__(*args, data_collator=dict, **kwargs)  # Pairs come as batches
        self.images = images
        self.pair_stage_from = round(self.args.max_steps * self.args.image_stage)
        self.few_stimuli = len({*self.train_dataset.stimulus_ids, *images}) < FEW_STIMULI
        self.stage = None
        self._step = self._batches = -1
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def training_step(self, model, inputs, num_items_in_batch=None):
        stage = "image" if self.state.global_step < self.pair_stage_from else "pair"
        if stage != self.stage:
            self._enter(stage)
        self._batches = self._batches + 1 if self.state.global_step == self._step else 0  # of this step
        self._step = self.state.global_step
        drawn = np.random.SeedSequence([self.args.seed, self._step, self._batches]).generate_state(1)
        torch.manual_seed(int(drawn[0]))  # however many processes there are, and whatever they drew meanwhile
        with part_of_batch(self.args.process_index, self.args.world_size):
            return super().training_step(model, inputs, num_items_in_batch)

    def _enter(self, stage: str) -> None:
        self.stage = stage
        logger.info(f"step {self.state.global_step} of {self.args.max_steps}: {stage} stage")
        model = self.accelerator.unwrap_model(self.model)
        if stage == "pair":
            if self.state.global_step == self.pair_stage_from:  # later, a checkpoint has brought the fitted maps
                if self.args.process_index == 0:
                    fit_bridges(model, self.processing_class, self.train_dataset.rows, self.train_dataset.stimuli)
                for bridge in (model.fmri_to_latent, model.latent_to_fmri):
                    for weights in bridge.parameters():
                        broadcast(weights.data)
            held = [model.encoder, model.posterior_head, model.fmri_to_latent]
            if self.eval_dataset is None:
                held.append(model.image_decoder)
            for part in held:
                part.requires_grad_(False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.stage == "image":
            inputs = self._image_batch(inputs)
        elif self.eval_dataset is not None:
            inputs = self._pair_batch(inputs)
        else:  # nothing that images would teach learns any more
            inputs = inputs | {"decode_images": False}
        outputs = model(**inputs)
        for name in LOSSES:
            if outputs.get(name) is not None:
                self._sums[name] = self._sums.get(name, 0) + outputs[name].detach()
                self._counts[name] = self._counts.get(name, 0) + 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            for name in [name for name in LOSSES if name in self._sums]:
                mean = self._sums.pop(name) / self._counts.pop(name)
                logs[name] = self.accelerator.gather(mean).mean().item()
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """The losses, means over all rows, of which each process reads its share."""
        pairs, model = self.eval_dataset, self.model.eval()
        sums = torch.zeros(1 + len(LOSSES), dtype=torch.float64)
        mine = np.arange(self.args.process_index, len(pairs), self.args.world_size)
        for start in range(0, len(mine), self.args.per_device_eval_batch_size):
            rows = mine[start : start + self.args.per_device_eval_batch_size].tolist()
            outputs = model(**self._prepare_inputs(pairs.__getitems__(rows)))
            sums += len(rows) * torch.stack([outputs[name] for name in ("loss", *LOSSES)]).double().cpu()
        means = self.accelerator.reduce(sums.to(self.args.device, torch.float32)) / len(pairs)
        names = [f"{metric_key_prefix}_{name}" for name in ("loss", *LOSSES)]
        metrics = dict(zip(names, means.tolist(), strict=True))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, train_dataset=None):
        return FullBatches(len(self.train_dataset), self._train_batch_size * self.args.world_size, self.args.seed)

    def _save(self, output_dir=None, state_dict=None):
        shown = logging.is_progress_bar_enabled()  # ten bars of a blink each would tear the one of the training
        logging.disable_progress_bar()
        super()._save(output_dir, state_dict)
        if shown:
            logging.enable_progress_bar()

    def _image_batch(self, inputs: dict) -> dict:
        """The stimuli, as many images without fMRI where there are any, and as many as both made of them; no fMRI.

        Without validation, which would tell when a stimulus that comes again and again is known by heart, none comes
        as it is, but two images made of it.
        """
        inputs = {name: inputs[name] for name in ("pixel_values", "image_features") if name in inputs}
        if self.images:
            drawn = draw_rows(lambda rows: torch.randint(len(self.images), (rows,)), len(inputs["pixel_values"]))
            more = self._prepare_inputs(self.train_dataset.images([self.images[row] for row in drawn.tolist()]))
            inputs = {name: in_turns(values, more[name]) for name, values in inputs.items()}
        if "image_features" in inputs:
            return inputs
        images = inputs["pixel_values"]
        once = self._augmented(images) if self.eval_dataset is None else images
        return {"pixel_values": in_turns(once, self._augmented(images))}

    def _pair_batch(self, inputs: dict) -> dict:
        """The pairs, and as many images without fMRI that were made of them."""
        if "image_features" in inputs:
            return inputs
        no_fmri, no_subject = torch.zeros_like(inputs["fmri"]), torch.full_like(inputs["subject_ids"], -1)
        return {
            "pixel_values": in_turns(inputs["pixel_values"], self._augmented(inputs["pixel_values"])),
            "fmri": in_turns(inputs["fmri"], no_fmri),
            "subject_ids": in_turns(inputs["subject_ids"], no_subject),
            "subject_rows": {subject: 2 * rows for subject, rows in inputs["subject_rows"].items()},
            "has_fmri": in_turns(inputs["subject_ids"] >= 0, no_subject >= 0),
        }

    def _augmented(self, images: torch.Tensor) -> torch.Tensor:
        if not self.few_stimuli or self.args.world_size == 1:
            return augment(images, self.few_stimuli)
        with part_of_batch(0, 1):  # images are composed of any two of the whole batch
            made = augment(self.accelerator.gather(images), few=True)
        return made[self.args.process_index * len(images) :][: len(images)]


class FullBatches(torch.utils.data.Sampler):
    """Row numbers in a random order, a new one each epoch, whose last batch is filled up from one more such order.

    So that all steps weigh the same, and a batch can be cut into equal parts for several processes.
    """

    def __init__(self, rows: int, batch: int, seed: int):
        self.rows, self.length, self.seed, self.epoch = rows, math.ceil(rows / batch) * batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        orders = [rng.permutation(self.rows) for _ in range(math.ceil(self.length / self.rows))]
        return iter(np.concatenate(orders)[: self.length].tolist())


def in_turns(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The rows of two batches of the same size in turns, so that what belongs together stays in one process."""
    return torch.stack([one, other], dim=1).flatten(0, 1)


def run_trainer(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    fitted: Dataset,
    validation: Dataset | None,
    stimuli: Stimuli,
    args: VisionFlowTrainingArguments,
    checkpoint: str | None = None,
    images: Dataset | None = None,
) -> VisionFlowTrainer:
    """The Trainer, after its training."""
    trainer = VisionFlowTrainer(
        model=model,
        args=args,
        train_dataset=Pairs(fitted, processor, stimuli),
        eval_dataset=None if validation is None else Pairs(validation, processor, stimuli),
        processing_class=processor,
        images=[] if images is None else list(images["stimulus_id"]),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer
