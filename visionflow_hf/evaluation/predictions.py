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
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from visionflow_hf.corpus.responses import Responses, images_of, responses_of
from visionflow_hf.corpus.schema import Corpus
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.baselines import FeatureRidgeBaseline, NearestBaseline, RidgeBaseline
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.ridge import fit_ridge
from visionflow_hf.stimuli import Stimuli

BATCH = 64
OF_VOXELS = ("noise_ceiling", "roi", "xyz", "place", "vertex", "fmri_mean", "fmri_std")
OWNED = re.compile(rf"((?:\w+/)?(?:fmri_predicted|fmri)|log_likelihood|{'|'.join(OF_VOXELS)})/(.+)", re.DOTALL)


def predict(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    corpus: Corpus,
    train: Dataset,
    test: Dataset,
    cache: str | os.PathLike | None = None,
) -> dict[str, np.ndarray]:
    """Predict both directions on `test`, with the model and with baselines fitted on `train`.

    Args:
        cache: folder that keeps the encoder's features, as in `Stimuli`.

    Raises:
        UserError: the model does not know a subject, or knows it with another number of voxels, or a subject has no
            trial in `train`.
    """
    check_subjects(processor, corpus, train, test)
    size = common_size(images_of(test, list(dict.fromkeys(test["stimulus_id"])))) or tuple(processor.image_size[::-1])
    stimuli = Stimuli(processor, [train, test], model, cache) if model.config.linear_layers else None
    subjects = tqdm(sorted(set(test["subject"])), desc="predicting", unit="subject")
    given = model, processor, corpus, train, test, size, stimuli
    return concatenate([_predict_subject(*given, subject) for subject in subjects])


def check_subjects(processor: VisionFlowProcessor, corpus: Corpus, train: Dataset, test: Dataset) -> None:
    """Raise `UserError` where a model cannot be compared with baselines on `test`, see `predict`."""
    for subject in sorted(set(test["subject"])):
        if subject not in processor.subjects:
            raise UserError(f"unknown subject {subject}: this model knows {', '.join(processor.subjects)}")
        known = len(processor.fmri_mean[subject])
        if known != corpus.subjects[subject]:
            raise UserError(f"{subject} has {corpus.subjects[subject]} voxels in the corpus and {known} in the model")
        if subject not in train["subject"]:
            raise UserError(f"{subject} has no trial in train, and the baselines need some: remove {subject} from test")


