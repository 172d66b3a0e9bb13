"""The Hugging Face Trainer with VisionFlow's two stages and its losses by name.

image stage   the image side learns alone, from the stimuli, from images without fMRI, and from images made of them
pair stage    the linear maps between voxels and latent are fitted to the finished latent; then the MLP from latent to
              fMRI and the image decoder learn from pairs, while the image side's encoder is held. Without validation,
              which would tell when it has learned the pairs by heart, the decoder is held too

The MLP from fMRI to latent learns when all else is finished (see `alignment_stage`).
"""

import torch
from datasets import Dataset
from transformers import Trainer
from transformers.utils import logging

from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.augmentation import FEW_STIMULI, augment
from visionflow_hf.training.collator import PairCollator
from visionflow_hf.training.fit_bridges import fit_bridges

logger = logging.get_logger("visionflow_hf")

LOSSES = ("loss_image", "loss_kl", "loss_alignment", "loss_fmri")


class VisionFlowTrainer(Trainer):
    """Trainer for `VisionFlowModel`, with our processor and collator; its arguments name `max_steps`.

    Args:
        images: rows without fMRI, of which each step of the image stage draws as many as it has pairs.
    """

    def __init__(self, *args, images: Dataset | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.images = images if images is not None and len(images) else None
        self.pair_stage_from = round(self.args.max_steps * self.args.image_stage)
        distinct = set(self.train_dataset["stimulus_id"]) | set(self.images["stimulus_id"] if self.images else [])
        self.few_stimuli = len(distinct) < FEW_STIMULI
        self.stage = None
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def training_step(self, model, inputs, num_items_in_batch=None):
        stage = "image" if self.state.global_step < self.pair_stage_from else "pair"
        if stage != self.stage:
            self._enter(stage)
        return super().training_step(model, inputs, num_items_in_batch)

    def _enter(self, stage: str) -> None:
        self.stage = stage
        logger.info(f"step {self.state.global_step} of {self.args.max_steps}: {stage} stage")
        model = self.accelerator.unwrap_model(self.model)
        if stage == "pair":
            if self.state.global_step == self.pair_stage_from:  # later, a checkpoint has brought the fitted maps
                fit_bridges(model, self.processing_class, self.train_dataset, self.data_collator.image_features)
            held = [model.encoder, model.posterior_head, model.fmri_to_latent]
            if self.eval_dataset is None:
                held.append(model.image_decoder)
            for part in held:
                part.requires_grad_(False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            if self.stage == "image":
                inputs = self._image_batch(inputs)
            elif self.eval_dataset is not None:
                inputs = self._pair_batch(inputs)
            else:  # nothing that images would teach learns any more
                inputs = inputs | {"decode_images": False}
        outputs = model(**inputs)
        prefix = "" if model.training else "eval_"
        for name in LOSSES:
            if outputs.get(name) is not None:
                key = prefix + name
                self._sums[key] = self._sums.get(key, 0) + outputs[name].detach()
                self._counts[key] = self._counts.get(key, 0) + 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs, start_time=None):
        prefix = "eval_" if any(name.startswith("eval_") for name in logs) else ""
        for key in [prefix + name for name in LOSSES]:
            if key in self._sums:
                logs[key] = float(self._sums.pop(key)) / self._counts.pop(key)
        super().log(logs, start_time)

    def _save(self, output_dir=None, state_dict=None):
        shown = logging.is_progress_bar_enabled()  # ten bars of a blink each would tear the one of the training
        logging.disable_progress_bar()
        super()._save(output_dir, state_dict)
        if shown:
            logging.enable_progress_bar()

    def _image_batch(self, inputs: dict) -> dict:
        """The stimuli, as many images without fMRI where there are any, and as many as both made of them; no fMRI."""
        inputs = {name: inputs[name] for name in ("pixel_values", "image_features") if name in inputs}
        if self.images:
            drawn = torch.randint(len(self.images), (len(inputs["pixel_values"]),)).tolist()
            more = self._prepare_inputs(self.data_collator.images([self.images[row] for row in drawn]))
            inputs = {name: torch.cat([values, more[name]]) for name, values in inputs.items()}
        if "image_features" in inputs:
            return inputs
        return {"pixel_values": torch.cat([inputs["pixel_values"], augment(inputs["pixel_values"], self.few_stimuli)])}

    def _pair_batch(self, inputs: dict) -> dict:
        """The pairs, and as many images without fMRI that were made of them."""
        if "image_features" in inputs:
            return inputs
        size = len(inputs["fmri"])
        has_fmri = torch.arange(2 * size, device=inputs["fmri"].device) < size
        return {
            "pixel_values": torch.cat([inputs["pixel_values"], augment(inputs["pixel_values"], self.few_stimuli)]),
            "fmri": torch.cat([inputs["fmri"], torch.zeros_like(inputs["fmri"])]),
            "subject_ids": torch.cat([inputs["subject_ids"], torch.full_like(inputs["subject_ids"], -1)]),
            "has_fmri": has_fmri,
        }


def run_trainer(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    fitted: Dataset,
    validation: Dataset | None,
    features: dict[str, torch.Tensor],
    args: VisionFlowTrainingArguments,
    checkpoint: str | None = None,
    images: Dataset | None = None,
) -> VisionFlowTrainer:
    """The Trainer, after its training."""
    trainer = VisionFlowTrainer(
        model=model,
        args=args,
        data_collator=PairCollator(processor, features),
        train_dataset=as_arrays(fitted),
        eval_dataset=None if validation is None else as_arrays(validation),
        processing_class=processor,
        images=images,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def as_arrays(rows: Dataset) -> Dataset:
    """Responses as arrays instead of lists of Python floats, images as pictures."""
    return rows.with_format("numpy", columns=["fmri"], output_all_columns=True)
