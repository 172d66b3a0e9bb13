"""`visionflow push-space`: the app of a model as a Space on the Hub."""

import os
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceCardData

from visionflow_hf import modeling
from visionflow_hf.app import MODEL_FOLDER
from visionflow_hf.errors import UserError
from visionflow_hf.hub import hub_name, make_repository, model_files
from visionflow_hf.hub_errors import hub_errors, reading_corpus

PACKAGE = Path(__file__).parent
CARD = """---
{metadata}
---
# VisionFlow

Images and the fMRI responses that they evoke, both ways: encode an image, decode a response, walk between two images.
"""


def push_space(run: str | os.PathLike, name: str, private: bool = False, corpus: str | None = None) -> str:
    """Push the app as one commit, with this package, whose page it is; returns the commit's address.

    Args:
        run: model folder, which goes into the Space, or ORG/NAME on the Hub, which the Space loads.
        name: ORG/NAME of the Space; it is made where there is none.
        private: make a new Space private.
        corpus: ORG/NAME on the Hub; its test split is shown.

    Raises:
        UserError: no whole model folder, a corpus that is not on the Hub, a name that is none, no right to write
            there, or no connection.
    """
    if corpus is not None and not hub_name(corpus):
        raise UserError(f"--corpus {corpus} is no ORG/NAME on the Hub: push it first with `visionflow push-corpus`")
    model = hub_name(run)
    files = {} if model else {f"{MODEL_FOLDER}/{place}": file for place, file in model_files(run).items()}
    files |= {"app.py": PACKAGE / "app.py"} | package_files()
    card = CARD.format(
        metadata=SpaceCardData(
            title="VisionFlow",
            sdk="gradio",
            app_file="app.py",
            license="apache-2.0",
            models=[model] if model else None,
            datasets=[corpus] if corpus else None,
        ).to_yaml()
    )
    texts = {"README.md": card, "requirements.txt": "\n".join(requirements()) + "\n"}
    api = HfApi()
    if model:
        with hub_errors(model):
            api.model_info(model)  # else the Space would show an error
    if corpus:
        with reading_corpus(corpus):
            api.dataset_info(corpus)
    with hub_errors(name):
        name = make_repository(api, name, private, repo_type="space", space_sdk="gradio")
        operations = [CommitOperationAdd(place, file) for place, file in files.items()]
        operations += [CommitOperationAdd(place, text.encode()) for place, text in texts.items()]
        before = {file for file in api.list_repo_files(name, repo_type="space") if file.startswith(f"{MODEL_FOLDER}/")}
        operations += [CommitOperationDelete(file) for file in sorted(before - set(files))]  # of an earlier model
        return api.create_commit(
            name, operations, repo_type="space", commit_message=f"VisionFlow app {name}"
        ).commit_url


def package_files() -> dict[str, Path]:
    """The Python files of this package by their place in it; those of `modeling` lie elsewhere in a checkout."""
    code = Path(modeling.__file__).parent
    files = {file.relative_to(PACKAGE.parent): file for file in PACKAGE.rglob("*.py")}
    files |= {Path(PACKAGE.name, "modeling", file.name): file for file in code.glob("*.py")}
    return {place.as_posix(): file for place, file in sorted(files.items())}


def requirements() -> list[str]:
    """What the package and its app need."""
    lines = [line.partition("; extra == ") for line in requires("visionflow-hf")]
    return [needed for needed, _, extra in lines if extra.strip("'\"") in ("", "app")]
