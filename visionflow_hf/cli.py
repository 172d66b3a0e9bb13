"""The command line `visionflow`: the flags of every command, and errors as one line with exit code 2.

A command imports what it needs when it runs, so that help and importers need not wait for torch.
"""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from threading import current_thread, main_thread

from visionflow_hf.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line."""

    def error(self, message: str):
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = take_debug_flag(argv)
    if not debug:
        warnings.filterwarnings("ignore")
    logging.basicConfig(format="%(message)s")
    first = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` has started
    logging.getLogger("visionflow_hf").setLevel(logging.INFO if first else logging.ERROR)
    if not first:
        os.environ["TQDM_DISABLE"] = "1"
    try:
        if argv[:1] != ["train"] and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError("only `train` shares its work among several processes: run this without a launcher")
        if argv[:1] == ["train"]:
            if current_thread() is main_thread():  # the only one that may say so
                signal.signal(signal.SIGTERM, signal.default_int_handler)  # a launcher's end, too, lets it clean up
            train(argv[1:])
        elif argv[:1] == ["crossvalidate"]:
            crossvalidate(argv[1:])
        else:
            args = vars(parser().parse_args(argv))
            args.pop("command")
            args.pop("layout", None)
            args.pop("run_command")(**args)
    except UserError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def take_debug_flag(argv: list[str]) -> bool:
    """Remove a bare `--debug`, which asks for tracebacks; TrainingArguments has a `--debug` too, with a value."""
    for place, word in enumerate(argv):
        if word == "--debug" and argv[place + 1 : place + 2] not in (["underflow_overflow"], ["tpu_metrics_debug"]):
            del argv[place]
            return True
    return False


def parser() -> Parser:
    """Everything but `train` and `crossvalidate`, whose flags are those of TrainingArguments."""
    top = Parser(prog="visionflow", description="Reads and writes the visual cortex.", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run_command, help: str, group=commands) -> Parser:
        added = group.add_parser(name, help=help, description=help, allow_abbrev=False)
        added.set_defaults(run_command=run_command)
        return added

    one = command("simulate", simulate, "Write a corpus of a synthetic cortex whose noise ceiling is known.")
    one.add_argument("out", metavar="OUT")
    one.add_argument("--stimuli", type=int, default=600, help="distinct images, train and test together (600)")
    one.add_argument("--subjects", type=int, default=2, help="(2)")
    one.add_argument("--voxels", type=int, default=400, help="voxels of each subject (400)")
    one.add_argument("--image-size", type=int, default=32, help="height and width in px (32)")
    one.add_argument("--repeats", type=int, default=1, help="trials of a train stimulus (1)")
    one.add_argument("--test-repeats", type=int, default=3, help="trials of a test stimulus (3)")
    one.add_argument("--test-fraction", type=float, default=0.1, help="share of the stimuli in test (0.1)")
    one.add_argument("--seed", type=int, default=0, help="(0)")
    one.add_argument("--overwrite", action="store_true", help="replace an existing corpus")

    prepare = commands.add_parser("prepare", help="Import a lab's files as a corpus.", allow_abbrev=False)
    layouts = prepare.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    one = command("arrays", prepare_arrays, "Images and responses in a .mat, .npz or .h5 file.", layouts)
    one.add_argument("file", metavar="FILE")
    one.add_argument("out", metavar="OUT")
    one.add_argument(
        "--images", metavar="KEY", help="images, the first axis counts trials; left out, the fMRI stands alone"
    )
    one.add_argument("--fmri", required=True, metavar="KEY", help="responses (trials, voxels)")
    one.add_argument("--test-images", metavar="KEY", help="the same of the test split ...")
    one.add_argument("--test-fmri", metavar="KEY", help="... which is drawn by stimulus where these are not given")
    one.add_argument("--image-shape", type=int, nargs="+", metavar="N", help="HEIGHT WIDTH [CHANNELS] of flat rows")
    one.add_argument("--column-major", action="store_true", help="flat rows run down the columns first (MATLAB)")
    one.add_argument("--stimulus-ids", metavar="KEY", help="a name or number a trial; default: a hash of its pixels")
    one.add_argument("--test-stimulus-ids", metavar="KEY", help="the same of the test split")
    one.add_argument("--subject", default="subj01", metavar="NAME", help="whose responses these are (subj01)")
    add_prepare_flags(one, 0.1)
    for layout, help in {
        "algonauts23": "Algonauts 2023: the challenge's folder, or the one that holds processed/.",
        "nsd": "Natural Scenes Dataset: the folder with nsddata, nsddata_betas and nsddata_stimuli.",
        "god": "Generic Object Decoding: a folder with one bdpy .h5 a subject.",
        "bold5000": "BOLD5000: the folder with the ROI files, the lists of images and the images.",
        "things": "THINGS-fMRI: the folder with betas_csv and the images.",
    }.items():
        one = command(layout, partial(prepare_source, layout), help, layouts)
        one.add_argument("source", metavar="SOURCE")
        one.add_argument("out", metavar="OUT")
        one.add_argument("--subjects", nargs="+", metavar="NAME", help="default: all that are there")
        if layout == "nsd":
            one.add_argument("--zscore-sessions", action="store_true", help="z-score each voxel within each session")
        if layout in ("god", "bold5000", "things"):
            one.add_argument("--images-folder", metavar="FOLDER", help="where the images lie (somewhere in SOURCE)")
        one.add_argument("--num-proc", type=int, default=1, metavar="N", help="processes that read side by side (1)")
        add_prepare_flags(one, None)

    one = command("images", prepare_images, "A folder of pictures without fMRI, to be merged with pairs.", layouts)
    one.add_argument("folder", metavar="FOLDER")
    one.add_argument("out", metavar="OUT")
    one.add_argument("--overwrite", action="store_true", help="replace an existing corpus")

    one = command("merge", merge, "Write two corpora as one.")
    one.add_argument("one", metavar="A")
    one.add_argument("other", metavar="B")
    one.add_argument("out", metavar="OUT")
    one.add_argument("--overwrite", action="store_true", help="replace an existing corpus")

    one = command("inspect", inspect, "Tell what is in a corpus.")
    one.add_argument("corpus", metavar="CORPUS")
    one.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    add_leakage_flag(one)

    commands.add_parser("train", help="Train a model: visionflow train CORPUS RUN [flags].")
    one = command("evaluate", evaluate, "Figures, pictures and baselines of a model on a split.")
    one.add_argument("run", metavar="RUN", help="model folder, or a name on the Hub")
    one.add_argument("corpus", metavar="CORPUS")
    one.add_argument("out", metavar="OUT")
    one.add_argument("--split", default="test", help="(test)")
    one.add_argument("--overwrite", action="store_true", help="replace an existing report")
    add_leakage_flag(one)
    add_perceptual_flag(one)
    commands.add_parser(
        "crossvalidate", help="Train and evaluate in folds: visionflow crossvalidate CORPUS OUT [flags]."
    )

    one = command("encode", encode, "Predict the fMRI that images evoke.")
    one.add_argument("run", metavar="RUN")
    one.add_argument("images", nargs="+", metavar="IMAGE")
    one.add_argument("--subject", required=True)
    one.add_argument("--output", required=True, metavar="FILE.npz")
    one = command("decode", decode, "Reconstruct images from the array fmri (rows, voxels) of an .npz file.")
    one.add_argument("run", metavar="RUN")
    one.add_argument("file", metavar="FILE.npz")
    one.add_argument("--subject", required=True)
    one.add_argument("--output", required=True, metavar="DIR")
    one.add_argument("--overwrite", action="store_true", help="replace an existing folder of reconstructions")

    one = command("push", push, "Push a model folder to the Hub.")
    one.add_argument("run", metavar="RUN")
    one.add_argument("name", metavar="ORG/NAME")
    one.add_argument("--private", action="store_true", help="make a new repository private")

    one = command("push-corpus", push_corpus, "Push a corpus to the Hub.")
    one.add_argument("corpus", metavar="CORPUS")
    one.add_argument("name", metavar="ORG/NAME")
    one.add_argument("--private", action="store_true", help="make a new repository private")
    one.add_argument("--license", default="unknown", help="an identifier of the Hub, such as cc-by-4.0 (unknown)")
    one.add_argument("--source", metavar="SENTENCE", help="where the data come from, for the card")
    one.add_argument("--citation", metavar="FILE", help="how to cite them, such as a .bib file, for the card")

    one = command("export", export, "Write both directions as ONNX files.")
    one.add_argument("run", metavar="RUN", help="model folder, or a name on the Hub")
    one.add_argument("out", metavar="OUT")
    one.add_argument("--overwrite", action="store_true", help="replace an existing folder of ONNX files")
    return top


def add_prepare_flags(one: Parser, test_fraction: float | None) -> None:
    """What every importer takes."""
    default = "the source's own test split, 0.1 where it has none" if test_fraction is None else f"{test_fraction:g}"
    one.add_argument(
        "--test-fraction", type=float, default=test_fraction, help=f"share of the stimuli drawn as test ({default})"
    )
    repeats = one.add_mutually_exclusive_group()
    repeats.add_argument("--keep-repeats", action="store_false", dest="average", help="a row a trial (default)")
    repeats.add_argument("--average-repeats", action="store_true", dest="average", help="a row a stimulus, their mean")
    one.set_defaults(average=False)
    one.add_argument("--seed", type=int, default=0, help="draws the test split (0)")
    one.add_argument("--overwrite", action="store_true", help="replace an existing corpus")


def add_leakage_flag(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--allow-leakage", action="store_true", help="go on where a stimulus is in two splits, and record it"
    )


def add_perceptual_flag(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--perceptual", action="store_true", help="also by AlexNet, Inception, CLIP, EfficientNet and SwAV"
    )


def simulate(out: str, **flags) -> None:
    from visionflow_hf.corpus import simulate

    simulate.simulate(out, **flags)
    print(f"wrote {out}")


def prepare_arrays(file: str, out: str, **flags) -> None:
    from visionflow_hf.corpus import arrays

    arrays.prepare_arrays(file, out, **flags)
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

    read = getattr(import_module(f"visionflow_hf.corpus.{layout}"), f"read_{layout}")
    prepare(read, source, out, **flags)
    print(f"wrote {out}")


def inspect(corpus: str, as_json: bool, allow_leakage: bool) -> None:
    import json

    from visionflow_hf.corpus.inspect import print_summary, summarise

    summary = summarise(corpus, allow_leakage)
    print(json.dumps(summary, indent=2)) if as_json else print_summary(summary)
    if summary["problems"]:
        first, *more = summary["problems"]
        raise UserError(f"corpus {corpus}: {first}" + (f" (and {len(more)} more, see the page)" if more else ""))


def evaluate(run: str, corpus: str, out: str, **flags) -> None:
    from visionflow_hf.evaluation import evaluate

    evaluate.evaluate(run, corpus, out, **flags)
    print(f"wrote {out}")


def encode(run: str, images: list[str], subject: str, output: str) -> None:
    from visionflow_hf import inference

    inference.encode(run, images, subject, output)
    print(f"wrote {output}")


def decode(run: str, file: str, subject: str, output: str, overwrite: bool) -> None:
    from visionflow_hf import inference

    inference.decode(run, file, subject, output, overwrite)
    print(f"wrote {output}")


def push(run: str, name: str, private: bool) -> None:
    from visionflow_hf import hub

    print(f"pushed {hub.push(run, name, private)}")


def push_corpus(corpus: str, name: str, **flags) -> None:
    from visionflow_hf.corpus import to_hub

    print(f"pushed {to_hub.push_corpus(corpus, name, **flags)}")


def export(run: str, out: str, overwrite: bool) -> None:
    from visionflow_hf import export

    for name, difference in export.export(run, out, overwrite).items():
        print(f"wrote {out}/{name}: within {difference:.1e} of the model")


def train(argv: list[str]) -> None:
    from visionflow_hf.training import train
    from visionflow_hf.training.arguments import TrainingParser

    flags = TrainingParser(prog="visionflow train", description="Train a model on a corpus.")
    flags.add_argument("corpus", metavar="CORPUS")
    flags.add_argument("run", metavar="RUN", help="folder for checkpoints and, at the end, the model")
    flags.add_argument(
        "--streaming", action="store_true", help="read a corpus of the Hub into memory, with no copy on disk"
    )
    add_leakage_flag(flags)
    model_args, training_args, rest = flags.parse(argv)
    train.train(rest.corpus, rest.run, model_args, training_args, rest.allow_leakage, rest.streaming)
    if training_args.process_index == 0:
        print(f"wrote {rest.run}")


def crossvalidate(argv: list[str]) -> None:
    from visionflow_hf import crossvalidate
    from visionflow_hf.training.arguments import TrainingParser

    flags = TrainingParser(prog="visionflow crossvalidate", description="Train and evaluate in folds by stimulus.")
    flags.add_argument("corpus", metavar="CORPUS")
    flags.add_argument("out", metavar="OUT")
    flags.add_argument("--folds", type=int, default=10, help="(10)")
    flags.add_argument(
        "--num-proc", type=int, metavar="N", help="folds trained side by side (one a core if the encoder is small)"
    )
    add_perceptual_flag(flags)
    model_args, training_args, rest = flags.parse(argv)
    more = {"perceptual": rest.perceptual, "overwrite": training_args.overwrite}
    crossvalidate.crossvalidate(rest.corpus, rest.out, model_args, training_args, rest.folds, rest.num_proc, **more)
    print(f"wrote {rest.out}")


if __name__ == "__main__":
    sys.exit(main())
