"""The command line as a whole: every command explains itself, and how commands end."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from PIL import Image

from visionflow_hf import __version__, cli
from visionflow_hf.cli import main, parser
from visionflow_hf.errors import UserError


def words_of(commands: argparse.ArgumentParser, before: tuple = ()) -> Iterator[tuple]:
    """The words of every command, and of those that have commands of their own."""
    yield before
    for action in commands._actions:
        for name, one in action.choices.items() if isinstance(action, argparse._SubParsersAction) else ():
            yield from words_of(one, (*before, name))


@pytest.mark.parametrize("words", list(words_of(parser())), ids=" ".join)
def test_every_command_explains_itself(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert f"usage: visionflow {' '.join(words)}".strip() in capsys.readouterr().out


@pytest.mark.parametrize("words", list(words_of(parser())), ids=" ".join)
def test_every_flag_is_explained(words):
    one = parser(words)
    for word in words:
        (subcommands,) = [action for action in one._actions if isinstance(action, argparse._SubParsersAction)]
        one = subcommands.choices[word]
    for action in one._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help and not action.help.startswith("("), f"{action.option_strings or action.dest}"


@pytest.mark.parametrize("seed", ["-1", "4294967296", "x"])
def test_a_seed_that_numpy_does_not_take_is_refused(seed, tmp_path, refused):
    refused(lambda: main(["simulate", str(tmp_path / "out"), "--seed", seed]), "argument --seed")


def test_a_default_is_named_as_such(capsys):
    with pytest.raises(SystemExit):
        main(["simulate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--subjects N number of simulated subjects (default: 2)" in text


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"visionflow {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--version",
        "prepare nsd --help",
        "simulate corpus --stimuli 6 --voxels 3 --image-size 8",
        "prepare images pictures corpus",
    ],
)
def test_what_needs_no_model_does_not_wait_for_torch(words, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    code = "import sys; from visionflow_hf.cli import main\n"
    code += "try: ended = main(sys.argv[1:])\nexcept SystemExit as end: ended = end.code\nassert not ended, ended\n"
    code += "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("command", ["train", "simulate"])
def test_an_unknown_flag_names_the_help_of_its_command(command, refused):
    refused(
        lambda: main([command, "a", "b", "--sedd", "1"]),
        f"unrecognized arguments: .*--sedd 1 .*see `visionflow {command} --help`",
    )


def raising(error):
    def command(**flags):
        if isinstance(error, signal.Signals):
            signal.raise_signal(error)
        raise error

    return command


@pytest.mark.parametrize(
    "error, code, message",
    [
        (signal.SIGTERM, 143, "error: terminated\n"),
        (signal.SIGINT, 130, "error: interrupted\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (UserError("no\n corpus"), 2, "error: no corpus\n"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "train"])
def test_how_a_command_ends(command, error, code, message, monkeypatch, capsys):
    monkeypatch.setattr(cli, command, raising(error))
    before = signal.getsignal(signal.SIGTERM)
    assert main([command, "corpus", *(["run"] if command == "train" else [])]) == code
    assert capsys.readouterr().err == message
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("words", ["inspect corpus", "train corpus run", "crossvalidate corpus out", "push run a/b"])
def test_debug_shows_the_traceback(words, monkeypatch):
    command = words.split()[0]
    monkeypatch.setattr(cli, command, raising(UserError("no corpus")))
    assert main(words.split()) == 2
    with pytest.raises(UserError, match="no corpus"):
        main([*words.split(), "--debug"])


def test_an_unexpected_error_stays_a_traceback(monkeypatch):
    monkeypatch.setattr(cli, "inspect", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "corpus"])
