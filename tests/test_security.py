"""What a stranger trusts: remote code that reads no file and opens no connection by itself, and no pickles."""

import ast
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import AutoModel, ViTConfig, ViTModel

from visionflow_hf.cli import main

REMOTE = sorted(path for path in (ROOT / "modeling").glob("*.py") if path.name != "__init__.py")
LIBRARIES = {"torch", "numpy", "PIL", "transformers"}
STANDARD = {
    "base64",
    "collections",
    "contextlib",
    "copy",
    "dataclasses",
    "functools",
    "hashlib",
    "inspect",
    "itertools",
    "json",
    "math",
    "re",
    "types",
}
READ_BY = {  # modules that open files or addresses, and the files that may import them
    "io": {"pipeline_visionflow.py", "processing_visionflow.py", "handler.py", "card.py"},
    "os": {
        "pipeline_visionflow.py",
        "processing_visionflow.py",
        "handler.py",
        "card.py",
        "voxel_table.py",
        "optional_files.py",
    },
    "urllib": {"pipeline_visionflow.py"},
    "safetensors": {"processing_visionflow.py"},
    "huggingface_hub": {"card.py", "optional_files.py"},
    "yaml": {"card.py"},
}
OPTIONAL = {"diffusers", "pyarrow"}  # only inside a function, in a `try` that catches ImportError
FORBIDDEN = {
    *("open", "exec", "eval", "compile", "__import__", "import_module", "breakpoint", "input", "globals", "vars"),
    *("load", "loads", "loadtxt", "fromfile", "memmap", "urlopen", "urlretrieve", "hf_hub_download", "cached_file"),
    *("snapshot_download", "load_image", "from_pretrained", "save_pretrained", "torch_load", "system", "popen", "run"),
    *("Popen", "connect", "socket", "request", "save", "tofile", "write", "write_text", "write_bytes", "read_text"),
    *("read_bytes", "unlink", "rename", "mkdir", "makedirs", "load_url", "load_state_dict_from_url", "setattr"),
}
# What the user asks for in so many words: an image by path or address, a model by name, a folder to save in.
ALLOWED = {
    ("pipeline_visionflow.py", "open_image", "urlopen"),
    ("pipeline_visionflow.py", "open_image", "Image.open"),
    ("pipeline_visionflow.py", "open_image", "image.load"),  # its pixels
    ("pipeline_visionflow.py", "save_pretrained", "self.model.save_pretrained"),
    ("pipeline_visionflow.py", "save_pretrained", "self.processor.save_pretrained"),
    ("processing_visionflow.py", "save_pretrained", "super().save_pretrained"),
    ("processing_visionflow.py", "get_processor_dict", "cached_file"),  # fmri_statistics.safetensors beside the config
    ("processing_visionflow.py", "_size_of", "Image.open"),  # of a row of the dataset that is given
    ("handler.py", "write_requirements", "open"),  # requirements.txt in the folder of `save_pretrained`
    ("handler.py", "write_requirements", "file.write"),
    ("handler.py", "image_of", "Image.open"),  # of bytes in a request
    ("handler.py", "image_of", "image.load"),
    ("handler.py", "png", "image.save"),  # to bytes
    ("card.py", "card_of_origin", "open"),
    ("card.py", "card_in", "open"),
    ("card.py", "weights_hash", "open"),  # model.safetensors beside it
    ("card.py", "write_card", "open"),  # README.md in the folder of `save_pretrained`
    ("card.py", "write_card", "opened.write"),
    ("optional_files.py", "optional_file", "cached_file"),  # README.md and voxels.parquet beside the weights
    ("voxel_table.py", "volume", "json.loads"),  # of that file's metadata
    ("modeling_visionflow.py", "_write_beside", "self.voxels.write"),  # voxels.parquet in the folder to save in
    ("modeling_visionflow.py", "from_pretrained", "cached_file"),  # config.json beside the weights, for its commit
    ("modeling_visionflow.py", "from_pretrained", "super().from_pretrained"),
    ("modeling_visionflow.py", "save_pretrained", "super().save_pretrained"),
    ("modeling_visionflow.py", "_own_processor", "VisionFlowProcessor.from_pretrained"),  # of where the model came from
    ("modeling_visionflow.py", "pipeline", "pipelines[task]"),
    ("configuration_visionflow.py", "__post_init__", "setattr"),  # on the config itself, names written out beside it
}


