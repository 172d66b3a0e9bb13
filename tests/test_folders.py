"""Output folders appear whole or not at all, and an earlier one is never lost."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError

from visionflow_hf.cli import main
from visionflow_hf.errors import UserError
from visionflow_hf.folders import alone, new_folder, refuse_existing, writing


def write(target, text: str, overwrite: bool = True) -> None:
    with new_folder(target, overwrite, marker="m") as folder:
        (folder / "m").write_text(text)


def assert_only(target, text: str) -> None:
    assert (target / "m").read_text() == text
    assert [file.name for file in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), KeyboardInterrupt()], ids=["locked", "^C"])
@pytest.mark.parametrize("moment", ["first", "between", "last", "after"])
def test_the_earlier_or_the_new_folder_is_left_whole(tmp_path, monkeypatch, error, moment):
    target, rename = tmp_path / "out", Path.rename
    write(target, "earlier")

    def failing(self, other):
        first, last = self == target, self.name == ".out.partial"
        if (moment == "first" and first) or (moment == "last" and last):
            raise error
        result = rename(self, other)
        if (moment == "between" and first) or (moment == "after" and last):
            raise error
        return result

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        write(target, "new")
    assert_only(target, "new" if moment == "after" else "earlier")
    monkeypatch.undo()
    write(target, "third")
    assert_only(target, "third")


def test_an_earlier_folder_that_cannot_be_put_back_stays_under_its_other_name(tmp_path, monkeypatch):
    target, rename = tmp_path / "out", Path.rename
    write(target, "earlier")

    def failing(self, other):
        if self != target:
            raise PermissionError(13, "Permission denied")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError):
        write(target, "new")
    assert (tmp_path / ".out.replaced" / "m").read_text() == "earlier"
    monkeypatch.undo()
    refuse_existing(target, overwrite=True, marker="m")  # the next command, of whatever kind, puts it back first
    assert (target / "m").read_text() == "earlier"


@pytest.mark.parametrize("empty", [False, True])
def test_what_a_killed_process_left_is_put_back(tmp_path, empty):
    target = tmp_path / "out"
    write(target, "earlier")
    script = (
        "import os, signal, sys; from pathlib import Path; from visionflow_hf.folders import new_folder\n"
        "rename = Path.rename\n"
        "Path.rename = lambda self, other: (rename(self, other), os.kill(os.getpid(), signal.SIGKILL))\n"
        "with new_folder(sys.argv[1], True, marker='m') as folder: (folder / 'm').write_text('new')"
    )
    assert subprocess.run([sys.executable, "-c", script, str(target)]).returncode == -signal.SIGKILL
    assert not target.exists() and (tmp_path / ".out.replaced").exists()
    if empty:
        target.mkdir()
    with pytest.raises(UserError, match="--overwrite"):
        write(target, "new", overwrite=False)
    with pytest.raises(RuntimeError), new_folder(target, True, marker="m"):
        raise RuntimeError
    assert_only(target, "earlier")


def test_what_a_process_killed_later_left_is_cleared(tmp_path):
    target = tmp_path / "out"
    write(target, "new")
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "m").write_text("earlier")
    write(target, "newest")
    assert_only(target, "newest")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_place_that_cannot_be_written_is_named(tmp_path, number):
    target = tmp_path / "out"
    write(target, "earlier")
    message = f"out cannot be written: {os.strerror(number)}"
    with pytest.raises(UserError, match=message), new_folder(target, True, marker="m"):
        raise OSError(number, os.strerror(number))
    assert_only(target, "earlier")
    with pytest.raises(FileNotFoundError), new_folder(target, True, marker="m"):
        raise FileNotFoundError(errno.ENOENT, "another fault")  # which is no matter of writing
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory"), new_folder(tmp_path / "file" / "out", marker="m"):
        pass


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs Linux's full device")
def test_libraries_that_find_a_full_disk_are_heard(tmp_path):
    with (
        pytest.raises(UserError, match="out cannot be written: a file could not be written whole"),
        writing(tmp_path / "out"),
    ):
        torch.save({"weight": torch.zeros(1000)}, "/dev/full")
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(UserError, match="out cannot be written: No space left"), writing(tmp_path / "out"):
        raise full
    for other in (SafetensorError("Error while deserializing header"), RuntimeError("shapes do not match")):
        with pytest.raises(type(other)), writing(tmp_path / "out"):
            raise other


def test_two_commands_do_not_write_to_one_folder(tmp_path):
    with new_folder(tmp_path / "out", marker="mark") as folder:
        (folder / "mark").touch()
        with pytest.raises(UserError, match=r"another command is writing .*out: wait until it ends"):
            new_folder(tmp_path / "out", overwrite=True, marker="mark").__enter__()
        with new_folder(tmp_path / "other", marker="mark"):
            pass
        assert (folder / "mark").exists()  # of the first, which the second has left alone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
    (tmp_path / ".out.lock").touch()  # of a process that was killed
    with new_folder(tmp_path / "out", overwrite=True, marker="mark"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_place_where_a_disk_is_mounted_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: path == os.path.realpath(tmp_path / "out"))
    with pytest.raises(UserError, match="is where a disk is mounted: give the name of a folder in it"):
        write(tmp_path / "out", "new")
    write(tmp_path / "out" / "model", "new")


@pytest.mark.parametrize("out", [".", "..", "/", "work/.."])
def test_the_current_folder_keeps_its_name(out, tmp_path, monkeypatch, refused):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    for words in (["simulate", out, "--overwrite"], ["train", str(tmp_path / "none"), out, "--overwrite"]):
        refused(lambda words=words: main(words), "is the current folder, or holds it: give the name of a folder")
    assert [file.name for file in tmp_path.iterdir()] == ["work"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks without flock")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_disk_without_locks(code, tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    write(tmp_path / "out", "whole")
    assert_only(tmp_path / "out", "whole")
    assert "has no file locks: do not write to it by two commands at once" in caplog.text


def test_other_errors_of_a_lock_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(FileLock, "acquire", lambda self: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"), alone(tmp_path / "out"):
        pass
