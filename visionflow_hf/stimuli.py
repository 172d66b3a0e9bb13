"""Every distinct stimulus as a model reads it: its pixels and, where the encoder is frozen, the encoder's features.

Both are made once, and kept on disk for all epochs, folds, seeds and runs to come. What they are found by says all that
they follow from, so that nothing stale can be found:

    pixels      the bytes of the image's file; size and channels; the processor's code
    features    the pixels' key; the encoder's weights and config, size and normalisation of its input; the model's code

and the versions of the libraries that compute them. Where all of it takes more than 100 GB, what no run has used for
longest is deleted.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from huggingface_hub.constants import HF_HOME
from tqdm import tqdm
from transformers.utils import logging

from visionflow_hf.corpus.files import reading
from visionflow_hf.errors import UserError
from visionflow_hf.images import open_image
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.feature_spaces import BATCH, LARGEST
from visionflow_hf.processes import cores, place_on_machine

FILE = 4096  # stimuli a file: what is lost at most where a run is interrupted
LARGEST_CACHE = 100 * 10**9  # bytes
A_DAY = 24 * 3600  # seconds
OF_CACHE = re.compile("(pixels|features|latents)-[0-9a-f]{32}")  # names of its folders; what else lies there stays

logger = logging.get_logger(__name__)


class KeptArrays:
    """Arrays of one shape, each found by a key, in memory-mapped files that several runs share.

    A file is written under a hidden name and then renamed, so that what has a name is complete. Nothing is changed in
    place: two processes that add the same arrays at once do no harm.

    Args:
        folder: made where it is missing.
        dtype, shape: of one array; the dtype may have several parts, with names.
        keys: of the arrays that are needed; files without any of them are not held open.
    """

    def __init__(self, folder: Path, dtype: str | list, shape: Sequence[int], keys: Iterable[bytes]):
        self.folder, self.shape, self.keys = folder, tuple(shape), frozenset(keys)
        self.record = np.dtype([("key", "V32"), ("values", dtype, self.shape)])
        self.files: dict[str, np.ndarray | None] = {}
        self.place: dict[bytes, tuple[str, int]] = {}
        with suppress(OSError):  # there is none yet, or it is read-only
            os.utime(folder)  # it was used
        self.reread()

    def __getstate__(self) -> dict:
        """Without the files, which another process maps itself."""
        return self.__dict__ | {"files": {}, "place": {}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.reread()

    def __contains__(self, key: bytes) -> bool:
        return key in self.place

    def reread(self) -> None:
        """Know the files that have come since. One that is cut off or damaged is deleted, its arrays are made anew."""
        for file in sorted(self.folder.glob("*.npy")):
            if file.name not in self.files:
                try:
                    records = np.load(file, mmap_mode="r")
                    if records.dtype != self.record:
                        raise ValueError(f"it holds {records.dtype}, not {self.record}")
                except FileNotFoundError:  # another process has made room
                    continue
                except (ValueError, EOFError) as error:
                    logger.warning("%s is damaged (%s): its stimuli are read anew", file, error)
                    file.unlink(missing_ok=True)
                    continue
                own = {key: row for row, key in enumerate(map(bytes, records["key"])) if key in self.keys}
                self.files[file.name] = records if own else None
                self.place |= {key: (file.name, row) for key, row in own.items()}

    def add(self, keys: Sequence[bytes], batches: Iterable[np.ndarray]) -> None:
        """Keep one array a key, which come in `batches`, arrays of shape (some, *shape).

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        name = uuid.uuid4().hex
        unfinished = self.folder / f".{name}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(unfinished, "xb") as part:
                layout = np.lib.format.dtype_to_descr(self.record)
                header = {"descr": layout, "fortran_order": False, "shape": (len(keys),)}
                np.lib.format.write_array_header_1_0(part, header)
                written = 0
                for batch in batches:
                    records = np.empty(len(batch), self.record)
                    records["key"] = np.frombuffer(b"".join(keys[written : written + len(batch)]), "V32")
                    records["values"] = batch
                    part.write(records.tobytes())
                    written += len(batch)
            os.replace(unfinished, self.folder / f"{name}.npy")
        except BaseException as error:
            with suppress(OSError):
                unfinished.unlink()
            if isinstance(error, OSError):
                raise UserError(
                    f"{self.folder} cannot be written ({error.strerror}): make room, or name another folder with "
                    "--stimulus_cache or the environment variable HF_HOME"
                ) from error
            raise
        self.reread()

    def take(self, keys: Sequence[bytes], part: str | None = None, columns: slice = slice(None)) -> np.ndarray:
        """A copy of the arrays with these keys, of shape (keys, *shape); or some columns of the part of this name."""
        own = self.record["values"] if part is None else self.record["values"][part]
        taken = np.empty((len(keys), *np.empty(own.shape, own.base)[columns].shape), own.base)
        files = {name: file["values"] for name, file in self.files.items() if file is not None}
        kept = files if part is None else {name: values[part] for name, values in files.items()}
        for row, key in enumerate(keys):
            file, place = self.place[key]
            taken[row] = kept[file][place][columns]
        return taken