def findings(name: str, source: str) -> list[str]:
    """What a remote file imports or calls beyond what it may."""
    found = []

    def visit(node, function, optional):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function, optional = node.name, False
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module]
        allowed = LIBRARIES | STANDARD | (OPTIONAL if function and optional else set())
        for module in modules:
            top = module.split(".")[0]
            if top not in allowed and name not in READ_BY.get(top, ()):
                found.append(f"imports {module}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.split(".")[-1] in FORBIDDEN and (name, function, called) not in ALLOWED:
                found.append(f"calls {called} in {function}")
            elif not isinstance(node.func, (ast.Name, ast.Attribute)) and (name, function, called) not in ALLOWED:
                found.append(f"calls what {called} gives in {function}")
        for field, value in ast.iter_fields(node):
            guarded = isinstance(node, ast.Try) and field == "body" and "ImportError" in ast.unparse(node.handlers)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, function, optional or guarded)

    visit(ast.parse(source), None, False)
    return found


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.name)
def test_remote_code_imports_and_calls_nothing_else(path):
    assert findings(path.name, path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import requests",
        "import os.path",
        "from subprocess import run",
        "from diffusers import AutoencoderKL",
        "try:\n    import diffusers\nexcept ImportError:\n    pass",
        "def f():\n    import diffusers",
        "def f():\n    return open('a')",
        "def f():\n    np.load('a')",
        "def f():\n    torch.hub.load('a', 'b')",
        "def f():\n    Image.open('a')",
        "def f():\n    AutoModel.from_pretrained('a')",
        "def f():\n    load_image('http://a')",
        "def f():\n    getattr(torch, 'lo' + 'ad')('a')",
        "def f():\n    {}['open']('a')",
    ],
)
def test_the_reader_finds_what_it_is_to_find(source):
    assert len(findings("some_file.py", source)) == 1


WATCHED = """
import sys
import numpy as np
from transformers import AutoModel, AutoProcessor

path, data = sys.argv[1:]
with np.load(data) as file:
    image, fmri = file["image"], file["fmri"]
model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
encode, decode = model.pipeline("image-to-fmri", processor), model.pipeline("fmri-to-image", processor)
files = {sys.modules[name].__file__ for name in sys.modules if name.startswith("transformers_modules.")}

def use():
    batch = processor(images=image, fmri=fmri, subject="subj01")
    model(**batch)
    model.train()(**batch).loss.backward()
    model.eval()
    predicted = model.predict_fmri(**processor(images=image, subject="subj01"))
    model.reconstruct_image(**processor(fmri=predicted, subject="subj01"))
    decode(encode(image, subject="subj01", num_samples=2)[0], subject="subj01")

use()  # once, so that Python and torch have loaded what they load on first use
events = []

def watch(event, arguments):
    if event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "exec", "compile"):
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename not in files:
            frame = frame.f_back
        events.append((event, str(arguments[0])[:80], frame and frame.f_code.co_name))

sys.addaudithook(watch)
use()
found = [event for event in events if event[2]]
open(data).close()
assert events[-1][0] == "open", "the watch does not watch"
print("watched", len(files), "files:", found)
"""


def test_while_it_runs_it_opens_nothing(run, tmp_path):
    data = tmp_path / "data.npz"
    np.savez(data, image=np.full((16, 16), 100, np.uint8), fmri=np.ones(30, np.float32))
    command = [sys.executable, "-c", WATCHED, str(run), str(data)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip().endswith("files: []"), result.stdout


@pytest.fixture
def pickled(run, tmp_path):
    """The model folder `run` with its weights in a pickle instead."""
    folder = tmp_path / "pickled"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*.safetensors", "checkpoint-*"))
    model = AutoModel.from_pretrained(run, trust_remote_code=True)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_a_pickled_checkpoint_is_refused(pickled, corpus, tmp_path, refused):
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModel.from_pretrained(pickled, trust_remote_code=True)
    with pytest.raises(ValueError, match="safetensors only, since a pickle can run code"):
        AutoModel.from_pretrained(pickled, trust_remote_code=True, use_safetensors=False)
    message = r"no model at .*pickled: .*only safetensors are read, since a pickle can run code"
    refused(lambda: main(["evaluate", str(pickled), str(corpus), str(tmp_path / "report")]), message)
    refused(lambda: main(["push", str(pickled), "lab/pickled"]), "is no model folder")


def test_a_pickled_encoder_is_refused(colour_corpus, tmp_path, refused):
    encoder = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    encoder.config.save_pretrained(tmp_path / "encoder")
    torch.save(encoder.state_dict(), tmp_path / "encoder" / "pytorch_model.bin")
    words = ["train", str(colour_corpus), str(tmp_path / "run"), "--encoder", str(tmp_path / "encoder")]
    refused(lambda: main(words), r"no encoder .*safetensors")
    assert not (tmp_path / "run").exists()
