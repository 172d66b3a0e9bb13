"""The command line `visionflow`: one parser for all commands, and errors as one line with exit code 2.

A command imports what it needs when it runs, so that help and importers need not wait for torch.
"""

import argparse
import ctypes
import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread

from visionflow_hf import __version__
from visionflow_hf.errors import UserError

OF_PATHS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "ENAMETOOLONG", "ENOSPC", "EROFS", "EDQUOT")
    if hasattr(errno, name)
}
COLUMNS = ("image", "subject", "session", "run", "repeat", "split", "category")  # of `prepare table`, by their flags


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what it has begun is cleaned up."""


class HelpFormatter(argparse.HelpFormatter):
    """Help that shows `--max_steps`, and not `--max-steps` beside it, which is taken as well."""

    def _format_action_invocation(self, action):
        if len(action.option_strings) > 1 and "_" in action.option_strings[0]:
            action = argparse.Action(action.option_strings[:1], action.dest, action.nargs, metavar=action.metavar)
        return super()._format_action_invocation(action)


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's; words that a command does not know are told with that command's own help."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str):
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 2 for what the user can mend; 130 after Ctrl-C; 143 after SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = take_debug_flag(argv)
    if not debug:
        warnings.filterwarnings("ignore")
    logging.basicConfig(format="%(message)s")
    first = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` has started
    logging.getLogger("visionflow_hf").setLevel(logging.INFO if first else logging.ERROR)
    if not first:
        os.environ["TQDM_DISABLE"] = "1"
    # A thread that waits for another sleeps, and leaves its core to it. libgomp reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        with sigterm_raises():
            if argv[:1] != ["train"] and os.environ.get("WORLD_SIZE", "1") != "1":
                raise UserError("only `train` shares its work among several processes: run this without a launcher")
            args = parse(argv)
            args.pop("run_command")(**args)
    except UserError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if debug or not is_memory_full(error):
            raise
        reason = " ".join(str(error).split())[:200] or "take less data at once"
        print(f"error: memory is full: {reason}", file=sys.stderr)
        return 2
    except OSError as error:
        if debug or error.errno not in OF_PATHS:
            raise
        what = f"{error.filename or 'a file'}: {error.strerror}"
        print(f"error: {what}; check the name, the permissions and the free space on its disk", file=sys.stderr)
        return 2
    except Terminated:
        print("error: terminated", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def is_memory_full(error: Exception) -> bool:
    """Whether there is no room in memory; torch says so by a RuntimeError, of its own class on a GPU."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "t allocate mem" in str(error)
    )


def keep_freed_memory() -> None:
    """Keep freed memory in this process and those that it starts, instead of returning it to the system.

    Training makes and frees the same large arrays in every step; glibc would map and clear each anew, which takes about
    a fifth of a step on a CPU. Other C libraries are left alone.
    """
    allocator = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    for number, variable, value in ((-4, "MALLOC_MMAP_MAX_", 0), (-1, "MALLOC_TRIM_THRESHOLD_", -1)):  # of malloc.h
        os.environ.setdefault(variable, str(value))
        if allocator is not None:
            allocator(number, value)


def take_debug_flag(argv: list[str]) -> bool:
    """Remove a bare `--debug`, which asks for tracebacks; TrainingArguments has a `--debug` too, with a value."""
    for place, word in enumerate(argv):
        if word == "--debug" and argv[place + 1 : place + 2] not in (["underflow_overflow"], ["tpu_metrics_debug"]):
            del argv[place]
            return True
    return False


