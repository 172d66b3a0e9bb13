"""The site builds without a warning, and the notebook runs from top to bottom in five minutes."""

import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT

MINUTES = 5  # on two idle cores


def test_every_page_is_on_the_site(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").glob("**/*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("")
        place = place.parent if place.name in ("index", "README") else place
        assert (tmp_path / "site" / place / "index.html").is_file(), page
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("predict_fmri", "reconstruct_image", "pixel_correlation", "open_corpus"):
        assert name in api, name
    assert "../benchmarks/quality.md" not in (tmp_path / "site" / "index.html").read_text()


def test_the_notebook_is_saved_without_output():
    notebook = json.loads((ROOT / "notebooks" / "visionflow_tour.ipynb").read_text())
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")


@pytest.mark.nightly
def test_the_notebook_runs_in_five_minutes(monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "visionflow_tour.ipynb", as_version=4)
    begun = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=60 * MINUTES, kernel_name="python3").execute()
    assert time.monotonic() - begun < 60 * MINUTES
    shown = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(shown) >= 5
