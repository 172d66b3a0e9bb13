"""One split on disk as `datasets.load_from_disk` reads it: Arrow shards, written row by row.

`Dataset.from_generator` and `save_to_disk` would write every byte twice and map whole files into memory.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import DatasetInfo, Features

SHARD_BYTES = 500 * 2**20  # where `datasets` itself begins another file
BATCH_BYTES = 16 * 2**20  # of the rows that wait in memory


def write_split(folder: Path, name: str, rows: Iterable[dict], features: Features, description: str) -> None:
    """Write the rows as the split `name` into the new folder `folder`.

    Args:
        rows: dicts with the keys of `features`; `image` is a PIL image, `{"bytes": encoded, "path": None}` or None.
        description: what `info.description` of the split says.
    """
    folder.mkdir()
    schema, shards = features.arrow_schema, 0
    content = hashlib.blake2b(name.encode(), digest_size=8)
    waiting = batches(rows, features)
    batch = next(waiting, None)
    while batch is not None or shards == 0:  # a split without rows is still a table
        with pa.ipc.new_stream(str(folder / f"{shards}.arrow"), schema) as writer:
            size = 0
            while batch is not None and size < SHARD_BYTES:
                writer.write_batch(batch)
                for buffer in (buffer for column in batch.columns for buffer in column.buffers() if buffer):
                    content.update(buffer)
                size += batch.nbytes
                batch = next(waiting, None)
        shards += 1
    files = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    for shard, file in enumerate(files):
        (folder / f"{shard}.arrow").rename(folder / file)
    DatasetInfo(description=description, features=features).write_to_directory(str(folder))
    state = {
        "_data_files": [{"filename": file} for file in files],
        "_fingerprint": content.hexdigest(),  # by which `datasets` keeps what `map` makes of the split
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": name,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2))


def batches(rows: Iterable[dict], features: Features) -> Iterator[pa.RecordBatch]:
    """The rows as Arrow, so many at a time as memory should hold."""
    held: list[dict] = []
    size = 0
    for row in rows:
        image = row["image"] and features["image"].encode_example(row["image"])
        fmri = None if row["fmri"] is None else np.asarray(row["fmri"], dtype=np.float32)
        held.append({**row, "image": image, "fmri": fmri})
        size += len(image["bytes"] or b"") if image else 0
        size += 0 if fmri is None else fmri.nbytes
        if size >= BATCH_BYTES:
            yield to_batch(held, features.arrow_schema)
            held, size = [], 0
    if held:
        yield to_batch(held, features.arrow_schema)


def to_batch(rows: list[dict], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array([row[field.name] for row in rows], type=field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
