"""Predictions of the model and the baselines as named arrays: the content of `predictions.npz`.

All figures of metrics.json are computed from these arrays. Rows are stimuli, subject by subject, each the average of
its repeats; `S` stands for the name of a subject.

    stimulus_id, subject, trials    (rows,)                 trials: the number of repeats averaged
    fold                            (rows,)                 crossvalidate only
    image, reconstruction           (rows, height, width[, 3]) uint8; reconstruction is from measured fMRI
    B/reconstruction                                        of a baseline B: ridge, nearest or mean_image
    feature_ridge/fmri_predicted/S                          of a model that reads layers of a pretrained encoder
    round_trip/reconstruction                               from the fMRI that the model predicts of the image
    fmri/S, fmri_predicted/S, B/fmri_predicted/S            (rows of S, voxels of S)
    fmri_mean/S, fmri_std/S                                 (voxels of S,), over train; evaluate only
    noise_ceiling/S                                         (voxels of S,), of a single corpus row, NaN where unknown
    roi/S                                                   (voxels of S,), the names of a voxel's ROIs, with commas
    xyz/S                                                   (voxels of S, 3), if the corpus has coordinates
    place/S                                                 (voxels of S, 3), in the volume of the scan, if known
    vertex/S                                                (voxels of S,), of a hemisphere of fsaverage, if known
    log_likelihood/S                                        (rows of S, images), of the response of each row for the
                                                            images of the rows of S, of the same fold; NaN beyond
    latent/image, latent/fmri                               (rows, latent_dim + linear_dim), posterior means
    embedding/image, embedding/fmri, ridge/embedding/fmri   (rows, width), of the image by a pretrained encoder, and as
                                                            the model and a ridge reconstruct it from measured fMRI

If stimuli have repeats, arrays whose names begin with `single_trial/` have one row per trial. `single_trial/row` holds
the row of each trial's stimulus among the averages, for arrays that depend on the stimulus only.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from visionflow_hf.corpus.responses import Responses, each_image_of, responses_of
from visionflow_hf.corpus.schema import Corpus
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.baselines import (
    Known,
    feature_ridge_to_fmri,
    mean_image,
    nearest_images,
    nearest_stimuli,
    ridge_to_fmri,
    ridge_to_pixels,
)
from visionflow_hf.evaluation.rows import Rows, one_above_the_other, write_rows
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.precision import without_tf32
from visionflow_hf.modeling.ridge import fit_ridge
from visionflow_hf.stimuli import Stimuli

BATCH = 64
OF_VOXELS = ("noise_ceiling", "roi", "xyz", "place", "vertex", "fmri_mean", "fmri_std")
OWNED = re.compile(rf"({'|'.join(OF_VOXELS)}|(?:\w+/)??(?:fmri_predicted|fmri|log_likelihood))/(.+)", re.DOTALL)


def predict(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    corpus: Corpus,
    train: Dataset,
    test: Dataset,
    folder: Path,
    cache: str | os.PathLike | None = None,
    size: tuple[int, int] | None = None,
    repeated: Collection[str] | None = None,
) -> dict[str, np.ndarray | Rows]:
    """Predict both directions on `test`, with the model and with baselines fitted on `train`.

    Args:
        folder: where images and responses are written, subject by subject; the result reads them from there.
        cache: folder that keeps pixels and the encoder's features, as in `Stimuli`.
        size: (width, height) in px at which images are compared; by default that of the images of `test`, or the
            model's where they differ.
        repeated: subjects whose single trials are predicted, too; by default those with repeats in `test`.

    Raises:
        UserError: the model does not know a subject, or knows it with another number of voxels, or a subject has no
            trial in `train`.
    """
    check_subjects(processor, corpus, train, test)
    size = size or common_size(each_image_of(test, list(dict.fromkeys(test["stimulus_id"]))))
    size = size or tuple(processor.image_size[::-1])
    stimuli = Stimuli(processor, [train, test], model if model.config.linear_layers else None, cache)
    subjects = tqdm(sorted(set(test["subject"])), desc="predicting", unit="subject")
    if repeated is None:
        repeated = subjects_with_repeats(test)
    given = model, processor, corpus, train, test, size, stimuli, repeated
    parts = []
    for subject in subjects:
        own = folder / str(len(parts))
        own.mkdir(parents=True)
        parts.append(_predict_subject(*given, subject, own))
    return concatenate(parts)


def subjects_with_repeats(rows: Dataset) -> set[str]:
    """The subjects who saw a stimulus more than once."""
    trials = Counter(zip(rows["subject"], rows["stimulus_id"], strict=True))
    return {subject for (subject, _), number in trials.items() if number > 1}


def check_subjects(processor: VisionFlowProcessor, corpus: Corpus, train: Dataset, test: Dataset) -> None:
    """Raise `UserError` where a model cannot be compared with baselines on `test`, see `predict`."""
    stimuli: dict[str, set[str]] = {}
    for subject, stimulus in zip(train["subject"], train["stimulus_id"], strict=True):
        stimuli.setdefault(subject, set()).add(stimulus)
    for subject in sorted(set(test["subject"])):
        if subject not in processor.subjects:
            raise UserError(f"unknown subject {subject}: this model knows {', '.join(processor.subjects)}")
        known = len(processor.fmri_mean[subject])
        if known != corpus.subjects[subject]:
            raise UserError(
                f"{subject} has {corpus.subjects[subject]} voxels in the corpus and {known} in the model: evaluate on "
                "a corpus with the voxels that the model was trained on"
            )
        number = len(stimuli.get(subject, ()))
        if number < 2:
            raise UserError(
                f"the train stimuli of {subject} number {number}, and the baselines need 2: remove {subject} from test"
            )


@without_tf32()
def _predict_subject(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    corpus: Corpus,
    train: Dataset,
    test: Dataset,
    size: tuple[int, int],
    stimuli: Stimuli,
    repeated: Collection[str],
    subject: str,
    folder: Path,
) -> dict[str, np.ndarray | Rows]:
    trials = responses_of(test, subject)
    average, counts = trials.averaged()
    names = average.stimulus_ids
    voxels = corpus.voxels_of(subject)
    part: dict[str, np.ndarray | Rows] = {
        "stimulus_id": np.array(names),
        "subject": np.array([subject] * len(counts)),
        "trials": counts,
        f"fmri_mean/{subject}": processor.fmri_mean[subject],
        f"fmri_std/{subject}": processor.fmri_std[subject],
        f"noise_ceiling/{subject}": voxels["noise_ceiling"].to_numpy(dtype=np.float64),
        f"roi/{subject}": np.array([",".join(name.replace(",", ";") for name in names) for names in voxels["roi"]]),
    }
    if voxels[["x", "y", "z"]].notna().all(axis=None):
        part[f"xyz/{subject}"] = voxels[["x", "y", "z"]].to_numpy(dtype=np.float32)
    places = places_of(corpus, subject)
    if places is not None:
        part[f"place/{subject}"] = places
    if "vertex" in voxels and voxels["vertex"].notna().all():
        part[f"vertex/{subject}"] = voxels["vertex"].to_numpy(dtype=np.int32)

    def keep(name: str, batches: Iterable[np.ndarray], rows: int = len(names)) -> None:
        part[name] = write_rows(folder / f"{len(part)}.npy", batches, rows)

    def resized(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for pixels in arrays:
            pixels = pixels[..., 0] if processor.num_channels == 1 else pixels
            for start in range(0, len(pixels), BATCH):
                yield to_array([Image.fromarray(one) for one in pixels[start : start + BATCH]], processor, size)

    standard = partial(in_standard_units, model, processor, subject)

    def decode_into(latents: list[np.ndarray], fmri: np.ndarray, refine: int | None = None) -> Iterator[np.ndarray]:
        for images, some in decoded(model, processor, fmri, subject, size, refine):
            latents.append(some)
            yield images

    keep("image", (to_array(some, processor, size) for some in batches_of(each_image_of(test, names))))
    predicted, part["latent/image"] = encode_images(model, processor, each_image_of(test, names), subject)
    keep(f"fmri_predicted/{subject}", [predicted])
    keep("round_trip/reconstruction", decode_into([], predicted, refine=0))  # the model would refine its own prediction
    place = model.config.subjects.index(subject)
    measured = {"": average.fmri}
    if subject in repeated:
        measured["single_trial/"] = trials.fmri
        position = {stimulus: row for row, stimulus in enumerate(names)}
        part["single_trial/row"] = np.array([position[stimulus] for stimulus in trials.stimulus_ids])
    of_images = standard(predicted)
    for prefix, fmri in measured.items():
        with torch.no_grad():
            likely = model.latent_to_fmri.log_likelihood(standard(fmri), of_images, place)
        part[f"{prefix}log_likelihood/{subject}"] = likely.cpu().numpy()
    del predicted, of_images
    for prefix, fmri in measured.items():
        latents: list[np.ndarray] = []
        keep(f"{prefix}reconstruction", decode_into(latents, fmri), len(fmri))
        part[f"{prefix}latent/fmri"] = np.concatenate(latents)
        keep(f"{prefix}fmri/{subject}", [fmri], len(fmri))

    known = Known(responses_of(train, subject), stimuli, processor, subject, model.device)
    for prefix, images in zip(measured, ridge_to_pixels(known, list(measured.values())), strict=True):
        keep(f"{prefix}ridge/reconstruction", resized(images), len(measured[prefix]))
    known.average_repeats()
    keep(f"ridge/fmri_predicted/{subject}", [ridge_to_fmri(known, names)])
    if model.config.linear_layers:
        cells = model.feature_sizes[1] // sum(model.config.linear_widths)
        widths = [width * cells for width in model.config.linear_widths]
        keep(f"feature_ridge/fmri_predicted/{subject}", [feature_ridge_to_fmri(known, names, widths)])
        part |= _embeddings(model, processor, stimuli, known.seen, average, subject)
    for prefix, fmri in measured.items():
        nearest = nearest_stimuli(known, fmri)
        shown, where = np.unique(nearest, return_inverse=True)
        images = each_image_of(train, [known.seen.stimulus_ids[row] for row in shown])
        name = f"{prefix}nearest/reconstruction"
        keep(name, (to_array(some, processor, size) for some in batches_of(images)), len(shown))
        part[name] = part[name].of(where)
    keep(f"nearest/fmri_predicted/{subject}", [known.seen.fmri[nearest_images(known, names)]])
    keep("mean_image/reconstruction", resized([mean_image(known)[None]]), 1)
    part["mean_image/reconstruction"] = part["mean_image/reconstruction"].of(np.zeros(len(names), dtype=int))
    return part


def _embeddings(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    stimuli: Stimuli,
    seen: Responses,
    average: Responses,
    subject: str,
) -> dict[str, np.ndarray]:
    """The embeddings of the images, reconstructed by the model, and by ridge from the train responses `seen`."""
    standard = partial(in_standard_units, model, processor, subject)
    train, shown = (embeddings_of(stimuli, model, one.stimulus_ids) for one in (seen, average))
    with torch.no_grad():
        ridge = fit_ridge(standard(seen.fmri), train, seen.stimulus_ids)
        batches = (average.fmri[at : at + BATCH] for at in range(0, len(average.fmri), BATCH))
        decoded = [
            model.reconstruct_embedding(**processor(fmri=one, subject=subject).to(model.device)) for one in batches
        ]
        arrays = {
            "embedding/image": shown,
            "embedding/fmri": torch.cat(decoded),
            "ridge/embedding/fmri": ridge.predict(standard(average.fmri)),
        }
    return {name: values.float().cpu().numpy() for name, values in arrays.items()}


def in_standard_units(
    model: VisionFlowModel, processor: VisionFlowProcessor, subject: str, fmri: np.ndarray
) -> torch.Tensor:
    """Responses in the raw unit as the processor standardises them, on the model's device; without the rest of a batch,
    which for many responses fills memory."""
    values = (fmri - processor.fmri_mean[subject]) / processor.fmri_std[subject]
    return torch.from_numpy(values).float().to(model.device)


@torch.no_grad()
def embeddings_of(stimuli: Stimuli, model: VisionFlowModel, stimulus_ids: list[str]) -> torch.Tensor:
    """The encoder's embedding of each stimulus, `(stimuli, width)`."""
    distinct = list(dict.fromkeys(stimulus_ids))
    parts = []
    for start in range(0, len(distinct), BATCH):
        features = stimuli.image_features(distinct[start : start + BATCH], with_linear=False)
        parts.append(model.embed_image(None, features.to(model.device)).float())
    place = {stimulus: row for row, stimulus in enumerate(distinct)}
    return torch.cat(parts)[[place[stimulus] for stimulus in stimulus_ids]]


