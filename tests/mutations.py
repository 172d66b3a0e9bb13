"""Ways to spoil a source: of any file, and of HDF5, .mat, .npy, NIfTI, Arrow, JSON, text, image files and the like."""

import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import scipy.io
from PIL import Image

LAYOUTS = {  # functions of layouts.py that write a source, and the importer of each
    "algonauts_challenge": "algonauts23",
    "algonauts_processed": "algonauts23",
    "nsd": "nsd",
    "god": "god",
    "bold5000": "bold5000",
    "bold5000_tables": "bold5000",
    "things": "things",
    "table": "table",
    "table_of_arrays": "table",
    "bids": "table",
    "laion_fmri": "laion-fmri",
    "mosaic_small": "mosaic",
    "tvsd": "tvsd",
}
SECRET = 12345.0  # what a file outside the source holds: no corpus may show it


def write_secrets(folder: Path) -> None:
    """Files outside the source, which links and names may point to."""
    folder.mkdir()
    with h5py.File(folder / "secret.h5", "w") as file:
        file["secret"] = np.full((400, 400), SECRET)
    np.full(10**5, SECRET).tofile(folder / "secret.raw")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "secret.png")


def spoil(source: Path, secrets: Path, rng: np.random.Generator, again: bool = False) -> str:
    """Spoil one file of the source, somehow; tells what was done.

    Args:
        again: the file may be spoiled already, so that only what fits any file is done.
    """
    files = sorted(file for file in source.rglob("*") if file.is_file())
    kinds = sorted({kind_of(file) for file in files})  # else most would be images
    kind = kinds[rng.integers(len(kinds))]
    file = choose([file for file in files if kind_of(file) == kind], rng)
    way = choose(ANY if again else [*ANY, *WAYS.get(kind, []), *WAYS.get(kind, [])], rng)
    way(file, secrets, rng)
    return f"{way.__name__} of {file.relative_to(source)}"


def choose(items: list, rng: np.random.Generator):
    return items[rng.integers(len(items))]


def kind_of(file: Path) -> str:
    if file.name.endswith(".nii.gz"):
        return ".nii.gz"
    if file.suffix in (".png", ".jpg", ".JPEG"):
        return "image"
    if file.suffix == ".mat" and h5py.is_hdf5(file):
        return ".hdf5"
    return {".h5": ".hdf5", ".csv": ".txt", ".tsv": ".txt"}.get(file.suffix, file.suffix)


# Of any file


def truncate(file, secrets, rng):
    os.truncate(file, rng.integers(file.stat().st_size + 1))


def flip_bytes(file, secrets, rng):
    content = bytearray(file.read_bytes())
    for _ in range(rng.integers(1, 20)):
        if content:
            content[rng.integers(len(content))] = rng.integers(256)
    file.write_bytes(content)


def flip_a_byte_of_the_beginning(file, secrets, rng):
    content = bytearray(file.read_bytes())
    if content:
        content[rng.integers(min(len(content), 600))] = rng.integers(256)
    file.write_bytes(content)


def fill_with_noise(file, secrets, rng):
    file.write_bytes(rng.bytes(rng.integers(2000)))


def lengthen(file, secrets, rng):
    file.write_bytes(file.read_bytes() + rng.bytes(100))


def remove(file, secrets, rng):
    file.unlink()


def remove_the_folder(file, secrets, rng):
    shutil.rmtree(file.parent)


def make_a_folder(file, secrets, rng):
    file.unlink()
    file.mkdir()


def make_a_pipe(file, secrets, rng):
    file.unlink()
    os.mkfifo(file)


def make_a_dangling_link(file, secrets, rng):
    file.unlink()
    file.symlink_to(file.parent / "nowhere")


def exchange(file, secrets, rng):
    other = choose([one for one in sorted(file.parent.iterdir()) if one.is_file()], rng)
    content = other.read_bytes()
    other.write_bytes(file.read_bytes())
    file.write_bytes(content)


def copy_under_another_name(file, secrets, rng):
    shutil.copy(file, file.with_name("another-" + file.name))


# Of HDF5


def keys_of(file: h5py.File) -> list[str]:
    keys = []
    file.visititems(lambda name, item: keys.append(name) if isinstance(item, h5py.Dataset) else None)
    return keys


