"""Output folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from visionflow_hf.errors import UserError


def refuse_existing(path: str | os.PathLike, overwrite: bool, marker: str) -> None:
    """Raise `UserError` where writing to `path` would destroy something the user did not offer.

    An absent or empty folder is free. A full one needs `overwrite`, and must hold `marker`, the file that the
    command itself leaves there: `--overwrite` with a mistyped path must not delete a home folder.
    """
    path = Path(path)
    if path.is_file() or path.is_symlink():
        raise UserError(f"{path} is not a folder: give the name of a folder to write")
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{path} exists and is not empty: pass --overwrite to replace it, or give another name")
    if not (path / marker).exists():
        raise UserError(f"{path} holds no {marker}, so this command did not write it: remove it by hand if it may go")


@contextmanager
def new_folder(path: str | os.PathLike, overwrite: bool = False, *, marker: str) -> Iterator[Path]:
    """Yield an empty folder that takes the name `path` when the block ends well and vanishes when it does not.

    A process killed in between leaves only the hidden `.NAME.partial` beside it, which the next call clears.
    """
    refuse_existing(path, overwrite, marker)
    path = Path(path).absolute()
    partial, replaced = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.replaced")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
