"""A training step: against the forerunner's loop, a plain matrix product, and the input that feeds it.

    python benchmarks/training.py WORK [--images 128] [--voxels 39548]

Random pictures of 224 px, a ViT-B/16 of random weights and fMRI of 39,548 vertices, all in one process; prints the
table of benchmarks/training.md and writes WORK/training.json.

    forerunner      the loop of the notebook (see visionflow_hf.evaluation.forerunner): rows as Python lists, pictures
                    decoded and resized one by one, all of ViT-B/16 in float32, Adam, batches of 16
    image, pair     steps of the two stages as `visionflow train` makes them, the encoder frozen, after the first epoch
    features        the pass of the encoder over all stimuli, once for all epochs and runs
    input           the batches of the pair stage alone, from disk
    fine-tuning     steps of the image stage in which the whole encoder learns, without and with --bf16
    matrix product  float32, 2048 x 2048; FLOP/s of a step are those that torch counts in its products and convolutions
"""

import argparse
import shutil
import time
from pathlib import Path

import torch
from common import keep, random_corpus, vit_b_16
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import TrainerCallback

from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.evaluation.forerunner import BATCH, LEARNING_RATE, Forerunner, _pixels, _standardised
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training.build import build_model, build_processor, load_vision_model
from visionflow_hf.training.stimuli import Stimuli
from visionflow_hf.training.train import complete
from visionflow_hf.training.trainer import VisionFlowTrainer, run_trainer


class Clock(TrainerCallback):
    """Seconds of each step, with what the Trainer does around it; and the FLOPs of the last one."""

    def __init__(self, steps: int):
        self.steps, self.ends, self.flops = steps, [], 0
        self.counter = FlopCounterMode(display=False)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.steps - 1:
            self.counter.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        synchronize()
        self.ends.append(time.perf_counter())
        if state.global_step == self.steps:
            self.counter.__exit__(None, None, None)
            self.flops = self.counter.get_total_flops()

    def seconds(self, skip: int) -> float:
        """The median of a step, without the first ones and the last, which is counted and not timed."""
        steps = torch.tensor(self.ends).diff()[skip:-1]
        return steps.median().item()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def steps_of(stage: str, model, processor, rows, validation, stimuli, args, steps: int, skip: int) -> Clock:
    """Time the steps of one stage."""
    args.max_steps, args.image_stage = steps, 1.0 if stage == "image" else 0.0
    clock = Clock(steps)
    made = VisionFlowTrainer.__init__

    def with_clock(self, *more, **kwargs):
        made(self, *more, **kwargs)
        self.add_callback(clock)

    VisionFlowTrainer.__init__ = with_clock
    try:
        run_trainer(model, processor, rows, validation, stimuli, args)
    finally:
        VisionFlowTrainer.__init__ = made
    return clock


def forerunner_seconds(vit: Path, processor, rows, steps: int = 3) -> float:
    """The median of a step of the forerunner's loop, after one to warm up."""
    torch.manual_seed(0)
    device = training_arguments("").device
    model = Forerunner(load_vision_model(str(vit)), {"subj01": len(processor.fmri_mean["subj01"])}).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    ends = [time.perf_counter()]
    for step in tqdm(range(steps + 1), desc="forerunner", unit="step"):
        batch = rows[[row % len(rows) for row in range(step * BATCH, (step + 1) * BATCH)]]
        fmri = _standardised(torch.tensor(batch["fmri"]).numpy(), processor, "subj01", device)
        loss = model.loss(_pixels(batch["image"], device), {"subj01": (list(range(BATCH)), fmri)})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        ends.append(time.perf_counter())
    return torch.tensor(ends).diff()[1:].median().item()


def matrix_product(dtype=torch.float32, size: int = 2048, repeats: int = 20) -> float:
    """FLOP/s of the fastest of some products."""
    device = training_arguments("").device
    one, other = torch.randn(2, size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        one @ other
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def training_arguments(folder, **more) -> VisionFlowTrainingArguments:
    return VisionFlowTrainingArguments(
        output_dir=str(folder), save_strategy="no", eval_strategy="no", load_best_model_at_end=False, **more
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--voxels", type=int, default=39548)
    args = parser.parse_args()
    work = args.work
    corpus = open_corpus(random_corpus(work / "corpus", args.images, args.voxels))
    rows, validation = corpus.splits["train"], corpus.splits["test"]
    vit = vit_b_16(work / "vit")
    processor = build_processor(rows, None)
    told = complete(training_arguments(work / "run"), work / "run", len(rows), validated=True)
    batch = told.per_device_train_batch_size
    model = build_model(processor, ModelArguments(encoder=str(vit))).to(told.device)
    found = {"images": args.images, "voxels": args.voxels, "batch": batch, "product": matrix_product()}

    print("forerunner", flush=True)
    found["forerunner"] = forerunner_seconds(vit, processor, rows) / BATCH
    print("features", flush=True)
    shutil.rmtree(work / "cache", ignore_errors=True)
    start = time.perf_counter()
    stimuli = Stimuli(processor, [rows, validation], model, work / "cache")
    found["features"] = (time.perf_counter() - start) / (len(rows) + len(validation))

    epoch = max(1, len(rows) // batch)
    for stage in ("image", "pair"):
        clock = steps_of(stage, model, processor, rows, validation, stimuli, told, 2 * epoch + 6, epoch)
        found[stage] = clock.seconds(epoch) / batch
        found[f"{stage} FLOP/s"] = clock.flops / clock.seconds(epoch)
    from visionflow_hf.training.pairs import Pairs

    pairs = Pairs(rows, processor, stimuli)
    start = time.perf_counter()
    for first in range(0, epoch * batch, batch):
        pairs.__getitems__([row % len(rows) for row in range(first, first + batch)])
    found["input"] = (time.perf_counter() - start) / (epoch * batch)

    learning = Stimuli(processor, [rows, validation], None, work / "cache")
    for name, more in (("fine-tuning", {}), ("fine-tuning bf16", {"bf16": True})):
        told = complete(training_arguments(work / "run", **more), work / "run", len(rows), validated=True)
        model = build_model(processor, ModelArguments(encoder=str(vit), freeze_encoder=False)).to(told.device)
        told.per_device_train_batch_size = BATCH
        clock = steps_of("image", model, processor, rows, validation, learning, told, 5, 1)
        # an image of the step is one that was made of a stimulus: two of a stimulus
        found[name] = clock.seconds(1) / (2 * BATCH)
        found[f"{name} FLOP/s"] = clock.flops / clock.seconds(1)
    found["product at the end"] = matrix_product()
    keep(work / "training.json", found)

    run = told.image_stage
    del run
    own = 0.6 * found["image"] + 0.4 * found["pair"]
    print("| | s an image | images/s against the forerunner | share of a matrix product's FLOP/s |\n|---|---|---|---|")
    product = max(found["product"], found["product at the end"])
    for name in ("forerunner", "features", "image", "pair", "input", "fine-tuning", "fine-tuning bf16"):
        share = found.get(f"{name} FLOP/s")
        share = "-" if share is None else f"{share / product:.2f}"
        print(f"| {name} | {found[name]:.4f} | {found['forerunner'] / found[name]:.1f} | {share} |")
    print(f"| an epoch (0.6 image, 0.4 pair) | {own:.4f} | {found['forerunner'] / own:.1f} | - |")
    five = found["features"] + 5 * own
    print(f"| five epochs and the features | {five / 5:.4f} | {5 * found['forerunner'] / five:.1f} | - |")
    print(f"input is {found['pair'] / found['input']:.1f} x as fast as the step it feeds")


if __name__ == "__main__":
    main()
