"""The Trainer of transformers with what VisionFlow adds to it: refits of the fMRI side, and the model's own card."""

import shutil
from pathlib import Path

from transformers import Trainer

from visionflow_hf.collator import ImageCollator
from visionflow_hf.hub import make_card, named, training_of
from visionflow_hf.modeling.card import CARD


class VisionFlowTrainer(Trainer):
    """`transformers.Trainer` with `model.refit_callback()`, and with VisionFlow's card in place of a draft.

    The rows need the columns `image`, `fmri`, `subject` and `stimulus_id`. A card that is in the folder is kept, with
    the name under which it is pushed; where there is none, that of the model from which training began is continued; a
    model with new weights gets a new one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        images_alone = isinstance(self.data_collator, ImageCollator)
        self.add_callback(self.accelerator.unwrap_model(self.model).refit_callback(images_alone or None))

    def _push_from_checkpoint(self, checkpoint_folder):
        """As in `Trainer`, which pushes weights and config alone: with the code and the voxels that belong to them."""
        for pattern in ("*.py", "requirements.txt", "voxels.parquet"):
            for file in Path(checkpoint_folder).glob(pattern):
                shutil.copy(file, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the card; the arguments of `Trainer`, which are for its draft, are not used."""
        if not self.is_world_process_zero():
            return
        card = Path(self.args.output_dir, CARD)
        training = training_of(card)  # `save_model` has left the card that is continued
        if training is None and self.train_dataset is None:  # no model that this Trainer has trained
            super().create_model_card(*args, **kwargs)
        elif training is None:
            make_card(self.hub_model_id or self.args.output_dir, self._config(), self._training()).save(card)
        elif self.hub_model_id is not None:
            card.write_bytes(named(card.read_bytes().decode(), self.hub_model_id, training).encode())

    def _config(self):
        return self.accelerator.unwrap_model(self.model).config

    def _training(self) -> dict:
        vision, rows = self._config().vision_config, self.train_dataset
        return {
            "encoder": vision._name_or_path or f"{vision.model_type}, trained from scratch",
            "unit": "that of the rows",
            "n_stimuli": len(set(rows["stimulus_id"])),
            "n_trials": len(rows),
            "steps": self.state.global_step,
            "seed": self.args.seed,
        }
