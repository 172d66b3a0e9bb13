"""A training step: against the forerunner's loop, a plain matrix product, and the input that feeds it.

    python benchmarks/training.py WORK [--images 128] [--voxels 39548]

Random pictures of 224 px, a ViT-B/16 of random weights and fMRI of 39,548 vertices, all in one process; prints a
table and writes WORK/training.json.

    forerunner      the loop of the notebook (see benchmarks/forerunner.py): rows as Python lists, pictures
                    decoded and resized one by one, all of ViT-B/16 in float32, Adam, batches of 16
    image, pair     steps of the two stages as `visionflow train` makes them, the encoder frozen, after the first epoch
    features        the pass of the encoder over all stimuli, once for all epochs and runs
    input           the batches of the pair stage alone, from disk
    fine-tuning     steps of the image stage in which the whole encoder learns: as without flags, and with --bf16 false
    matrix product  float32, 2048 x 2048; FLOP/s of a step are those that torch counts in its products and convolutions

A step is timed from the end of the one before, with all that the Trainer does between them.
"""

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from common import finish_work, keep, random_corpus, vit_b_16
from datasets import Dataset
from forerunner import BATCH, LEARNING_RATE, Forerunner, as_pixels, standardise
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import TrainerCallback
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor

from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.memory import keep_freed_memory
from visionflow_hf.training.arguments import IMAGE_STAGE, ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.pretrained import load_vision_model
from visionflow_hf.training.build import build_model, build_processor
from visionflow_hf.training.pairs import Pairs
from visionflow_hf.training.stimuli import Stimuli
from visionflow_hf.training.train import complete, suit_precision
from visionflow_hf.training.trainer import VisionFlowTrainer

STAGES = {"image": 1.0, "pair": 0.0}  # the share of the steps that are of the image stage


class Clock(TrainerCallback):
    """When each step ended; and the FLOPs of the last one, which is not timed."""

    def __init__(self):
        self.ends: list[float] = []
        self.counter = FlopCounterMode(display=False)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == args.max_steps - 1:
            self.counter.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        finish_work()
        if state.global_step == args.max_steps:
            self.counter.__exit__(None, None, None)
        else:
            self.ends.append(time.perf_counter())

    def seconds(self, skip: int) -> float:
        """The median of a step, after `skip` of them."""
        return float(np.median(np.diff(self.ends)[skip:]))


def time_steps(
    stage: str,
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    rows: Dataset,
    validation: Dataset,
    stimuli: Stimuli,
    args: VisionFlowTrainingArguments,
    steps: int,
) -> Clock:
    """Run some steps of one stage."""
    args.max_steps, args.image_stage = steps + 2, STAGES[stage]
    clock = Clock()
    trainer = VisionFlowTrainer(
        model=model,
        args=args,
        train_dataset=Pairs(rows, processor, stimuli),
        eval_dataset=Pairs(validation, processor, stimuli),
        processing_class=processor,
        images=[],
        callbacks=[clock],
    )
    trainer.train()
    return clock


def time_forerunner(vit: Path, processor: VisionFlowProcessor, rows: Dataset, device, steps: int = 4) -> float:
    """Seconds of a step of the forerunner's loop, the median after one to warm up."""
    torch.manual_seed(0)
    model = Forerunner(load_vision_model(str(vit)), {"subj01": len(processor.fmri_mean["subj01"])}).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    ends = []
    for step in tqdm(range(steps + 1), desc="forerunner", unit="step"):
        batch = rows[[row % len(rows) for row in range(step * BATCH, (step + 1) * BATCH)]]
        fmri = standardise(np.array(batch["fmri"], dtype=np.float32), processor, "subj01", device)
        loss = model.loss(as_pixels(batch["image"], device), {"subj01": (list(range(BATCH)), fmri)})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        ends.append(time.perf_counter())
    return float(np.median(np.diff(ends)))