def in_hdf5(change):
    def way(file, secrets, rng):
        with h5py.File(file, "r+") as opened:
            key = choose(keys_of(opened), rng)
            values = opened[key][()]
            del opened[key]
            change(opened, key, values, secrets, rng)

    way.__name__ = change.__name__
    return way


@in_hdf5
def remove_a_key(file, key, values, secrets, rng):
    pass


@in_hdf5
def rename_a_key(file, key, values, secrets, rng):
    file[key + "s"] = values


@in_hdf5
def change_type(file, key, values, secrets, rng):
    kind = choose([np.float64, np.float32, np.int16, np.uint8, np.int64, bool, "S3", ">f8", ">i2"], rng)
    try:
        file[key] = np.nan_to_num(values).astype(kind) if values.dtype.kind == "f" else values.astype(kind)
    except (ValueError, TypeError):
        file[key] = "text"


@in_hdf5
def change_shape(file, key, values, secrets, rng):
    ways = [np.transpose, np.ravel, lambda a: a[:-1], lambda a: a[None], lambda a: a[:0], lambda a: np.repeat(a, 2, 0)]
    file[key] = choose(ways, rng)(values)


@in_hdf5
def claim_a_vast_shape(file, key, values, secrets, rng):
    file.create_dataset(key, (10**7,) * values.ndim, values.dtype, chunks=(100,) * values.ndim)


@in_hdf5
def change_values(file, key, values, secrets, rng):
    if values.dtype.kind == "f":
        values = values.copy()
        values[rng.random(values.shape) < 0.2] = choose([np.nan, np.inf, -1e300, 0], rng)
    elif values.dtype.kind in "iu":
        values = values + 1
    file[key] = values


@in_hdf5
def link_outside(file, key, values, secrets, rng):
    file[key] = h5py.ExternalLink(str(secrets / "secret.h5"), "secret")


@in_hdf5
def link_inside(file, key, values, secrets, rng):
    file["/elsewhere"] = values
    file[key] = h5py.SoftLink("/elsewhere")


@in_hdf5
def link_outside_by_a_link(file, key, values, secrets, rng):
    file["/elsewhere"] = h5py.ExternalLink(str(secrets / "secret.h5"), "secret")
    file[key] = h5py.SoftLink("/elsewhere")


@in_hdf5
def be_virtual(file, key, values, secrets, rng):
    layout = h5py.VirtualLayout(values.shape, values.dtype if values.dtype.kind in "iuf" else float)
    flat = np.prod(values.shape[1:], dtype=int)
    if values.ndim == 2 and values.shape[0] <= 400 and flat <= 400:
        layout[:] = h5py.VirtualSource(str(secrets / "secret.h5"), "secret", (400, 400))[: len(values), :flat]
    file.create_virtual_dataset(key, layout, fillvalue=0)


@in_hdf5
def be_stored_outside(file, key, values, secrets, rng):
    kind = values.dtype if values.dtype.kind in "iuf" else np.dtype(float)
    size = int(values.size * kind.itemsize)
    file.create_dataset(key, values.shape, kind, external=[(str(secrets / "secret.raw"), 0, size)])


@in_hdf5
def be_a_group(file, key, values, secrets, rng):
    file.create_group(key)


# Of .mat, .npy, NIfTI and Arrow


def change_mat(file, secrets, rng):
    arrays = {key: array for key, array in scipy.io.loadmat(file).items() if not key.startswith("__")}
    key = choose(sorted(arrays), rng)
    array = arrays.pop(key)
    ways = [
        lambda a: a - 1,  # counted from 0
        lambda a: a + 1,
        lambda a: a.T,
        lambda a: a[:, :-1],
        lambda a: a * np.nan,
        lambda a: a + 0.5,
        lambda a: np.array(["text"]),
        lambda a: np.zeros((0, 0)),
        lambda a: {"a": 1},
        lambda a: a.astype(complex),
        lambda a: np.where(a > 0, a, np.inf),
        lambda a: a.astype(np.float32),
        None,
    ]
    way = choose(ways, rng)
    scipy.io.savemat(file, {**arrays, key: way(array)} if way else arrays)