@contextmanager
def sigterm_raises():
    """SIGTERM raises `Terminated` within; only in the main thread, where Python allows it."""
    if current_thread() is not main_thread():
        yield
        return

    def end(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(argv: list[str]) -> dict:
    """The flags of a command by name, and the command's function as `run_command`.

    The flags of `--config FILE.yaml` come before those of the command line, which override them.
    """
    one = parser(argv)
    args = vars(one.parse_args(argv))
    file = args.pop("config", None)
    if file is not None:
        from visionflow_hf.training_flags import config_words

        # `--config` once more ends a list of values before CORPUS would be taken for one of them
        args = vars(one.parse_args([argv[0], *config_words(file), "--config", str(file), *argv[1:]]))
        del args["config"]
    return args


def parser(argv: Sequence[str] = ()) -> Parser:
    """The parser of all commands.

    Args:
        argv: words of the command line. The flags of `train` and `crossvalidate` come from transformers, so that only
            these two wait for it: they have all their flags if `argv` begins with their name.
    """
    top = Parser(
        prog="visionflow",
        description="Train models that predict fMRI responses from images and reconstruct images from fMRI responses.",
        epilog="`visionflow COMMAND --help` explains a command. --debug shows the traceback of an error.",
    )
    top.add_argument("--version", action="version", version=f"visionflow {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run_command, help: str, group=commands, **kwargs) -> Parser:
        added = group.add_parser(name, help=help, description=help, **kwargs)
        added.set_defaults(run_command=run_command)
        return added

    one = command("simulate", simulate, "Write a simulated corpus whose noise ceiling is known.")
    add_out(one)
    one.add_argument(
        "--stimuli",
        type=int,
        metavar="N",
        help="number of distinct images, train and test together (default: 600, or all of --images)",
    )
    add_number(one, "--subjects", 2, "number of simulated subjects")
    add_number(one, "--voxels", 400, "number of voxels of each subject")
    one.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="height and width of the images in px (default: 32, or 64 with --images)",
    )
    add_number(one, "--repeats", 1, "number of trials of each train stimulus")
    add_number(one, "--test-repeats", 3, "number of trials of each test stimulus")
    add_number(one, "--test-fraction", 0.1, "share of the stimuli in the test split")
    add_number(one, "--seed", 0, "seed of images, voxels and noise")
    one.add_argument(
        "--images",
        metavar="FOLDER",
        help="folder of photographs, for a cortex with V1, V4 and IT (default: handwritten digits, for V1 to V3)",
    )
    one.add_argument(
        "--network",
        metavar="NAME_OR_FOLDER",
        help="vision network from whose layers V4 and IT are simulated, with --images; not the encoder of the model to "
        "be trained",
    )
    add_overwrite(one, "corpus")

    prepare = commands.add_parser(
        "prepare", help="Import a dataset as a corpus.", description="Import a dataset as a corpus."
    )
    layouts = prepare.add_subparsers(required=True, metavar="LAYOUT")
    one = command("arrays", prepare_arrays, "Images and responses in a .mat, .npz or .h5 file.", layouts)
    one.add_argument("file", metavar="FILE", help="the .mat, .npz or .h5 file")
    add_out(one)
    one.add_argument(
        "--images", metavar="KEY", help="name of the array of images, trials first (default: none, fMRI alone)"
    )
    one.add_argument(
        "--fmri",
        metavar="KEY",
        help="name of the array of responses (trials, voxels); {subject} in it, as in '{subject}/fmri', stands for "
        "several subjects, in other keys too; without it, the arrays in FILE are listed and a command is proposed",
    )
    one.add_argument("--test-images", metavar="KEY", help="images of the test split (default: it is drawn by stimulus)")
    one.add_argument("--test-fmri", metavar="KEY", help="responses of the test split")
    one.add_argument(
        "--image-shape", type=int, nargs="+", metavar="N", help="height, width and channels of images in flat rows"
    )
    one.add_argument(
        "--column-major", action="store_true", help="the flat rows are in column-major order, as MATLAB writes them"
    )
    one.add_argument(
        "--stimulus-ids", metavar="KEY", help="name or number of each trial's stimulus (default: a hash of its pixels)"
    )
    one.add_argument("--test-stimulus-ids", metavar="KEY", help="the same for the test split")
    one.add_argument("--category", metavar="KEY", help="category of each trial's stimulus, for --split-by category")
    one.add_argument("--test-category", metavar="KEY", help="the same for the test split")
    one.add_argument("--subject", metavar="NAME", help="name of the only subject (default: subj01)")
    one.add_argument(
        "--rois",
        nargs="+",
        metavar="KEY",
        help="region of each voxel; or a group or struct of masks; or masks, then their names",
    )
    one.add_argument("--xyz", metavar="KEY", help="coordinates of the voxels (voxels, 3)")
    one.add_argument(
        "--mask-volume", metavar="KEY", help="volume (x, y, z) that marks the voxels, in place of their coordinates"
    )
    one.add_argument(
        "--noise-ceiling",
        metavar="KEY",
        help="share of the variance of one trial that the stimulus explains, for each voxel (default: from repeats)",
    )
    add_prepare_flags(one)
    for layout, help in {
        "algonauts23": "Algonauts 2023: the challenge's folder, or the one that holds processed/.",
        "nsd": "Natural Scenes Dataset: the folder with nsddata, nsddata_betas and nsddata_stimuli.",
        "god": "Generic Object Decoding: a folder with one bdpy .h5 file per subject.",
        "bold5000": "BOLD5000: the folder with the ROI files, the lists of images and the images.",
        "things": "THINGS-fMRI: the folder with betas_csv and the images.",
        "laion-fmri": "LAION-fMRI: the folder with derivatives and stimuli.",
        "mosaic": "MOSAIC: a folder with one .hdf5 file per subject, and the images.",
        "tvsd": "THINGS ventral stream spiking dataset: the folder with monkeyF and monkeyN, and the images.",
    }.items():
        one = command(layout, partial(prepare_source, layout), help, layouts)
        one.add_argument("source", metavar="SOURCE", help="folder of the dataset")
        add_out(one)
        one.add_argument("--subjects", nargs="+", metavar="NAME", help="subjects to import (default: all)")
        if layout in ("nsd", "laion-fmri"):
            one.add_argument("--zscore-sessions", action="store_true", help="z-score each voxel within each session")
        if layout in ("god", "bold5000", "things", "mosaic", "tvsd"):
            one.add_argument("--images-folder", metavar="FOLDER", help="folder of the images (default: SOURCE)")
        add_number(one, "--num-proc", 1, "number of processes that read")
        add_prepare_flags(one)

    one = command(
        "table", prepare_table, "A table of trials, images and betas of any lab; or BIDS derivatives.", layouts
    )
    one.add_argument(
        "source",
        metavar="TRIALS",
        help=".tsv, .csv or .parquet table with one row per trial, or a folder of BIDS derivatives with "
        "*_desc-SingletrialBetas_statmap.nii.gz beside *_trials.tsv",
    )
    add_out(one)
    one.add_argument("--images-folder", required=True, metavar="FOLDER", help="folder of the images")
    one.add_argument(
        "--betas",
        nargs="+",
        default=(),
        metavar="FILE",
        help="NIfTI, .npy, .npz, .h5 or .mat file of the responses, its trials in the order of the table's rows; or a "
        "pattern that names columns, such as 'betas/{subject}_{session}.nii.gz' (needed for a table)",
    )
    one.add_argument("--betas-key", metavar="KEY", help="name of the array in files that hold several")
    one.add_argument(
        "--mask",
        metavar="FILE",
        help="NIfTI file or pattern; voxels above 0 are imported (default: voxels of a volume that are finite and "
        "not constant)",
    )
    one.add_argument(
        "--rois",
        nargs="+",
        default=(),
        metavar="FILE",
        help="NIfTI file of labels and .tsv file of their index and name, or one mask per region; files or patterns",
    )
    one.add_argument(
        "--noise-ceiling",
        metavar="FILE",
        help="NIfTI or .npy file or pattern, share of a trial's variance that the stimulus explains, 0 to 1 or in "
        "percent (default: from repeats)",
    )
    one.add_argument("--image-column", metavar="NAME", help="column of the images' paths in FOLDER (default: image)")
    subject = one.add_mutually_exclusive_group()
    subject.add_argument("--subject-column", metavar="NAME", help="column of the subjects (default: subject)")
    subject.add_argument("--subject", metavar="NAME", help="name of the only subject")
    for column, help in {
        "session": "of the sessions (default: session, if it is there)",
        "run": "of the runs (default: run, if it is there)",
        "stimulus": "of the stimuli's names (default: stimulus_id, if it is there, else the images' paths)",
        "repeat": "that numbers the repeats (default: repeat, if it is there, else the order of the trials)",
        "category": "of the stimuli's categories (default: category, if it is there)",
        "split": "with train, test or validation (default: split, if it is there, else it is drawn)",
    }.items():
        one.add_argument(f"--{column}-column", metavar="NAME", help=f"column {help}")
    scale = one.add_mutually_exclusive_group()
    for within in ("session", "run"):
        help = f"z-score each voxel within each {within} of a subject"
        scale.add_argument(f"--zscore-{within}s", action="store_const", const=within, dest="zscore", help=help)
    add_number(one, "--num-proc", 1, "number of processes that read")
    add_prepare_flags(one)

    one = command("images", prepare_images, "A folder of images without fMRI, to be merged with a corpus.", layouts)
    one.add_argument("folder", metavar="FOLDER", help="folder of the images")
    add_out(one)
    add_overwrite(one, "corpus")

    one = command("merge", merge, "Merge two corpora into one.")
    one.add_argument("one", metavar="A", help="folder of the first corpus, or ORG/NAME on the Hub")
    one.add_argument("other", metavar="B", help="folder of the second corpus, or ORG/NAME on the Hub")
    add_out(one)
    one.add_argument(
        "--test-fraction",
        type=float,
        metavar="X",
        help="share of the stimuli of both corpora drawn for a new test split (default: every row keeps its split)",
    )
    add_number(one, "--seed", 0, "seed that draws the new test split")
    add_overwrite(one, "corpus")

    one = command("inspect", inspect, "Check a corpus and show what is in it.")
    one.add_argument("corpus", metavar="CORPUS", help="folder of the corpus, or ORG/NAME on the Hub")
    one.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    add_leakage_flag(one)

    one = command("train", train, "Train a model on a corpus.", **training_flags("train", argv))
    one.add_argument("corpus", metavar="CORPUS", help="folder of the corpus, or ORG/NAME on the Hub")
    one.add_argument("run", metavar="RUN", help="folder for checkpoints and the trained model")
    add_training_flags(one)
    one.add_argument(
        "--streaming", action="store_true", help="read a corpus of the Hub into memory, without a copy on disk"
    )
    add_leakage_flag(one)

    one = command("evaluate", evaluate, "Evaluate a model on a split of a corpus, and compare it with baselines.")
    add_model(one)
    one.add_argument("corpus", metavar="CORPUS", help="folder of the corpus, or ORG/NAME on the Hub")
    add_out(one, "report")
    one.add_argument("--split", default="test", help="split to evaluate on (default: %(default)s)")
    add_overwrite(one, "report")
    add_leakage_flag(one)
    add_perceptual_flag(one)
    add_device(one)

    help = "Train and evaluate in cross-validation."
    one = command("crossvalidate", crossvalidate, help, **training_flags("crossvalidate", argv))
    one.add_argument("corpus", metavar="CORPUS", help="folder of the corpus, or ORG/NAME on the Hub")
    add_out(one, "report")
    add_training_flags(one)
    one.add_argument(
        "--folds",
        type=int,
        metavar="N",
        help="number of folds (default: 10, or as many as there are categories or sessions, where these are fewer)",
    )
    add_split_by(one, "hold out stimuli, or whole categories or sessions")
    one.add_argument(
        "--num-proc",
        type=int,
        metavar="N",
        help="number of folds trained at the same time (default: one per core for a small encoder on CPUs, else 1)",
    )
    add_perceptual_flag(one)

    one = command("encode", encode, "Predict the fMRI responses to images.")
    add_model(one)
    one.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    one.add_argument("--subject", required=True, metavar="NAME", help="subject whose responses are predicted")
    one.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help=".npz file for the responses (images, voxels), .nii.gz for a brain image (x, y, z, images), or .gii for "
        "the surface fsaverage, one file per hemisphere",
    )
    one.add_argument("--rois", nargs="+", metavar="NAME", help="regions whose voxels are predicted (default: all)")
    add_device(one)

    one = command("decode", decode, "Reconstruct images from fMRI responses.")
    add_model(one)
    add_responses(one)
    one.add_argument("--output", required=True, metavar="DIR", help="folder for the images")
    ways = one.add_mutually_exclusive_group()
    ways.add_argument(
        "--refine",
        type=int,
        metavar="N",
        help="gradient steps towards an image for which the model predicts the measured response (default: as many as "
        "`train` has chosen for the model; 0 for none)",
    )
    ways.add_argument(
        "--image-bank",
        metavar="FOLDER",
        help="take the mean of the 60 likeliest images of a folder instead of decoding",
    )
    add_overwrite(one, "folder of images")
    add_device(one)

    one = command("identify", identify, "Rank candidate images by the likelihood of fMRI responses.")
    add_model(one)
    add_responses(one)
    one.add_argument("--candidates", required=True, metavar="FOLDER", help="folder of images")
    add_number(one, "--top", 5, "number of images per response")
    one.add_argument("--output", required=True, metavar="FILE.csv", help="file for the ranked images")
    add_device(one)

    one = command("app", app, "Show a model in the browser: encoding, decoding, and images between two images.")
    add_model(one)
    one.add_argument(
        "--corpus", metavar="CORPUS", help="folder of a corpus, or ORG/NAME on the Hub, whose test split is shown"
    )
    one.add_argument("--port", type=int, metavar="N", help="port of the page (default: the first free one from 7860)")
    add_device(one)

    one = command("push", push, "Push a model to the Hugging Face Hub.")
    one.add_argument("run", metavar="RUN", help="model folder")
    add_repository(one)
    one.add_argument("--tag", metavar="NAME", help="tag of the commit, such as v1 (default: none)")

    one = command("push-space", push_space, "Push the app of a model to the Hugging Face Hub, as a Space.")
    add_model(one)
    add_repository(one)
    one.add_argument("--corpus", metavar="ORG/NAME", help="corpus on the Hub whose test split is shown")

    one = command("push-corpus", push_corpus, "Push a corpus to the Hugging Face Hub.")
    one.add_argument("corpus", metavar="CORPUS", help="folder of the corpus")
    add_repository(one)
    one.add_argument(
        "--license",
        help="identifier of the license, such as cc-by-4.0 (default: that in the card there, or of the corpus)",
    )
    one.add_argument("--source", metavar="SENTENCE", help="where the data come from (default: as in the card there)")
    one.add_argument(
        "--citation",
        metavar="FILE",
        help="file that says how to cite the data, such as a .bib file (default: as in the card there)",
    )
    one.add_argument(
        "--benchmark", action="store_true", help="add eval.yaml, which makes the data set a benchmark of the Hub"
    )

    one = command("export", export, "Export a model to ONNX.")
    add_model(one)
    add_out(one, "ONNX files")
    add_overwrite(one, "folder of ONNX files")
    return top


