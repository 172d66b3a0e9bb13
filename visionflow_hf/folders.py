"""Output folders that appear whole or not at all."""

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from visionflow_hf.errors import UserError

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


def refuse_existing(path: str | os.PathLike, overwrite: bool, marker: str) -> None:
    """Raise `UserError` where writing to `path` would destroy other files.

    The folder may be absent or empty. Otherwise `overwrite` is needed, and `marker`, a file that the command itself
    writes, must be in it: `--overwrite` with a mistyped path must not delete a home folder.
    """
    path = Path(path)
    refuse_fixed(path)
    put_back(path)
    if os.path.isfile(path) or os.path.islink(path):
        raise UserError(f"{path} is not a folder: give the name of a folder to write")
    if not os.path.exists(path) or not any(path.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{path} exists and is not empty: pass --overwrite to replace it, or give another name")
    if not (path / marker).exists():
        raise UserError(
            f"{path} holds no {marker}, so this command did not write it: delete it yourself if it is not needed"
        )


def refuse_fixed(path: str | os.PathLike) -> None:
    """Raise `UserError` where the name of `path` cannot pass to another folder.

    These are the current folder, those above it, and where a disk is mounted.
    """
    place = os.path.realpath(path)
    if Path(os.path.realpath(os.curdir)).is_relative_to(place):
        raise UserError(f"{path} is the current folder, or holds it: give the name of a folder to write")
    if os.path.ismount(place):
        raise UserError(f"{path} is where a disk is mounted: give the name of a folder in it")


@contextmanager
def new_folder(path: str | os.PathLike, overwrite: bool = False, *, marker: str) -> Iterator[Path]:
    """Yield an empty folder that takes the name `path` when the block ends well and vanishes when it does not.

    With `overwrite` the earlier folder stays until then: it is renamed to `.NAME.replaced`, the new one takes its
    name, and only then is the earlier one deleted. Where that fails or is interrupted, the earlier one is put back; a
    killed process leaves `.NAME.partial` or `.NAME.replaced`, and the next call clears the one and puts the other
    back.

    Raises:
        UserError: see `refuse_existing` and `alone`, or the folder cannot be replaced.
    """
    path = Path(path).absolute()
    partial = path.with_name(f".{path.name}.partial")
    refuse_existing(path, overwrite, marker)
    with alone(path):
        refuse_existing(path, overwrite, marker)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with writing(path):
                partial.mkdir(parents=True)
                yield partial
            if not overwrite and path.is_dir() and any(path.iterdir()):  # it was empty when this began
                kept = Path(tempfile.mkdtemp(prefix=f"{path.name}.", dir=path.parent)) / path.name
                partial.rename(kept)
                raise UserError(f"{path} has been filled meanwhile, and stays as it is: the result is in {kept}")
            take_name(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def alone(path: str | os.PathLike) -> Iterator[None]:
    """Keep other commands from writing to `path` meanwhile, by a lock on `.NAME.lock` beside it.

    Raises:
        UserError: another command is writing to it.
    """
    path = Path(path).absolute()
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file, timeout=0)
    with writing(path):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except FileExistsError as error:
            raise UserError(f"{path} cannot be written: {os.strerror(errno.ENOTDIR)} ({path.parent})") from error
        except Timeout as error:
            raise UserError(f"another command is writing {path}: wait until it ends, or give another name") from error
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
                raise
            logger.warning("the disk of %s has no file locks: do not write to it by two commands at once", path)
    try:
        yield
    finally:
        lock.release()
        file.unlink(missing_ok=True)


def take_name(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`, in the place of a folder of that name; where that fails the earlier one is kept.

    Raises:
        UserError: the earlier folder cannot be replaced.
    """
    replaced = replaced_name(path)
    try:
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        folder.rename(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be replaced ({error.strerror or error}): close the programs that use it, or give another "
            "name. The earlier folder is kept"
        ) from error
    finally:
        put_back(path)
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Raise `UserError` where `path` cannot be written: no room, no permission, or no such place."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = not_written(error)
        if reason is None:
            raise
        raise UserError(f"{path} cannot be written: {reason}") from error


def not_written(error: Exception) -> str | None:
    """Why something could not be written; None where the error is another one.

    safetensors gives the number of the system's error in its text, torch only a wrong place in the file.
    """
    if isinstance(error, RuntimeError):
        return "a file could not be written whole; is the disk full?" if "inline_container" in str(error) else None
    number = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    number = int(number[1]) if number else getattr(error, "errno", None)
    return os.strerror(number) if number in CANNOT_WRITE else None


def replaced_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def put_back(path: Path) -> None:
    """Give the earlier folder its name back where the one that was to replace it did not arrive."""
    path = path.absolute()
    replaced = replaced_name(path)
    if not os.path.isdir(replaced):  # unlike `Path.is_dir`, it takes names of any length
        return
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        path.rmdir()
    if not path.exists():
        replaced.rename(path)