def change_npy(file, secrets, rng):
    array = np.load(file, allow_pickle=True)
    ways = [
        lambda a: a[:-1],
        lambda a: a[:, :-1] if a.ndim > 1 else a,
        lambda a: a.T,
        np.asfortranarray,
        lambda a: np.where(np.arange(a.shape[-1]) == 0, np.nan, a),
        lambda a: a.astype(np.float16),
        lambda a: a.astype(np.float64),
        lambda a: a.astype(np.int64),
        lambda a: a.astype(complex),
        lambda a: a[..., None],
        lambda a: np.array(["text"]),
        lambda a: np.array([{"a": 1}], dtype=object),
        lambda a: a.astype(object),
        lambda a: a[:0],
    ]
    np.save(file, array if array.ndim == 0 else choose(ways, rng)(array), allow_pickle=True)


def change_nifti(file, secrets, rng):
    image = nibabel.load(file)
    values, header = np.asarray(image.dataobj), image.header
    ways = [
        lambda: values.astype(np.float32),
        lambda: values.astype(np.float64),
        lambda: values[:-1],
        lambda: values[..., :-1],
        lambda: values[..., None],
        lambda: values.transpose(),
        lambda: np.full(values.shape, np.nan, np.float32),
        lambda: np.zeros_like(values),
    ]
    if rng.random() < 0.2:
        header = nibabel.Nifti1Header()
        header.set_slope_inter(2, 1)
        header.set_data_dtype(values.dtype)
        nibabel.save(nibabel.Nifti1Image(values, image.affine, header), file)
    else:
        nibabel.save(nibabel.Nifti1Image(choose(ways, rng)(), image.affine), file)


def change_arrow(file, secrets, rng):
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all()
    column = choose(table.column_names, rng)
    place = table.column_names.index(column)
    values = table.column(column).to_pylist()
    picture = {"bytes": None, "path": str(secrets / "secret.png")}
    ways = [
        lambda: table.drop_columns([column]),
        lambda: table.slice(0, 0),
        lambda: table.set_column(place, column, pa.array([None] * len(table), table.schema.field(column).type)),
        lambda: table.set_column(place, column, pa.array(["text"] * len(table))),
        lambda: table.set_column(place, column, pa.array([1.5] * len(table))),
        lambda: table.set_column(place, column, pa.array([str(value)[:30] for value in values])),
        lambda: table.set_column(table.column_names.index("image"), "image", pa.array([picture] * len(table))),
        lambda: table.set_column(
            table.column_names.index("activity"),
            "activity",
            pa.array([[1.0] * rng.integers(9, 12) for _ in range(len(table))], pa.list_(pa.float32())),
        ),
    ]
    changed = choose(ways, rng)()
    with pa.ipc.new_stream(str(file), changed.schema) as sink:
        sink.write_table(changed)


# Of tables and lists of names, and of images


def change_text(file, secrets, rng):
    lines = file.read_text().split("\n")
    place = rng.integers(len(lines))
    names = ["../../secrets/secret.png", str(secrets / "secret.png"), "..", "", "x" * 5000, "a\0b", "aardvark_99s.jpg"]
    between = "\t" if file.suffix == ".tsv" else ","
    fields = lines[place].split(between)
    fields[rng.integers(len(fields))] = choose(names, rng)
    ways = [
        lambda: lines[:place] + lines[place + 1 :],
        lambda: [*lines[: place + 1], *lines[place:]],
        lambda: [*lines[:place], "", *lines[place:]],
        lambda: lines[:1],
        lambda: [between.join(line.split(between)[:-1]) for line in lines],
        lambda: [*lines[:place], between.join(fields), *lines[place + 1 :]],
        lambda: [line.replace(".jpg", "") for line in lines],
        lambda: [between.join([choose(names, rng), *line.split(between)[1:]]) for line in lines],
        lambda: [line.replace("trial_id", "trial").replace("train", "TRAIN") for line in lines],
    ]
    file.write_text("\n".join(choose(ways, rng)()))


def name_outside(file, secrets, rng):
    outside = choose(["../../secrets/secret.png", str(secrets / "secret.png")], rng)
    between = "\t" if file.suffix == ".tsv" else ","
    lines = file.read_text().split("\n")
    for place, line in enumerate(lines):
        words = line.split(between)
        for word, text in enumerate(words):
            if text.endswith((".jpg", ".JPEG", ".png")) and rng.random() < 0.5:
                words[word] = outside
        lines[place] = between.join(words)
    file.write_text("\n".join(lines))


