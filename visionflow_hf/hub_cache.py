"""Files from the Hub, compared with the hashes by which the Hub and its cache name them."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError

from visionflow_hf.errors import UserError
from visionflow_hf.hub_errors import cause_of, status_of


@contextmanager
def whole_files(name: str, kind: str = "model") -> Iterator[None]:
    """Raise `UserError` where a file of the repository `name` that came within the block is not what the Hub has.

    Such a file leaves the cache, so that the next call fetches it anew.
    """
    began = time.time()
    try:
        yield
    finally:
        blobs = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "blobs"  # none for a folder
        files = [file for file in blobs.glob("*") if not file.suffix]  # others are still on their way
        damaged = [file for file in files if file.stat().st_mtime >= began - 1 and is_damaged(file)]
        for file in damaged:
            file.unlink()
        if damaged:
            raise UserError(f"{len(damaged)} of the files of {name} came damaged from the Hub: try again")


def file_of(run: str | os.PathLike, file: str) -> Path | None:
    """A file that may lie in a model folder, or beside the model ORG/NAME on the Hub; None where there is none.

    Raises:
        UserError: the Hub does not answer, or refuses the file. Offline, what is not in the cache counts as absent.
    """
    name = str(run)
    if os.path.exists(name) or name.count("/") != 1:
        return Path(run, file) if Path(run, file).is_file() else None
    from visionflow_hf.modeling.optional_files import optional_file  # it waits for torch

    try:
        with whole_files(name):
            found = optional_file(name, file)
    except (OSError, HTTPError) as error:
        cause = error
        while cause.__cause__ is not None and status_of(cause) is None:
            cause = cause.__cause__
        raise UserError(f"no model at {name}: {cause_of(name, cause)}") from error
    return found and Path(found)


def is_damaged(blob: Path) -> bool:
    """Whether the content of a file in the cache is not that of its name: a SHA-256, or Git's SHA-1 of a small file."""
    if len(blob.name) not in (40, 64):
        return False
    git = f"blob {blob.stat().st_size}\0".encode()
    found = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(git)
    with open(blob, "rb") as content:
        while block := content.read(2**20):
            found.update(block)
    return found.hexdigest() != blob.name
