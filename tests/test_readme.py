"""What README.md and a card show runs as it stands, and the tree that README.md draws exists."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from loopback_hub import LoopbackHub, environment
from PIL import Image

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def python_blocks(text: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))


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


def test_the_python_lines_of_a_card_on_the_hub_run(reader, hub, tmp_path):
    card = hub.files("your-lab/digits")["README.md"].decode()
    blocks = python_blocks(card)
    assert blocks.count("your-lab/digits") == 3 and blocks.count("trainer.push_to_hub()") == 1
    reader(blocks + "\nassert samples and len(samples) == 4")
    assert Image.open(tmp_path / "reconstruction.png").size == (16, 16)
    assert "modeling_visionflow.py" in hub.files("somebody/tuned")


def test_the_tree_and_the_links_exist():
    for line in blocks("text")[0].splitlines():
        name = line.split()[0]
        folder = "visionflow_hf/" if line.startswith("  ") else ""
        assert (ROOT / f"{folder}{name}").exists(), line
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_commands_exist():
    from visionflow_hf.cli import parser

    help_text = parser().format_help()
    for command in set(re.findall(r"^visionflow (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE)):
        assert command in help_text
    for script in re.findall(r"^bash (\S+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert (ROOT / script).is_file()
