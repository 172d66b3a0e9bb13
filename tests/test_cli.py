"""The command line as a whole: every command explains itself."""

import argparse
from collections.abc import Iterator

import pytest

from visionflow_hf.cli import main, parser


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
