"""What README.md shows runs as it stands, and the tree that it draws exists."""

import os
import re
import subprocess
import sys

from conftest import ROOT
from PIL import Image

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_lines_run(run, corpus, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "model").symlink_to(run)
    (tmp_path / "demo" / "corpus").symlink_to(corpus)
    assert len(blocks("python")) == 1
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for name in ("reconstruction.png", "round_trip.png"):
        assert Image.open(tmp_path / name).size == (16, 16)


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
