"""Kills at random moments: of `train`, which is resumed, and of `prepare`, which is run again."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
from forked import After, AtChange, count_changes, run
from table import Row

from visionflow_hf.errors import UserError

SMALL = ["--stimuli", 24, "--voxels", 20, "--image-size", 16, "--subjects", 1]
SHORT = [
    *("--max_steps", 20, "--save_steps", 5, "--use_cpu", "true", "--disable_tqdm", "true"),
    *("--per_device_train_batch_size", 4, "--latent_dim", 8, "--linear_dim", 8, "--decoder_channels", 4),
]
RESULT = ("model.safetensors", "fmri_statistics.safetensors", "config.json", "README.md")
STATE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def kills_in_training(work: Path, kills: int, seed: int = 0) -> list[Row]:
    """Kill `train` up to four times at random moments, let it end, and compare with the run that was left alone.

    Half of the moments are drawn by the clock, half among the changes of files.
    """
    rng = np.random.default_rng(seed)
    corpus, whole, log = work / "corpus", work / "whole" / "run", work / "log"
    simulate(corpus, log)
    words = ["train", corpus, whole, *SHORT, "--resume_from_checkpoint", "auto", "--stimulus_cache"]
    changes, seconds = count_changes([*words, work / "whole" / "cache"], log, work / "whole")
    again = Row("`train` killed at a random moment, then run again with `--resume_from_checkpoint auto`")
    while again.tried < kills:
        folder = work / "killed"
        folder.mkdir()
        mine = ["train", corpus, folder / "run", *SHORT, "--resume_from_checkpoint", "auto"]
        mine += ["--stimulus_cache", folder / "cache"]
        killed, problems = 0, []
        for _ in range(rng.integers(1, 5)):
            by_clock = rng.random() < 0.5
            end = After(rng.uniform(0, seconds)) if by_clock else AtChange(int(rng.integers(1, changes + 1)), folder)
            ended = run(mine, log, end=end)
            if ended.code == -signal.SIGKILL:
                killed += 1
                problems += half_model(folder / "run", whole)
            elif ended.code == 0:  # it came to its end first
                break
            else:
                problems.append(f"seed {seed}, after {again.tried + killed} kills: {last_line(ended.text)}")
                break
        ended = run(mine, log)
        if ended.code:
            problems.append(f"after {again.tried + killed} kills: exit code {ended.code}, {last_line(ended.text)}")
        elif different := differences(folder / "run", whole, RESULT):
            problems.append(f"after {again.tried + killed} kills: {', '.join(different)} differ")
        again.add(problems, killed, wrong=any("differ" in line for line in problems))
        shutil.rmtree(folder)
    return [again, cut_checkpoints(work, corpus, whole, kills // 3, rng)]


def cut_checkpoints(work: Path, corpus: Path, whole: Path, times: int, rng: np.random.Generator) -> Row:
    """One file of the last checkpoint is cut short or missing, as a machine without power leaves it."""
    row = Row("last checkpoint cut short: passed over, the run ends as one that was left alone")
    for _ in range(times):
        folder = work / "cut"
        shutil.copytree(whole.parent, folder)
        spoiled = folder / "run" / "checkpoint-20" / STATE[rng.integers(len(STATE))]
        if rng.random() < 0.2:
            spoiled.unlink()
        else:
            os.truncate(spoiled, rng.integers(spoiled.stat().st_size))
        words = ["train", corpus, folder / "run", *SHORT, "--resume_from_checkpoint", "auto", "--overwrite"]
        ended = run([*words, "--stimulus_cache", folder / "cache"], work / "log")
        problems = [f"{spoiled.name}: {last_line(ended.text)}"] if ended.code else []
        if not problems and "is passed over" not in ended.text:
            problems = [f"{spoiled.name}: the checkpoint was taken for a whole one"]
        different = [] if ended.code else differences(folder / "run", whole, RESULT)
        if different:
            problems.append(f"{spoiled.name}: {', '.join(different)} differ")
        row.add(problems, wrong=bool(different))
        shutil.rmtree(folder)
    return row


def kills_in_prepare(work: Path, kills: int, seed: int = 0) -> Row:
    """Kill `prepare arrays` that replaces an earlier corpus; the earlier or the new one must be there, then the new."""
    rng = np.random.default_rng(seed)
    row = Row("`prepare --overwrite` killed at a random moment, then run again")
    folder, log = work / "prepared", work / "log"
    folder.mkdir()
    for name in ("earlier", "new"):
        trials = 300
        images = rng.integers(0, 256, (trials, 32, 32, 3), dtype=np.uint8)
        np.savez(work / f"{name}.npz", images=images, fmri=rng.normal(size=(trials, 500)).astype(np.float32))
    flags = ["--images", "images", "--fmri", "fmri"]
    for name in ("earlier", "new"):
        run(["prepare", "arrays", work / f"{name}.npz", work / name, *flags], log)
    words = ["prepare", "arrays", work / "new.npz", folder / "out", *flags, "--overwrite"]
    shutil.copytree(work / "earlier", folder / "out")
    changes, seconds = count_changes(words, log, folder)
    while row.tried < kills:
        shutil.rmtree(folder / "out")
        shutil.copytree(work / "earlier", folder / "out")
        by_clock = rng.random() < 0.5
        end = After(rng.uniform(0, seconds)) if by_clock else AtChange(int(rng.integers(1, changes + 1)), folder)
        ended = run(words, log, end=end)
        if ended.code != -signal.SIGKILL:
            continue
        found = folder / "out" if (folder / "out").exists() else folder / ".out.replaced"
        problems, lost = [], 0
        if all(differences(found, work / name, files_of(work / name)) for name in ("earlier", "new")):
            lost = sum(file.stat().st_size for file in (work / "earlier").rglob("*") if file.is_file())
            problems.append(f"kill {row.tried}: neither the earlier nor the new corpus is whole")
        ended = run(words, log)
        wrong = bool(ended.code or differences(folder / "out", work / "new", files_of(work / "new")))
        if wrong:
            problems.append(f"kill {row.tried}: {last_line(ended.text)}")
        left = sorted(path.name for path in folder.iterdir() if path.name != "out")
        if left:
            problems.append(f"kill {row.tried}: {', '.join(left)} left")
        row.add(problems, lost=lost, wrong=wrong)
    return row


def simulate(corpus: Path, log: Path) -> None:
    ended = run(["simulate", corpus, *SMALL], log)
    if ended.code:
        raise SystemExit(ended.text)


def half_model(folder: Path, whole: Path) -> list[str]:
    """What a killed run left must not be taken for a model, unless it is the whole one."""
    from visionflow_hf.hub import load_model

    try:
        load_model(folder)
    except UserError:
        return []
    return ["a half-written model loads"] if differences(folder, whole, RESULT[:3]) else []


def files_of(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]


def differences(folder: Path, other: Path, names) -> list[str]:
    """The files that are not the same byte for byte; the path of the folder itself may be in them."""

    def content(root: Path, name: str) -> bytes:
        file = root / name
        return file.read_bytes().replace(str(root).encode(), b"RUN") if file.is_file() else b"missing"

    return [name for name in names if content(folder, name) != content(other, name)]


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "nothing was said"