def places_of(corpus: Corpus, subject: str) -> np.ndarray | None:
    """The place of each voxel in the subject's volume, array of shape (voxels, 3); None where it is not known."""
    grid = corpus.voxels.attrs.get("grids", {}).get(subject)
    voxels = corpus.voxels_of(subject)
    if grid is None or "place" not in voxels or voxels["place"].isna().any():
        return None
    try:
        return np.stack(np.unravel_index(voxels["place"].to_numpy(dtype=np.int64), grid["shape"]), axis=1)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the places of {subject} in voxels.parquet are not within its volume: {error}") from error


def batches_of(images: Iterable[Image.Image]) -> Iterator[list[Image.Image]]:
    images = iter(images)
    while batch := list(islice(images, BATCH)):
        yield batch


def encode_images(
    model: VisionFlowModel, processor: VisionFlowProcessor, images: Iterable[Image.Image], subject: str
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted fMRI (images, voxels) in the corpus's unit, and the means of q(z, w | image) (images, dimensions)."""
    fmri, latents = [], []
    for some in batches_of(images):
        batch = processor(images=some, subject=subject).to(model.device)
        with torch.no_grad():
            features, _ = model.extract_image_features(batch["pixel_values"])  # the pass of the encoder, once for both
            latents.append(model.encode_image(batch["pixel_values"], features).mean.float().cpu().numpy())
            fmri.append(model.predict_fmri(**batch, image_features=features).float().cpu().numpy())
    return np.concatenate(fmri), np.concatenate(latents)


def decode_fmri(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    fmri: np.ndarray,
    subject: str,
    size: tuple[int, int],
    refine: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructions (rows, height, width[, 3]), uint8 of `size`, and means of q(z, w | fmri) (rows, dimensions).

    Args:
        refine: gradient steps, as in `VisionFlowModel.reconstruct_image`.
    """
    images, latents = zip(*decoded(model, processor, fmri, subject, size, refine), strict=True)
    return np.concatenate(images), np.concatenate(latents)


def decoded(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    fmri: np.ndarray,
    subject: str,
    size: tuple[int, int],
    refine: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same in batches of rows."""
    for start in range(0, len(fmri), BATCH):
        batch = processor(fmri=fmri[start : start + BATCH], subject=subject).to(model.device)
        with torch.no_grad():
            latents = model.encode_fmri(batch["fmri"], batch["subject_ids"]).mean.float().cpu().numpy()
            images = processor.post_process_images(model.reconstruct_image(**batch, refine=refine))
        yield to_array(images, processor, size), latents


def common_size(pictures: Iterable[Image.Image]) -> tuple[int, int] | None:
    """(width, height) in px if all pictures have the same size, else None."""
    sizes = {picture.size for picture in pictures}
    return sizes.pop() if len(sizes) == 1 else None


def to_array(pictures: list[Image.Image], processor: VisionFlowProcessor, size: tuple[int, int]) -> np.ndarray:
    """uint8 array of shape (pictures, height, width[, 3]), grey for a grey model; `size` is (width, height) in px."""
    mode = "L" if processor.num_channels == 1 else "RGB"
    pictures = [picture.convert(mode) for picture in pictures]
    return np.stack(
        [
            np.asarray(picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR))
            for picture in pictures
        ]
    )


def owner(name: str) -> tuple[str, str | None]:
    """Kind and subject of an array of one subject, whose name may contain slashes; the subject is None for others."""
    found = OWNED.fullmatch(name)
    return (found[1], found[2]) if found else (name, None)


def methods(predictions: dict[str, np.ndarray], kind: str) -> dict[str, str]:
    """The methods that have a prediction of this kind from averaged repeats, each with the name of its array.

    The model comes first, the mean image last.

    Args:
        kind: `reconstruction`, or `fmri_predicted/S`.
    """
    names = [name for name in predictions if name.endswith(f"/{kind}") and not name.startswith("single_trial/")]
    names.sort(key=lambda name: name.startswith("mean_image/"))
    return {"model": kind} | {name.removesuffix(f"/{kind}"): name for name in names}


def concatenate(parts: list[dict[str, np.ndarray | Rows]]) -> dict[str, np.ndarray | Rows]:
    """Concatenate arrays of the same name along their rows; arrays that describe voxels are taken once per subject.

    If folds differ in the number of latent dimensions, the others are padded by zeros: no cosine within a fold changes.
    """
    together: dict[str, list[np.ndarray | Rows]] = {}
    rows = 0
    for part in parts:
        for name, values in part.items():
            if name.partition("/")[0] in OF_VOXELS and name in together:
                continue  # once per subject, also with several folds
            together.setdefault(name, []).append(values + rows if name == "single_trial/row" else values)
        rows += len(part["stimulus_id"])
    for name, arrays in together.items():
        beyond = {"latent/image": 0.0, "latent/fmri": 0.0, "log_likelihood": np.nan}
        kind = owner(name.removeprefix("single_trial/"))[0]
        if kind in beyond:
            widest = max(values.shape[1] for values in arrays)
            together[name] = [
                np.pad(values, ((0, 0), (0, widest - values.shape[1])), constant_values=beyond[kind])
                for values in arrays
            ]
    return {name: one_above_the_other(values) for name, values in together.items()}