def training_flags(name: str, argv: Sequence[str]) -> dict:
    """What a parser needs for the flags of ModelArguments and TrainingArguments, if its command is asked for."""
    if list(argv[:1]) != [name]:
        return {}
    from visionflow_hf.training_flags import REFUSED, REFUSED_BY_CROSSVALIDATE, TrainingFlags

    out, refused = {"train": ("RUN", REFUSED), "crossvalidate": ("OUT", REFUSED_BY_CROSSVALIDATE)}[name]
    return {
        "parents": [TrainingFlags("--help-all" in argv, refused)],
        "usage": f"visionflow {name} CORPUS {out} [flags]",
    }


def add_training_flags(one: Parser) -> None:
    one.add_argument("--help-all", action="help", help="also show the other flags of transformers' TrainingArguments")
    one.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="file with flags, which those of the command line override"
    )


def add_responses(one: Parser) -> None:
    one.add_argument("file", metavar="FILE", help=".npz file with the array fmri (rows, voxels), or .npy file")
    one.add_argument("--subject", required=True, metavar="NAME", help="subject whose responses these are")


def add_device(one: Parser) -> None:
    one.add_argument("--device", metavar="NAME", help="such as cpu or cuda:1 (default: a GPU where there is one)")


def add_number(one: Parser, name: str, default: int | float, help: str) -> None:
    kind = seed if name == "--seed" else type(default)
    one.add_argument(name, type=kind, default=default, metavar="N", help=f"{help} (default: %(default)s)")


