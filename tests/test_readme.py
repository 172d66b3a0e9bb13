"""README.md, the docs and model cards: their Python lines run, their commands, flags, files and links exist."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import layouts
import pytest
from conftest import ROOT
from datasets import load_from_disk
from loopback_hub import LoopbackHub, environment
from PIL import Image

from visionflow_hf.cli import main

README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("benchmarks/*.md")),
]


def blocks(language: str, text: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def python_blocks(text: str) -> str:
    return "\n".join(blocks("python", text))


@pytest.fixture
def reader(hub, corpus, tmp_path):
    """Run lines in a folder that holds `image.png` and `corpus`, by somebody who reaches the Hub."""
    Image.new("L", (20, 16), 100).save(tmp_path / "image.png")
    shutil.copytree(corpus, tmp_path / "corpus")

    def run_lines(lines: str) -> None:
        env = environment(hub, tmp_path / "home")
        result = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]

    return run_lines


@pytest.fixture(scope="module")
def hub(run, tmp_path_factory):
    """A Hub that holds `run` under the name of README.md."""
    with LoopbackHub() as hub:
        command = [sys.executable, "-m", "visionflow_hf.cli", "push", str(run), "your-lab/digits"]
        subprocess.run(command, env=environment(hub, tmp_path_factory.mktemp("home")), check=True)
        yield hub


def test_the_python_lines_of_the_readme_run(reader, run, corpus, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "model").symlink_to(run)
    (tmp_path / "demo" / "corpus").symlink_to(corpus)
    reader(python_blocks(README) + "\nassert fmri.shape == (30,) and len(images) == 4 and images[0].size == (16, 16)")
    for name in ("reconstruction.png", "round_trip.png"):
        assert Image.open(tmp_path / name).size == (16, 16)


def test_the_python_lines_of_the_docs_on_the_hub_run(reader):
    page = (ROOT / "docs" / "hub.md").read_text()
    driven = "grey = torch.full_like(pixels, 0.5)\nassert response > model.predict_fmri(grey, subject)[0, voxel] + 0.1"
    reader(python_blocks(page) + f"\nassert raw.shape == (1, 30) and len(images) == 4\n{driven}")


@pytest.mark.nightly  # 100 steps and two refits
def test_the_python_lines_of_a_card_on_the_hub_run(reader, hub, tmp_path):
    card = hub.files("your-lab/digits")["README.md"].decode()
    blocks = python_blocks(card)
    assert blocks.count("your-lab/digits") == 3 and blocks.count('model.push_to_hub("tuned")') == 1
    reader(blocks.replace("if after < before:", "if True:") + "\nassert samples and len(samples) == 4")
    assert Image.open(tmp_path / "reconstruction.png").size == (16, 16)
    files = hub.files("somebody/tuned")
    assert {"modeling_visionflow.py", "fmri_statistics.safetensors"} <= set(files)
    assert 'model="somebody/tuned"' in files["README.md"].decode()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_exist(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_page_is_in_the_index():
    for folder, index in (("docs", "index.md"), ("docs/experiments", "README.md")):
        listed = (ROOT / folder / index).read_text()
        for page in (ROOT / folder).glob("*.md"):
            assert page.name == index or f"({page.name})" in listed, page


def test_the_tree_exists():
    tree = blocks("text", (ROOT / "docs" / "architecture.md").read_text())[0]
    for line in tree.splitlines():
        folder = "visionflow_hf/" if line.startswith("  ") else ""
        for name in re.findall(r"[\w./-]+", re.split(r"  +", line.strip())[0]):
            assert (ROOT / f"{folder}{name}").exists(), line


def flags_of(text: str) -> set[str]:
    """The flags in a text; train takes each with underscores and with hyphens, so they are not distinguished."""
    return {flag.replace("-", "_").replace("__", "--", 1) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_and_flags_exist(page, capsys):
    """Each `visionflow COMMAND` of a page is in the command line, and so are the flags behind it."""
    text = page.read_text()
    for script in re.findall(r"^bash (\S+)", "\n".join(blocks("sh", text)), flags=re.MULTILINE):
        assert (ROOT / script).is_file()
    lines = "\n".join(blocks("sh", text)).replace("\\\n", " ").splitlines()
    for line in [*lines, *re.findall(r"`(visionflow [^`]+)`", text)]:
        found = re.search(
            r"(?:visionflow|-m visionflow_hf\.cli) ((?:prepare )?[a-z][\w-]*)(.*)", line.partition("  #")[0]
        )
        if found is None:
            continue
        with pytest.raises(SystemExit) as ended:
            main([*found[1].split(), "--help"])
        assert ended.value.code == 0, line
        known = flags_of(capsys.readouterr().out)
        assert flags_of(found[2]) <= known, line


def test_the_flags_of_training_exist(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    known = flags_of(capsys.readouterr().out)
    named = flags_of(re.sub(r"```.*?```", "", (ROOT / "docs" / "training.md").read_text(), flags=re.DOTALL))
    assert "--linear_dim" in named and named <= known | {"--help"}


def test_the_python_lines_of_all_pages_are_python():
    for page in PAGES:
        for number, block in enumerate(blocks("python", page.read_text())):
            compile(block, f"{page} {number}", "exec")


def test_a_table_becomes_a_corpus_as_the_docs_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layouts.table(tmp_path)
    for name in ("01", "02"):
        Path(f"masks/sub-{name}_mask.nii.gz").rename(f"masks/{name}_visual.nii.gz")
        Path(f"rois/sub-{name}_regions.nii.gz").rename(f"rois/{name}_labels.nii.gz")
    Path("rois/regions.tsv").rename("rois/labels.tsv")
    page = (ROOT / "docs" / "data.md").read_text()
    command = next(line for line in "\n".join(blocks("sh", page)).splitlines() if line.startswith("visionflow prepare"))
    assert main(shlex.split(command)[1:]) == 0
    assert sum(map(len, load_from_disk("corpus").values())) == len(Path("trials.tsv").read_text().splitlines()) - 1
