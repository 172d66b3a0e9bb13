"""Files from the Hub, compared with the hashes by which the Hub and its cache name them."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants

from visionflow_hf.errors import UserError


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
