"""transformers' own test classes, which its wheel does not hold, from the source archive of the installed version."""

import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import transformers

PACKAGE = "transformers_tests"  # they call themselves `tests`, as ours do
OFFLINE = "NewConnectionError|ConnectTimeout|ConnectionError|name resolution|Network is unreachable|Max retries"
# Parts of their tests that the archive leaves out and that concern other models than ours.
LEFT_OUT = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'output_attentions': True,\n"
        "    'chunk_size_feed_forward': 5, 'architectures': ['BertModel'], 'id2label': {0: 'label'},\n"
        "    'label2id': {'label': '0'}, 'problem_type': 'regression', 'dtype': 'float16'}\n"
    ),
}


def import_upstream(module: str):
    """A module of transformers' tests, such as `test_modeling_common`; skips the caller where nothing can be fetched.

    The archive is unpacked once into the virtual environment, under the version that is installed there.
    """
    home = Path(sys.prefix) / f"transformers-{transformers.__version__}-tests"
    if not home.is_dir():
        fetch(home)
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
    return importlib.import_module(f"{PACKAGE}.{module}")


def fetch(home: Path) -> None:
    """Unpack the tests of the installed version into the package `home / PACKAGE`, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", folder]
        command += ["--no-build-isolation", "--retries", "1", f"transformers=={transformers.__version__}"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            if re.search(OFFLINE, result.stderr):
                pytest.skip(
                    "the package registry, which holds transformers' tests, cannot be reached", allow_module_level=True
                )
            raise RuntimeError(result.stderr)
        shutil.unpack_archive(next(Path(folder).glob("*.tar.gz")), folder)
        package = Path(folder) / "home" / PACKAGE
        shutil.copytree(next(Path(folder).glob("transformers-*/tests")), package)
        (package / "__init__.py").touch()
        for name, text in LEFT_OUT.items():
            (package / name).parent.mkdir(exist_ok=True)
            ((package / name).parent / "__init__.py").touch()
            (package / name).write_text(text)
        try:
            package.parent.rename(home)
        except OSError:
            if not home.is_dir():  # another worker was faster
                raise
