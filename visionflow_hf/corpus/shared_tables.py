"""Tables that all processes of a machine need: each reads a part of them, and memory holds them once."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

import pyarrow as pa
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from visionflow_hf.errors import UserError
from visionflow_hf.processes import place_on_machine

SHARED_MEMORY = Path("/dev/shm")


def read_tables(files: list[str], read: Callable[[str], pa.Table]) -> list[pa.Table]:
    """`read(file)` of each file, in their order.

    Of several processes that `accelerate launch` starts on a machine, each reads every so-manieth file into memory that
    all of them map (a temporary folder where the system has no /dev/shm), which is free again when the last one ends.

    Raises:
        UserError: there is no room for them.
    """
    place, processes = place_on_machine()
    if processes == 1:
        return [read(file) for file in files]
    (name,) = broadcast_object_list([f"visionflow-{uuid4().hex}"])
    folder = (SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(gettempdir())) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    paths = [str(folder / f"{number}.arrow") for number in range(len(files))]
    try:
        for file, path in list(zip(files, paths, strict=True))[place::processes]:
            write(read(file), path)
        PartialState().wait_for_everyone()  # until all parts are there
        tables = [pa.ipc.open_file(pa.memory_map(path)).read_all() for path in paths]
        PartialState().wait_for_everyone()  # until all have mapped them, who keep what has no name any more
        return tables
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(table: pa.Table, path: str) -> None:
    try:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"{Path(path).parents[1]} has no room for {table.nbytes / 2**20:,.0f} MiB more, which --streaming keeps "
            f"there for all processes of a machine: enlarge it (a container's by --shm-size), or leave --streaming out"
        ) from error