class Stimuli:
    """The distinct stimuli of some rows, by `stimulus_id`.

    Args:
        splits: rows with an image each.
        model: its frozen encoder sees them all; None where the encoder learns.
        cache: the folder where pixels and features are kept.
    """

    def __init__(
        self,
        processor: VisionFlowProcessor,
        splits: Iterable[Dataset],
        model: VisionFlowModel | None = None,
        cache: str | os.PathLike | None = None,
    ):
        folder = Path(HF_HOME, "visionflow", "stimuli") if cache is None else Path(cache)
        self.keys: dict[str, bytes] = {}
        where: dict[bytes, tuple[Dataset, int]] = {}
        for split in splits:
            images = split.select_columns("image").with_format("arrow")
            for stimulus, row in first_rows(split).items():
                if stimulus not in self.keys:
                    self.keys[stimulus] = key = hashlib.sha256(picture_of(images, row)).digest()
                    where[key] = images, row
        read = pixels_depend_on(processor)
        shape = [*processor.image_size, processor.num_channels]
        self.pixels = KeptArrays(folder / f"pixels-{read}", "u1", shape, where)
        keep(self.pixels, list(where), "reading the stimuli", lambda keys: read_pixels(processor, where, keys))
        self.features = None
        if model is not None:
            widths = model.feature_sizes
            parts = [("posterior", "<f4", widths[:1]), ("linear", "<f2", widths[1:])]  # of the latter there are many
            self.features = KeptArrays(folder / f"features-{features_depend_on(model, read)}", parts, (), where)
            keep(self.features, list(where), "encoding the stimuli", lambda keys: self._encode(model, keys))
        make_room(folder, [kept.folder for kept in (self.pixels, self.features) if kept is not None])

    def pixel_values(self, stimulus_ids: Sequence[str]) -> torch.Tensor:
        """`(stimuli, channels, height, width)` on a 0..1 scale, bit for bit what the processor makes of the images."""
        return as_pixel_values(self.pixels.take([self.keys[name] for name in stimulus_ids]))

    def image_features(self, stimulus_ids: Sequence[str], with_linear: bool = True) -> torch.Tensor | None:
        """What the frozen encoder makes of each, `(stimuli, features)`; None where the encoder learns.

        Args:
            with_linear: False leaves out what only the linear dimensions of the latent read.
        """
        if self.features is None:
            return None
        keys = [self.keys[name] for name in stimulus_ids]
        parts = [self.features.take(keys, part) for part in ("posterior", "linear")[: 1 + with_linear]]
        return torch.cat([torch.from_numpy(part).float() for part in parts], dim=1)

    def uint8_pixels(self, stimulus_ids: Sequence[str], lines: slice = slice(None)) -> np.ndarray:
        """Some lines of the images, uint8 array of shape (stimuli, some, width, channels)."""
        return self.pixels.take([self.keys[name] for name in stimulus_ids], columns=lines)

    def linear_features(self, stimulus_ids: Sequence[str], columns: slice) -> torch.Tensor:
        """Some of what the linear dimensions read, `(stimuli, some)`; layer after layer."""
        return torch.from_numpy(
            self.features.take([self.keys[name] for name in stimulus_ids], "linear", columns)
        ).float()

    @torch.no_grad()
    def _encode(self, model: VisionFlowModel, keys: Sequence[bytes]) -> Iterator[np.ndarray]:
        model.eval()
        for batch in parts_of(keys, BATCH):
            pixels = as_pixel_values(self.pixels.take(batch)).to(model.device)
            features, _ = model.extract_image_features(pixels)
            posterior, linear = features.float().cpu().split(model.feature_sizes, dim=1)
            values = np.empty(len(batch), self.features.record["values"])
            values["posterior"], values["linear"] = posterior, linear.clamp(-LARGEST, LARGEST)
            yield values


def keep(kept: KeptArrays, keys: list[bytes], task: str, make) -> None:
    """Make what is missing; the processes of one machine share the work, and have all of it when this returns.

    Args:
        make: arrays in batches, from keys.
    """
    place, processes = place_on_machine()
    own = keys[place::processes]  # of all keys: what is missing changes while another process makes some
    mine = [key for key in own if key not in kept]
    if PartialState().num_processes == 1 and not mine:
        return
    with tqdm(total=len(mine), desc=task, unit="stimulus", disable=None if place == 0 and mine else True) as bar:
        for part in parts_of(mine, FILE):
            kept.add(part, advancing(bar, make(part)))
    PartialState().wait_for_everyone()
    kept.reread()


