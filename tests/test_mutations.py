"""Sources of every layout, spoiled at random: a corpus that opens and holds nothing foreign, or one line and no file.

VISIONFLOW_MUTATIONS sets how many of each layout; a nightly run takes 300.
"""

import os
import shutil
import signal

import layouts
import numpy as np
import pytest
from datasets import load_from_disk
from mutations import LAYOUTS, SECRET, spoil, write_secrets
from sources import prepare, prepare_table, small_mosaic

from visionflow_hf.corpus.schema import open_corpus

COUNT = int(os.environ.get("VISIONFLOW_MUTATIONS", "43"))
MOST_SECONDS = 30  # a source of this size takes a fraction of one


@pytest.fixture(scope="module", params=LAYOUTS)
def sound(request, tmp_path_factory):
    """The name of a layout, and a sound source of it."""
    folder = tmp_path_factory.mktemp("sound") / "source"
    folder.mkdir()
    getattr(layouts, request.param)(folder)
    return request.param, folder


def test_spoiled_sources(sound, tmp_path, capsys, monkeypatch):
    name, folder = sound
    if name == "mosaic_small":
        small_mosaic(monkeypatch)
    write_secrets(tmp_path / "secrets")
    source, out = tmp_path / "source", tmp_path / "out"
    previous = signal.signal(signal.SIGALRM, hang)
    codes = []
    try:
        for number in range(COUNT):
            rng = np.random.default_rng([number, *name.encode()])
            shutil.copytree(folder, source)
            done = [spoil(source, tmp_path / "secrets", rng)]
            if rng.random() < 0.2 and any(file.is_file() for file in source.rglob("*")):
                done.append(spoil(source, tmp_path / "secrets", rng, again=True))
            case = f"{name} {number}: {'; '.join(done)}"
            capsys.readouterr()
            signal.alarm(MOST_SECONDS)
            try:
                if LAYOUTS[name] == "table":
                    codes.append(prepare_table(name, source, out))
                else:
                    codes.append(prepare(LAYOUTS[name], source, out))
            except BaseException as error:
                raise AssertionError(case) from error
            finally:
                signal.alarm(0)
            check(codes[-1], out, capsys.readouterr().err.splitlines(), case)
            for folder_used in (source, out):
                shutil.rmtree(folder_used, ignore_errors=True)
    finally:
        signal.signal(signal.SIGALRM, previous)
    if COUNT > 20:  # the spoiling does spoil, and not everything
        assert 0 in codes and 2 in codes


def hang(signum, frame):
    raise TimeoutError(f"more than {MOST_SECONDS} s")


def check(code, out, errors, case):
    left = sorted(path.name for path in out.parent.iterdir() if path.name not in ("source", "secrets", "out"))
    assert left == [], case
    if code != 0:
        assert code == 2 and not out.exists(), case
        assert len(errors) == 1 and errors[0].startswith("error: "), (case, errors)
        return
    open_corpus(out)
    for split in load_from_disk(str(out)).values():
        for row in split:
            assert not np.any(np.array(row["fmri"]) == SECRET), case
            assert row["image"].getpixel((0, 0)) != (1, 2, 3), case