def change_image(file, secrets, rng):
    picture = Image.open(file).convert("RGB")
    ways = [
        lambda: picture.resize((1, 1)).save(file),
        lambda: picture.convert("CMYK").save(file, "JPEG"),
        lambda: picture.convert("1").save(file, "PNG"),
        lambda: picture.convert("P").save(file, "PNG"),
        lambda: picture.convert("L").convert("I;16").save(file, "PNG"),
        lambda: file.write_bytes(vast_png()),
        lambda: file.rename(file.with_name(file.name.replace("0001", "0000"))),
        lambda: file.rename(file.with_name(file.name.replace("000", "999"))),
        lambda: file.rename(file.with_suffix(".txt")),
    ]
    choose(ways, rng)()


def vast_png() -> bytes:
    """Says that it has 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0" * 50


# Of .npz, JSON, safetensors and Parquet


def change_npz(file, secrets, rng):
    with zipfile.ZipFile(file) as source:
        members = {name: source.read(name) for name in source.namelist()}
    name = choose(sorted(members), rng)
    array = np.load(io.BytesIO(members[name]), allow_pickle=True)
    ways = [
        lambda: npy(array.T),
        lambda: npy(array[:-1]) if array.ndim else npy(array[None]),
        lambda: npy(array[None]),
        lambda: npy(array.ravel()),
        lambda: npy(array[:0]) if array.ndim else npy(array[None][:0]),
        lambda: npy(array.astype("U5")),
        lambda: npy(array.astype(np.float16)) if array.dtype.kind in "iuf" else npy(array),
        lambda: npy(array.astype(complex)) if array.dtype.kind in "iuf" else npy(array),
        lambda: npy(np.where(array > 0, np.inf, array)) if array.dtype.kind in "iuf" else npy(array),
        lambda: npy(np.array([{"a": 1}], dtype=object)),
        lambda: npy(array.astype(object)),
        lambda: npy_header((10**12, 30), "<f4"),
        lambda: npy_header((2**62, 2**62), "<f8"),
        lambda: npy_header((-1, 30), "<f4"),
        lambda: npy_header((12,), "|O") + b"cposix\nsystem\n",
        lambda: members[name][: rng.integers(len(members[name]))],
        lambda: None,
    ]
    members[name] = choose(ways, rng)()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for member, content in members.items():
            if content is not None:
                out.writestr(choose([member, member, member, "../" + member], rng), content)


def npy(array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def npy_header(shape: tuple, kind: str) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": kind, "fortran_order": False, "shape": shape})
    return content.getvalue()


def bomb_npz(file, secrets, rng):
    """A gigabyte of zeros, in a few hundred kilobytes."""
    with zipfile.ZipFile(file) as source:
        names = source.namelist()
    name = choose(names, rng)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as out, out.open(name, "w") as member:
        shape = choose([(2**28,), (2**18, 2**10), (2**14, 2**14)], rng)
        member.write(npy_header(shape, "<f4"))
        for _ in range(64):
            member.write(bytes(2**24))


def change_json(file, secrets, rng):
    value = json.loads(file.read_text())
    places = list(places_in(value))
    odd = [
        *(None, True, -1, 0, 1, 3, 0.5, 1e308, 10**6, 10**12, 10**40, "", "text", "../../etc", [], [[]], {}, {"a": 1}),
        *([-1], [10**9], ["x"], [None], [0, 0], [10**6, 10**6], float("nan"), float("inf"), "x" * 10**5),
    ]
    for _ in range(rng.integers(1, 3)):
        if places:
            holder, key = choose(places, rng)
            kind = rng.integers(4)
            try:
                if kind == 0:
                    del holder[key]
                elif kind == 1 and isinstance(holder[key], list):
                    holder[key] = holder[key][:-1] if rng.random() < 0.5 else holder[key] + holder[key]
                elif kind == 2 and isinstance(holder[key], (int, float)):
                    holder[key] = choose([holder[key] + 1, -holder[key], holder[key] * 1000, holder[key] / 3], rng)
                else:
                    holder[key] = choose(odd, rng)
            except (KeyError, IndexError):
                pass
    if rng.random() < 0.05:
        value = choose([[], None, 3, "text", [value], json.loads("[" * 50 + "]" * 50)], rng)
    file.write_text(json.dumps(value))


def places_in(value):
    """(holder, key) of all that a JSON value is made of."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield value, key
        yield from places_in(item)