def seed(word: str) -> int:
    """A seed that numpy and torch take."""
    if not 0 <= int(word) < 2**32:
        raise argparse.ArgumentTypeError(f"{word} is out of range: a seed from 0 to {2**32 - 1} is expected")
    return int(word)


def add_out(one: Parser, what: str = "corpus") -> None:
    one.add_argument("out", metavar="OUT", help=f"folder for the {what}")


def add_model(one: Parser) -> None:
    one.add_argument("run", metavar="RUN", help="model folder, or ORG/NAME on the Hub")


def add_repository(one: Parser) -> None:
    one.add_argument("name", metavar="ORG/NAME", help="repository on the Hub")
    one.add_argument("--private", action="store_true", help="make a new repository private")


def add_overwrite(one: Parser, what: str) -> None:
    one.add_argument("--overwrite", action="store_true", help=f"replace an existing {what}")


def add_prepare_flags(one: Parser) -> None:
    """What every importer takes."""
    one.add_argument(
        "--test-fraction",
        type=float,
        metavar="X",
        help="share of the stimuli drawn for the test split (default: the test split of the source, or 0.1 where it "
        "has none)",
    )
    repeats = one.add_mutually_exclusive_group()
    repeats.add_argument("--keep-repeats", action="store_false", dest="average", help="one row per trial (default)")
    repeats.add_argument(
        "--average-repeats", action="store_true", dest="average", help="one row per stimulus, the mean of its trials"
    )
    one.set_defaults(average=False)
    add_split_by(one, "draw the test split by stimulus, or by whole categories or sessions")
    one.add_argument(
        "--stimuli-once",
        action="store_true",
        help="store each image once, as a file in OUT/stimuli that the rows name by its path, instead of in every row",
    )
    add_number(one, "--seed", 0, "seed that draws the test split")
    add_overwrite(one, "corpus")


