"""Small corpora and a small trained model, made once a test session by the commands that users run."""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="visionflow-tests-")  # nobody's own cache
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers with two threads each would wait for one another

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import voxel_table, write_corpus

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
ROOT = Path(__file__).parent.parent
FOLDS = ("--folds", "2", "--max_steps", "10", "--disable_tqdm", "true", "--seed", "4")
REAL_DATA = Path(os.environ.get("VISIONFLOW_DATA", ROOT.parent / "shared" / "data"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What a module makes once is made by one of the processes that run tests (`--dist loadgroup`)."""
    for item in items:
        made = [definitions[-1].scope for definitions in item._fixtureinfo.name2fixturedefs.values()]
        if "module" in made:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable:
    """`once(name, make)`: the folder `name`, which `make(folder)` fills once for all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.whole").exists():
                (shared / f"{name}.once").mkdir()  # fails again in the next test where `make` has failed
                make(shared / f"{name}.once" / name)
                (shared / f"{name}.whole").touch()
        return shared / f"{name}.once" / name

    return folder


@pytest.fixture(scope="session")
def corpus(once) -> Path:
    """A simulated cortex: 2 subjects, 30 voxels each, 40 stimuli of 16 px, 3 repeats in test."""
    flags = ["--stimuli", "40", "--voxels", "30", "--image-size", "16"]

    def make(path: Path) -> None:
        assert main(["simulate", str(path), *flags]) == 0

    return once("simulated", make)


@pytest.fixture(scope="session")
def run(corpus, once) -> Path:
    """A model folder from 20 steps on `corpus`, at the full rate, with validation on a tenth of its stimuli."""
    flags = ["--max_steps", "20", "--warmup_steps", "1", "--disable_tqdm", "true", "--validation_fraction", "0.1"]

    def make(path: Path) -> None:
        assert main(["train", str(corpus), str(path), *flags]) == 0

    return once("model", make)


@pytest.fixture(scope="session")
def report(run, corpus, once) -> Path:
    """The report of `run` on the test split of `corpus`."""

    def make(path: Path) -> None:
        assert main(["evaluate", str(run), str(corpus), str(path)]) == 0

    return once("report", make)


@pytest.fixture(scope="session")
def colour_corpus(once) -> Path:
    """RGB stimuli of 18 x 24 px, two subjects with 12 and 7 voxels, one constant voxel, no repeats."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 18, 24, 3), dtype=np.uint8)

    def rows(stimuli):
        for subject, voxels in (("ann", 12), ("bob", 7)):
            for index in stimuli:
                fmri = np.r_[4.0, images[index].reshape(-1)[: voxels - 1] / 100 + 5].astype(np.float32)
                yield {
                    "image": Image.fromarray(images[index]),
                    "fmri": fmri,
                    "subject": subject,
                    "stimulus_id": f"s{index}",
                    "repeat": 0,
                }

    def make(path: Path) -> None:
        write_corpus(
            path,
            {"train": lambda: rows(range(16)), "test": lambda: rows(range(16, 20))},
            pd.concat([voxel_table("ann", 12), voxel_table("bob", 7)]),
            unit="arbitrary",
        )

    return once("colour_corpus", make)


@pytest.fixture(scope="session")
def colour_report(colour_corpus, once) -> Path:
    """The report of a model from 10 steps on `colour_corpus`."""

    def make(path: Path) -> None:
        run = path.with_name("run")
        assert main(["train", str(colour_corpus), str(run), "--max_steps", "10", "--disable_tqdm", "true"]) == 0
        assert main(["evaluate", str(run), str(colour_corpus), str(path)]) == 0

    return once("colour_report", make)


@pytest.fixture(scope="session")
def folds_report(corpus, once) -> Path:
    """The report of `crossvalidate` on `corpus`, two folds of 10 steps."""

    def make(path: Path) -> None:
        assert main(["crossvalidate", str(corpus), str(path), *FOLDS]) == 0

    return once("folds_report", make)


@pytest.fixture
def source(tmp_path, request) -> Path:
    """A source of the layout that `sources.of` names, written anew."""
    import layouts

    folder = tmp_path / "source"
    folder.mkdir()
    getattr(layouts, request.param)(folder)
    return folder


@pytest.fixture
def refused(capsys):
    """Assert that a command line gave exit code 2 and one line `error: ...` that matches a message."""

    def check(command, message: str) -> None:
        capsys.readouterr()
        assert command() == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and lines[-1] == errors[0], lines
        assert re.search(message, errors[0]), errors[0]
        assert "Traceback" not in "".join(lines)

    return check