def time_input(pairs: Pairs, batch: int) -> float:
    """Seconds a pair, of three passes in a random order."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(pairs))[: len(pairs) // batch * batch] for _ in range(3)]
    start = time.perf_counter()
    for rows in np.concatenate(orders).reshape(-1, batch).tolist():
        pairs.__getitems__(rows)
    return (time.perf_counter() - start) / sum(map(len, orders))


def matrix_product(device, size: int = 2048, repeats: int = 20) -> float:
    """FLOP/s in float32, the median of some products."""
    one, other = torch.randn(2, size, size, device=device)
    seconds = []
    for _ in range(repeats):
        finish_work()
        start = time.perf_counter()
        one @ other
        finish_work()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / float(np.median(seconds))


def arguments(folder: Path, rows: Dataset, **more) -> VisionFlowTrainingArguments:
    """Those of `visionflow train` without flags, but that nothing is saved, validated or logged between the steps."""
    args = VisionFlowTrainingArguments(
        output_dir=str(folder),
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),  # without a GPU bf16 has to be asked for so
        **more,
    )
    return complete(args, folder, len(rows), validated=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--voxels", type=int, default=39548)
    told = parser.parse_args()
    keep_freed_memory()  # as `train` does; the forerunner has it, too
    work = told.work
    corpus = open_corpus(random_corpus(work / "corpus", told.images, told.voxels))
    rows, validation = corpus.splits["train"], corpus.splits["test"]
    vit = vit_b_16(work / "vit")
    processor = build_processor(rows, None)
    args = arguments(work / "run", rows)
    batch = args.per_device_train_batch_size
    model = build_model(processor, ModelArguments(encoder=str(vit))).to(args.device)
    seconds, flops, products = {}, {}, [matrix_product(args.device)]

    seconds["forerunner"] = time_forerunner(vit, processor, rows, args.device) / BATCH
    shutil.rmtree(work / "cache", ignore_errors=True)
    start = time.perf_counter()
    stimuli = Stimuli(processor, [rows, validation], model, work / "cache")
    seconds["features"] = (time.perf_counter() - start) / (len(rows) + len(validation))
    for stage in STAGES:
        clock = time_steps(stage, model, processor, rows, validation, stimuli, args, 2 * len(rows) // batch + 6)
        seconds[stage] = clock.seconds(len(rows) // batch) / batch
        flops[stage] = clock.counter.get_total_flops() / batch
        products.append(matrix_product(args.device))
    seconds["input"] = time_input(Pairs(rows, processor, stimuli), batch)

    pixels = Stimuli(processor, [rows, validation], None, work / "cache")
    for name, bf16 in (("fine-tuning", None), ("fine-tuning, float32", False)):
        args = arguments(work / "run", rows, per_device_train_batch_size=BATCH // 2, bf16=bf16)
        learning = build_model(processor, ModelArguments(encoder=str(vit), freeze_encoder=False)).to(args.device)
        suit_precision(args, learning)
        clock = time_steps("image", learning, processor, rows, validation, pixels, args, 4)
        seconds[name] = clock.seconds(1) / BATCH  # each stimulus comes twice, once moved
        flops[name] = clock.counter.get_total_flops() / BATCH
        products.append(matrix_product(args.device))

    for spent in (seconds, flops):
        spent["an epoch"] = IMAGE_STAGE * spent["image"] + (1 - IMAGE_STAGE) * spent["pair"]
    seconds["five epochs with the features"] = seconds["features"] / 5 + seconds["an epoch"]
    product = float(np.median(products))
    found = {"images": told.images, "voxels": told.voxels, "batch": batch, "matrix products, FLOP/s": products}
    keep(work / "training.json", found | {"seconds an image": seconds, "FLOPs an image": flops})
    print("| | s an image | images/s, forerunner = 1 | FLOP/s, matrix product = 1 |\n|---|---|---|---|")
    for name, spent in seconds.items():
        reached = f"{flops[name] / spent / product:.2f}" if name in flops else "-"
        print(f"| {name} | {spent:.4f} | {seconds['forerunner'] / spent:.1f} | {reached} |")


if __name__ == "__main__":
    main()