def _predict_subject(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    corpus: Corpus,
    train: Dataset,
    test: Dataset,
    size: tuple[int, int],
    stimuli: Stimuli | None,
    subject: str,
) -> dict[str, np.ndarray]:
    trials = responses_of(test, subject)
    average, counts = trials.averaged()
    pictures = images_of(test, average.stimulus_ids)
    images = to_array(pictures, processor, size)
    seen = responses_of(train, subject)
    seen_ids = list(dict.fromkeys(seen.stimulus_ids))
    seen_images = to_array(images_of(train, seen_ids), processor, size)
    baselines = {
        "ridge": RidgeBaseline(seen, seen_ids, seen_images, processor, subject, model.device),
        "nearest": NearestBaseline(seen, seen_ids, seen_images, processor, subject),
    }
    voxels = corpus.voxels_of(subject)

    predicted, image_latents = encode_images(model, processor, pictures, subject)
    part = {
        "stimulus_id": np.array(average.stimulus_ids),
        "subject": np.array([subject] * len(counts)),
        "trials": counts,
        "image": images,
        "mean_image/reconstruction": np.repeat(np.rint(seen_images.mean(0))[None].astype(np.uint8), len(counts), 0),
        "round_trip/reconstruction": decode_fmri(model, processor, predicted, subject, size)[0],
        f"fmri_predicted/{subject}": predicted,
        f"fmri_mean/{subject}": processor.fmri_mean[subject],
        f"fmri_std/{subject}": processor.fmri_std[subject],
        f"noise_ceiling/{subject}": voxels["noise_ceiling"].to_numpy(dtype=np.float64),
        f"roi/{subject}": np.array([",".join(name.replace(",", ";") for name in names) for names in voxels["roi"]]),
        "latent/image": image_latents,
    }
    if voxels[["x", "y", "z"]].notna().all(axis=None):
        part[f"xyz/{subject}"] = voxels[["x", "y", "z"]].to_numpy(dtype=np.float32)
    places = places_of(corpus, subject)
    if places is not None:
        part[f"place/{subject}"] = places
    if "vertex" in voxels and voxels["vertex"].notna().all():
        part[f"vertex/{subject}"] = voxels["vertex"].to_numpy(dtype=np.int32)
    for name, baseline in baselines.items():
        part[f"{name}/fmri_predicted/{subject}"] = baseline.predict_fmri(images)
    if stimuli is not None:
        of_layers = partial(layers_of, stimuli, model)
        baseline = FeatureRidgeBaseline(seen, seen_ids, of_layers(seen_ids), processor, subject)
        part[f"feature_ridge/fmri_predicted/{subject}"] = baseline.predict_fmri(of_layers(average.stimulus_ids))
        part |= _embeddings(model, processor, stimuli, seen, average, subject)
    place = model.config.subjects.index(subject)
    standard = [  # measured and predicted
        torch.from_numpy((values - processor.fmri_mean[subject]) / processor.fmri_std[subject]).float().to(model.device)
        for values in (average.fmri, predicted)
    ]
    with torch.no_grad():
        part[f"log_likelihood/{subject}"] = model.latent_to_fmri.log_likelihood(*standard, place).cpu().numpy()
    measured = {"": average.fmri}
    if counts.max() > 1:
        measured["single_trial/"] = trials.fmri
        position = {stimulus: row for row, stimulus in enumerate(average.stimulus_ids)}
        part["single_trial/row"] = np.array([position[stimulus] for stimulus in trials.stimulus_ids])
    for prefix, fmri in measured.items():
        reconstruction, latents = decode_fmri(model, processor, fmri, subject, size)
        part[f"{prefix}reconstruction"] = reconstruction
        for name, baseline in baselines.items():
            part[f"{prefix}{name}/reconstruction"] = baseline.reconstruct(fmri)
        part[f"{prefix}latent/fmri"] = latents
        part[f"{prefix}fmri/{subject}"] = fmri
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

    def standard(fmri: np.ndarray) -> torch.Tensor:
        return processor(fmri=fmri, subject=subject)["fmri"].to(model.device)

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


def layers_of(stimuli: Stimuli, model: VisionFlowModel, stimulus_ids: list[str]) -> Iterator[torch.Tensor]:
    """The features of each of `linear_layers`, `(stimuli, channels * 49)`, one layer after the other."""
    cells = model.feature_sizes[1] // sum(model.config.linear_widths)
    for features in stimuli.layers(stimulus_ids, [width * cells for width in model.config.linear_widths]):
        yield features.to(model.device)


def encode_images(
    model: VisionFlowModel, processor: VisionFlowProcessor, images: list[Image.Image], subject: str
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted fMRI (images, voxels) in the corpus's unit, and the means of q(z, w | image) (images, dimensions)."""
    fmri, latents = [], []
    for start in range(0, len(images), BATCH):
        batch = processor(images=images[start : start + BATCH], subject=subject).to(model.device)
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
    refine: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructions (rows, height, width[, 3]), uint8 of `size`, and means of q(z, w | fmri) (rows, dimensions)."""
    images, latents = [], []
    for start in range(0, len(fmri), BATCH):
        batch = processor(fmri=fmri[start : start + BATCH], subject=subject).to(model.device)
        with torch.no_grad():
            latents.append(model.encode_fmri(batch["fmri"], batch["subject_ids"]).mean.float().cpu().numpy())
            images += processor.post_process_images(model.reconstruct_image(**batch, refine=refine))
    return to_array(images, processor, size), np.concatenate(latents)


def common_size(pictures: list[Image.Image]) -> tuple[int, int] | None:
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


def concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate arrays of the same name along their rows; arrays that describe voxels are taken once per subject.

    If folds differ in the number of latent dimensions, the others are padded by zeros: no cosine within a fold changes.
    """
    together: dict[str, list[np.ndarray]] = {}
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
    return {name: np.concatenate(values) for name, values in together.items()}