def nest_json(file, secrets, rng):
    file.write_text('{"a": ' * 10**5 + "1" + "}" * 10**5)


def change_safetensors(file, secrets, rng):
    """The header of a safetensors file: shapes, types, places and names that it states."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if length > len(content):
        return flip_bytes(file, secrets, rng)
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = choose(sorted(key for key in header if key != "__metadata__"), rng)
    entry = header[name]
    begin, end = entry["data_offsets"]
    ways = [
        lambda: entry.update(shape=[10**9, 10**9]),
        lambda: entry.update(shape=[-1]),
        lambda: entry.update(shape=[]),
        lambda: entry.update(shape=[entry["shape"][0] * 2 if entry["shape"] else 2, *entry["shape"][1:]]),
        lambda: entry.update(shape=list(reversed(entry["shape"]))),
        lambda: entry.update(shape=[1, *entry["shape"]]),
        lambda: entry.update(dtype=choose(["F64", "F16", "I64", "BOOL", "U8", "F8_E4M3", "X", 3], rng)),
        lambda: entry.update(dtype="I32"),
        lambda: entry.update(data_offsets=[begin, end + 4]),
        lambda: entry.update(data_offsets=[end, begin]),
        lambda: entry.update(data_offsets=[0, 2**63]),
        lambda: entry.update(data_offsets=[begin + 4, end + 4]),
        lambda: header.pop(name),
        lambda: header.update({name + ".more": header.pop(name)}),
        lambda: header.update(__metadata__={"format": choose(["tf", "np", ""], rng)}),
        lambda: header.update(__metadata__=3),
    ]
    choose(ways, rng)()
    text = json.dumps(header).encode()
    length = choose([len(text)] * 9 + [2**40], rng)
    file.write_bytes(struct.pack("<Q", length) + text + data)


def change_parquet(file, secrets, rng):
    table = pa.parquet.read_table(file)
    column = choose(table.column_names, rng)
    place = table.column_names.index(column)
    ways = [
        lambda: table.drop_columns([column]),
        lambda: table.slice(0, 0),
        lambda: table.slice(1),
        lambda: pa.concat_tables([table, table]),
        lambda: table.set_column(place, column, pa.array([None] * len(table))),
        lambda: table.set_column(place, column, pa.array(["text"] * len(table))),
        lambda: table.set_column(place, column, pa.array([1.5] * len(table))),
        lambda: table.set_column(place, column, pa.array([[1]] * len(table))),
        lambda: table.set_column(place, column, pa.array([b"\xff"] * len(table))),
        lambda: table.set_column(place, column, pa.array([{"a": 1}] * len(table))),
        lambda: table.rename_columns([name + "s" if name == column else name for name in table.column_names]),
        lambda: table.append_column(column, table.column(column)),
    ]
    pa.parquet.write_table(choose(ways, rng)(), file)


ANY = [
    *(truncate, flip_bytes, flip_a_byte_of_the_beginning, fill_with_noise, lengthen, remove, remove_the_folder),
    *(make_a_folder, make_a_pipe, make_a_dangling_link, exchange, copy_under_another_name),
]
WAYS = {
    ".hdf5": [
        *(remove_a_key, rename_a_key, change_type, change_shape, claim_a_vast_shape, change_values, link_outside),
        *(link_inside, link_outside_by_a_link, be_virtual, be_stored_outside, be_a_group),
    ],
    ".mat": [change_mat] * 12,
    ".npy": [change_npy] * 12,
    ".nii.gz": [change_nifti] * 12,
    ".arrow": [change_arrow] * 12,
    ".npz": [*[change_npz] * 12, bomb_npz],
    ".json": [*[change_json] * 12, nest_json],
    ".safetensors": [change_safetensors] * 12,
    ".parquet": [change_parquet] * 12,
    ".txt": [change_text] * 8 + [name_outside] * 4,
    "image": [change_image] * 12,
}
