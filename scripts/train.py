"""Train a model on a corpus by code alone: processor, config, model, and the Trainer of transformers.

    python scripts/train.py CORPUS MODEL [--max_steps N] [--seed N]

The steps are those of `visionflow train` on a few hundred stimuli (docs/training.md): gradient descent trains the image
side on images alone, then the fMRI side is fitted to it. At first a fifth of the stimuli is held out, by which it is
chosen how the model decodes.
"""

import argparse

import numpy as np
from datasets import load_from_disk
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed

from visionflow_hf import ImageCollator, VisionFlowCollator, VisionFlowConfig, VisionFlowModel, VisionFlowProcessor
from visionflow_hf.metrics import pixel_correlation
from visionflow_hf.modeling.refit import RowImages, pairs_of
from visionflow_hf.modeling.trials import Trials
from visionflow_hf.training.decoding import choose_decoding


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
    parser.add_argument("--max_steps", type=int, default=750, help="of each stage (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    given = parser.parse_args()

    corpus = load_from_disk(given.corpus)
    rows = corpus["train"]
    set_seed(given.seed)
    processor = VisionFlowProcessor.from_dataset(rows)
    model = VisionFlowModel(VisionFlowConfig.for_dataset(rows, processor))
    args = TrainingArguments(
        given.model,
        max_steps=given.max_steps,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=given.max_steps // 20,
        per_device_train_batch_size=32,
        save_strategy="no",
        seed=given.seed,
        remove_unused_columns=False,  # the collators make the model's inputs of the columns
        label_names=["pixel_values", "fmri"],  # what `compute_metrics` finds in `label_ids`
    )

    names = np.array(rows["stimulus_id"])
    stimuli = np.random.default_rng(given.seed).permutation(np.unique(names))
    held_out = np.isin(names, stimuli[: max(1, len(stimuli) // 5)])  # with all of their repeats
    train(model, processor, rows.select(np.flatnonzero(~held_out)), args)
    pairs = pairs_of(rows.select(np.flatnonzero(held_out)))
    decoding = choose_decoding(model, Trials(pairs, processor), RowImages(pairs, processor), given.seed)

    trainer = train(model, processor, rows, args)
    decoding.set_in(model)
    trainer.save_model()
    evaluator = Trainer(
        model, args, VisionFlowCollator(processor), None, corpus["test"], compute_metrics=compute_metrics
    )
    print(evaluator.evaluate())


def train(model: VisionFlowModel, processor: VisionFlowProcessor, rows, args: TrainingArguments) -> Trainer:
    """Train the image side on the images of the rows, then fit the fMRI side to the rows."""
    trainer = Trainer(
        model,
        args,
        data_collator=ImageCollator(processor, distinct=len(set(rows["stimulus_id"]))),
        train_dataset=rows,
        processing_class=processor,
        callbacks=[model.refit_callback(from_learned=True)],
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