def add_split_by(one: Parser, help: str) -> None:
    choices = ("stimulus", "category", "session")
    one.add_argument("--split-by", choices=choices, default="stimulus", help=f"{help} (default: %(default)s)")


def add_leakage_flag(one: Parser) -> None:
    one.add_argument(
        "--allow-leakage",
        action="store_true",
        help="continue where a stimulus is in two splits, and record it in the results",
    )


def add_perceptual_flag(one: Parser) -> None:
    one.add_argument(
        "--perceptual",
        action="store_true",
        help="also compare images by AlexNet, Inception, CLIP, EfficientNet and SwAV; needs torchvision",
    )


def simulate(out: str, **flags) -> None:
    from visionflow_hf.corpus import simulate

    simulate.simulate(out, **flags)
    print(f"wrote {out}")


def prepare_arrays(file: str, out: str, **flags) -> None:
    from visionflow_hf.corpus import arrays

    arrays.prepare_arrays(file, out, **flags)
    print(f"wrote {out}")


def prepare_table(source: str, out: str, **flags) -> None:
    from visionflow_hf.corpus.assemble import prepare
    from visionflow_hf.corpus.table import read_table

    given = {name: flags.pop(f"{name}_column") for name in COLUMNS}
    given["stimulus_id"] = flags.pop("stimulus_column")
    prepare(read_table, source, out, columns={name: column for name, column in given.items() if column}, **flags)
    print(f"wrote {out}")


