"""Train a model on a corpus by code alone: processor, config, model, and the Trainer of transformers.

    python scripts/train.py CORPUS MODEL [--max_steps N]

All weights start at random and all four losses are minimised together; `refit_callback` then fits the fMRI side to the
train rows. `visionflow train` chooses the same sizes, but trains otherwise (docs/training.md).
"""

import argparse

import numpy as np
from datasets import load_from_disk
from transformers import EvalPrediction, Trainer, TrainingArguments

from visionflow_hf import VisionFlowCollator, VisionFlowConfig, VisionFlowModel, VisionFlowProcessor
from visionflow_hf.metrics import pixel_correlation


def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
    """Figures of all rows of the test split, one row per trial."""
    reconstructions, predicted = evaluated.predictions
    images, fmri = evaluated.label_ids
    return {
        "pixcorr": float(np.mean(pixel_correlation(images, reconstructions))),
        "fmri_mse": float(np.mean((predicted - fmri) ** 2)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", metavar="CORPUS", help="folder of the corpus")
    parser.add_argument("model", metavar="MODEL", help="folder for the model")
    parser.add_argument("--max_steps", type=int, default=300, help="(default: %(default)s)")
    given = parser.parse_args()

    corpus = load_from_disk(given.corpus)
    processor = VisionFlowProcessor.from_dataset(corpus["train"])
    model = VisionFlowModel(VisionFlowConfig.for_dataset(corpus["train"], processor))
    args = TrainingArguments(
        given.model,
        max_steps=given.max_steps,
        learning_rate=1e-3,
        per_device_train_batch_size=32,
        eval_strategy="steps",
        eval_steps=100,
        save_strategy="no",
        remove_unused_columns=False,  # the collator makes the model's inputs of the columns
        label_names=["pixel_values", "fmri"],  # what `compute_metrics` finds in `label_ids`
    )
    trainer = Trainer(
        model,
        args,
        data_collator=VisionFlowCollator(processor),
        train_dataset=corpus["train"],
        eval_dataset=corpus["test"],
        processing_class=processor,
        compute_metrics=compute_metrics,
        callbacks=[model.refit_callback()],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