def make_room(cache: Path, used: Sequence[Path]) -> None:
    """Delete the folders that no run has used for longest, until the cache is not larger than LARGEST_CACHE.

    Unfinished files that killed runs have left are deleted a day later.

    Args:
        used: by this run, which stay.
    """
    if place_on_machine()[0] != 0:
        return
    for unfinished in (file for folder in used for file in folder.glob(".*.part")):
        with suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > A_DAY:
                unfinished.unlink()
    sizes, last_used = {}, {}
    for folder in (path for path in cache.glob("*-*") if OF_CACHE.fullmatch(path.name)):
        with suppress(OSError):  # another process works there, or it is another user's
            sizes[folder] = sum(file.stat().st_size for file in folder.iterdir())
            last_used[folder] = folder.stat().st_mtime
    for folder in sorted(last_used.keys() - set(used), key=last_used.get):
        if sum(sizes.values()) <= LARGEST_CACHE:
            break
        logger.warning("%s is larger than %d GB: %s is deleted", cache, LARGEST_CACHE // 10**9, folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        del sizes[folder]


def parts_of(keys: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def advancing(bar: tqdm, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for batch in batches:
        yield batch
        bar.update(len(batch))


def first_rows(split: Dataset) -> dict[str, int]:
    """The first row that shows each stimulus."""
    first: dict[str, int] = {}
    for row, stimulus in enumerate(split["stimulus_id"]):
        first.setdefault(stimulus, row)
    return first


def picture_of(images: Dataset, row: int) -> bytes:
    """The bytes of an image's file."""
    image = images[row]["image"][0].as_py()
    return image["bytes"] or Path(image["path"]).read_bytes()


def read_pixels(
    processor: VisionFlowProcessor, where: dict[bytes, tuple[Dataset, int]], keys: Sequence[bytes]
) -> Iterator[np.ndarray]:
    """Pixels in batches, uint8 arrays of shape (stimuli, height, width, channels); decoded and resized in threads."""

    def pixels(batch: list[bytes]) -> np.ndarray:
        values = processor(images=[open_image(file, "an image of the corpus") for file in batch])["pixel_values"]
        return (values * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    with ThreadPoolExecutor(cores()) as threads:
        for several in parts_of(keys, BATCH * cores()):  # as many files as the threads work on lie in memory
            batches = [[picture_of(*where[key]) for key in batch] for batch in parts_of(several, BATCH)]
            yield from threads.map(pixels, batches)


def as_pixel_values(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255


def pixels_depend_on(processor: VisionFlowProcessor) -> str:
    """A hash of all that pixels follow from, but the image."""
    return digest(code_of(processor), PIL.__version__, processor.image_size, processor.num_channels)


def features_depend_on(model: VisionFlowModel, pixels: str) -> str:
    """A hash of all that features follow from, but the image."""
    config = model.config
    vision = config.vision_config.to_dict()
    vision = {name: value for name, value in vision.items() if name not in ("_name_or_path", "transformers_version")}
    names = ("encoder_image_size", "image_mean", "image_std", "feature_grid", "feature_layers", "linear_layers")
    reads = [getattr(config, name) for name in names]
    versions = torch.__version__, transformers.__version__, model.device.type
    return digest(pixels, code_of(model), *versions, vision, reads, hash_of_weights(model.encoder))


def hash_of_weights(module: torch.nn.Module) -> str:
    """A hash of the names and values of all weights."""
    found = hashlib.sha256()
    for name, values in sorted(module.state_dict().items()):
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


@torch.no_grad()
def latents_of_files(model: VisionFlowModel, processor: VisionFlowProcessor, files: Sequence[Path]) -> torch.Tensor:
    """The mean of q(z, w | image) of image files, `(files, latent_dim + linear_dim)`, on the CPU.

    They are kept on disk by the bytes of the files and by all that the model makes them with.

    Raises:
        UserError: a file that is no image, or a cache that cannot be written.
    """
    keys = []
    for file in files:
        with reading(file):
            keys.append(hashlib.sha256(file.read_bytes()).digest())
    path_of = dict(zip(keys, files, strict=True))
    made_by = features_depend_on(model, pixels_depend_on(processor))
    heads = hash_of_weights(model.posterior_head), hash_of_weights(model.linear_head)
    folder = Path(HF_HOME, "visionflow", "stimuli") / f"latents-{digest(made_by, *heads)}"

    def encode(missing: Sequence[bytes]) -> Iterator[np.ndarray]:
        for batch in parts_of(missing, BATCH):
            pixels = processor(images=[open_image(path_of[key]) for key in batch])["pixel_values"].to(model.device)
            yield model.encode_image(pixels).mean.float().cpu().numpy()

    kept = KeptArrays(folder, "<f4", [model.config.latent_dim + model.config.linear_dim], path_of)
    keep(kept, list(path_of), "encoding the images", encode)
    make_room(folder.parent, [folder])
    return torch.from_numpy(kept.take(keys))


def code_of(part) -> list[str]:
    """The code of the model or the processor, of all that it imports from its folder, and of how images are opened."""
    folder = Path(inspect.getfile(type(part))).parent
    files = *sorted(folder.glob("*.py")), Path(inspect.getfile(open_image))
    return [file.read_text(encoding="utf-8") for file in files]


def digest(*values) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]