def prepare_images(folder: str, out: str, **flags) -> None:
    from visionflow_hf.corpus import images

    images.prepare_images(folder, out, **flags)
    print(f"wrote {out}")


def merge(one: str, other: str, out: str, **flags) -> None:
    from visionflow_hf.corpus import merge

    merge.merge(one, other, out, **flags)
    print(f"wrote {out}")


def prepare_source(layout: str, source: str, out: str, **flags) -> None:
    from importlib import import_module

    from visionflow_hf.corpus.assemble import prepare

    name = layout.replace("-", "_")
    read = getattr(import_module(f"visionflow_hf.corpus.{name}"), f"read_{name}")
    prepare(read, source, out, **flags)
    print(f"wrote {out}")


def inspect(corpus: str, as_json: bool, allow_leakage: bool) -> None:
    import json

    from visionflow_hf.corpus.inspect import print_summary, summarise

    summary = summarise(corpus, allow_leakage)
    print(json.dumps(summary, indent=2)) if as_json else print_summary(summary)
    if summary["problems"]:
        first, *more = summary["problems"]
        raise UserError(f"corpus {corpus}: {first}" + (f" (and {len(more)} more, printed above)" if more else ""))


def evaluate(run: str, corpus: str, out: str, **flags) -> None:
    from visionflow_hf.evaluation import evaluate

    evaluate.evaluate(run, corpus, out, **flags)
    print(f"wrote {out}")


def encode(run: str, images: list[str], output: str, **flags) -> None:
    from visionflow_hf import inference

    files = inference.encode(run, images, output=output, **flags)
    print(f"wrote {' and '.join(map(str, files))}")


def decode(run: str, file: str, output: str, **flags) -> None:
    from visionflow_hf import inference

    inference.decode(run, file, output=output, **flags)
    print(f"wrote {output}")


def identify(run: str, file: str, output: str, **flags) -> None:
    from visionflow_hf import inference

    inference.identify(run, file, output=output, **flags)
    print(f"wrote {output}")


def push(run: str, name: str, private: bool, tag: str | None) -> None:
    from visionflow_hf import hub

    print(f"pushed {hub.push(run, name, private, tag)}")


def app(run: str, corpus: str | None, port: int | None, device: str | None) -> None:
    from visionflow_hf import app

    app.launch(run, corpus, device, port)


def push_space(run: str, name: str, private: bool, corpus: str | None) -> None:
    from visionflow_hf import space

    print(f"pushed {space.push_space(run, name, private, corpus)}")


def push_corpus(corpus: str, name: str, **flags) -> None:
    from visionflow_hf.corpus import to_hub

    print(f"pushed {to_hub.push_corpus(corpus, name, **flags)}")


def export(run: str, out: str, overwrite: bool) -> None:
    from visionflow_hf import export

    for name, difference in export.export(run, out, overwrite).items():
        print(f"wrote {out}/{name}: within {difference:.1e} of the model")


def train(corpus: str, run: str, streaming: bool, allow_leakage: bool, **flags) -> None:
    from visionflow_hf.training_flags import dataclasses_of

    model_args, training_args = dataclasses_of(flags)  # refuses what is wrong before the rest is imported
    from visionflow_hf.training import train

    keep_freed_memory()
    train.train(corpus, run, model_args, training_args, allow_leakage, streaming)
    if training_args.process_index == 0:
        print(f"wrote {run}")


def crossvalidate(
    corpus: str, out: str, folds: int | None, num_proc: int | None, perceptual: bool, split_by: str, **flags
) -> None:
    from visionflow_hf.training_flags import dataclasses_of

    model_args, training_args = dataclasses_of(flags)
    from visionflow_hf import crossvalidate

    keep_freed_memory()
    more = {"overwrite": training_args.overwrite, "perceptual": perceptual, "split_by": split_by}
    crossvalidate.crossvalidate(corpus, out, model_args, training_args, folds, num_proc, **more)
    print(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(main())
