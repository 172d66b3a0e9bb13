# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The linear part of the latent: encoding models from feature spaces to voxels, and their main components.

    fMRI of a subject  =  sum over models k of t_k model_k

The feature spaces are the Gabor energies and colours of an image, and the maps of each of `config.linear_layers` of the
encoder. The models of each space are

    ridge       ridge from all of it, its penalty by generalised cross-validation
    fields      the mean over many ridges that each read one place of the visual field, weighted by likelihood
    colours     ridge from the colours on a grid, which are a part of the first space

The weights t are fitted by non-negative least squares to what the models predict of held-out stimuli. The principal
components of what they predict, over all subjects, become the latent's linear dimensions w.

Source: Kay et al. 2008 for the energies, St-Yves & Naselaris 2018 and Klindt et al. 2017 for the fields.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from transformers.utils import logging

from .alignment import image_latents
from .augmentation import FEW_STIMULI
from .feature_spaces import ENERGIES, FeatureSpace, feature_spaces, in_parts
from .gabor_wavelets import CYCLES, GRID, ORIENTATIONS, SIZES, WAVELETS
from .ridge import (
    BLOCK,
    FOLDS,
    WORKING_SET,
    Groups,
    Ridge,
    RidgePath,
    evenly,
    fit_ridge,
    group_folds,
    held_out_predictions,
    likely_mean,
    stack,
)
from .shared_fit import Processes
from .trials import Trials

logger = logging.get_logger(__name__)

FEWEST_STIMULI = 6  # the least from which folds within folds can be made
MOST_STIMULI = 8000  # shared out among the subjects
ASKED = 50_000  # held-out responses by which the weights of the models are fitted, about
ASKED_FOLDS = 3  # of the five folds, that are held out for it: each costs as much as a fit
MOST_WEIGHTS = 64_000_000  # of the fields of a block of voxels
FIELDS = (0.12, 0.25)  # sigma of a pooling field, as a share of the image's side
LEAST_WEIGHT = 1e-3  # of a voxel that is not predicted


@dataclass
class Prediction:
    """What one encoding model predicts of all stimuli of its feature space, and by which linear map.

    Attributes:
        fmri (`torch.Tensor` of shape `(stimuli, voxels)`)
        times: `(voxels, k)` to `(channels, places, k)`, the map's weights times a matrix. The weights themselves,
            `(channels, places, voxels)`, would fill memory.
    """

    fmri: torch.Tensor
    times: Callable[[torch.Tensor], torch.Tensor]


class Encoding:
    """The encoding models of one subject from one feature space, fitted to its mean response to each of some stimuli.

    Args:
        rows (`torch.Tensor` of shape `(stimuli,)`): their places in the maps.
        fmri (`torch.Tensor` of shape `(stimuli, voxels)`): standardised.

    Attributes:
        models: functions that give the `Prediction` of some voxels, by their name.
    """

    def __init__(self, space: FeatureSpace, rows: torch.Tensor, fmri: torch.Tensor):
        self.space, self.rows, self.fmri = space, rows, fmri
        self.models = {space.name: self.ridge, f"fields of {space.name}": self.fields}
        read = {space.name: space.scores[rows]}
        if space.name == ENERGIES:
            self.models = {"colours": self.colours, **self.models}
            read["colours"] = self._colours(rows)
        paths = {name: RidgePath(features, fmri[:, :: evenly(fmri.shape[1])]) for name, features in read.items()}
        self.penalties = {name: path.best_penalty() for name, path in paths.items()}
        self.eigen = {name: path.eigen for name, path in paths.items()}
        self.field_groups: list[
            tuple[slice, torch.Tensor, Groups]
        ] = []  # channels, weights of the places, what they read

    @property
    def field_weights(self) -> int:
        """How many weights the fields have for each voxel."""
        return sum(len(places) * len(self.space.read[channels]) for channels, places in pooling_fields(self.space))

    def colours(self, voxels: slice) -> Prediction:
        """Ridge from the colours."""
        ridge = self._ridge("colours", self._colours(self.rows), voxels)

        def times(matrix: torch.Tensor) -> torch.Tensor:
            weights = matrix.new_zeros(*self.space.mean.shape, matrix.shape[1])
            weights[WAVELETS:] = (ridge.weights @ matrix).unflatten(0, (-1, GRID**2))
            return weights

        return Prediction(ridge.predict(self._colours(slice(None))), times)

    def ridge(self, voxels: slice) -> Prediction:
        """Ridge from the whole feature space."""
        ridge = self._ridge(self.space.name, self.space.scores[self.rows], voxels)
        return Prediction(ridge.predict(self.space.scores), lambda matrix: self.space.of_scores(ridge.weights @ matrix))

    def fields(self, voxels: slice) -> Prediction:
        """For each voxel the mean over all fields and penalties, by their likelihood."""
        space, responses = self.space, self.fmri[:, voxels]
        if not self.field_groups:
            chunk = max(1, WORKING_SET // responses.numel())
            self.field_groups = [
                (channels, some, Groups(partial(pooled, space, self.rows, channels, some)))
                for channels, places in pooling_fields(space)
                for some in places.split(chunk)
            ]
        ridges = likely_mean([groups for *_, groups in self.field_groups], responses)
        fmri, used = responses.new_zeros(len(space.scores), responses.shape[1]), []
        for (channels, places, _), ridge in zip(self.field_groups, ridges, strict=True):
            if ridge is not None:
                read = pooled(space, slice(None), channels, places)
                fmri += torch.einsum("fsc,fcv->sv", read, ridge.weights) + ridge.intercept.sum(0)
                used.append((channels, places, ridge.weights))

        def times(matrix: torch.Tensor) -> torch.Tensor:
            weights = matrix.new_zeros(*space.read.shape[::2], matrix.shape[1])
            for channels, places, own in used:
                weights[channels] += torch.einsum("fp,fck->cpk", places, own @ matrix)
            return weights if space.turn is None else torch.einsum("ck,kpd->cpd", space.turn, weights)

        return Prediction(fmri, times)

    def _ridge(self, name: str, features: torch.Tensor, voxels: slice) -> Ridge:
        return RidgePath(features, self.fmri[:, voxels], self.eigen[name]).solve(self.penalties[name])

    def _colours(self, rows: torch.Tensor | slice) -> torch.Tensor:
        return self.space.values[WAVELETS:, rows].float().transpose(0, 1).flatten(1)


def pooled(space: FeatureSpace, rows: torch.Tensor | slice, channels: slice, places: torch.Tensor) -> torch.Tensor:
    """What fields, by their weights of the places, read of the channels of some stimuli, `(fields, rows, channels)`."""
    read = [part[:, rows] @ places.T for part in in_parts(space.read[channels])]
    return torch.cat(read).permute(2, 1, 0)


def pooling_fields(space: FeatureSpace) -> Iterator[tuple[slice, torch.Tensor]]:
    """Families of fields: the channels that they read, and each one's weights of the places, `(fields, places)`.

    Gaussians of places with all channels; of the energies also single places with the energies of one size.
    """
    grid, device = space.grid, space.values.device
    centres = torch.arange(grid, device=device)
    if space.name == ENERGIES:
        of_size = len(CYCLES) * ORIENTATIONS
        inner = centres[1:-1]
        single = torch.eye(grid**2, device=device).unflatten(0, (grid, grid))[inner][:, inner].flatten(0, 1)
        for number in range(len(SIZES)):
            yield slice(number * of_size, (number + 1) * of_size), single
        centres = inner[::2]
    place = (torch.arange(grid, device=device) + 0.5) / grid
    for sigma in FIELDS:
        near = torch.exp(-((place - place[centres, None]) ** 2) / (2 * sigma**2))
        near = near / near.sum(1, keepdim=True)
        yield slice(0, len(space.read)), torch.einsum("ap,bq->abpq", near, near).flatten(2).flatten(0, 1)


@torch.no_grad()
def fit_encoding(
    model, trials: Trials, stimuli, seed: int, processes: Processes | None = None
) -> dict[str, torch.Tensor]:
    """Fit the maps from the latent to the voxels of all subjects, and the head of the latent's linear dimensions.

    Voxels are predicted from the linear dimensions alone. From the learned ones only a model without linear dimensions
    predicts them, or one of fewer than 6 stimuli.

    Args:
        stimuli: as in `refit.RowImages`.
        seed: which stimuli the encoding models are fitted to where there are more than 8,000, and which are held out to
            find their weights.
        processes: that share the subjects. Each one fits the maps of its own, and the common head.

    Returns:
        For each subject of this process a weight for each voxel, `(voxels,)`, of mean square 1: its correlation, 0
        where negative, with what ridge from the Gabor energies predicts of held-out stimuli. With many voxels and few
        trials most voxels hold no signal. Over fewer than 50 stimuli a correlation says too little of a voxel: all
        weights are 1.
    """
    names, processes = trials.subjects, processes or Processes()
    chosen = {name: trials.some_stimuli(name, MOST_STIMULI // len(names), seed) for name in names}
    distinct = list(dict.fromkeys(stimulus for own in chosen.values() for stimulus in own))
    place = {stimulus: row for row, stimulus in enumerate(distinct)}
    use_maps = model.config.linear_dim > 0 and min(map(len, chosen.values())) >= FEWEST_STIMULI
    spaces = feature_spaces(model, stimuli, distinct) if use_maps else []
    components = Components(spaces, model.config.linear_dim)
    maps, voxel_weights = {}, {}
    for name in processes.own(names):
        own = chosen[name] if use_maps else list(dict.fromkeys(trials.stimulus_ids(name)))
        fmri = trials.mean_responses(name, own).to(model.device)
        if use_maps:
            rows = torch.tensor([place[stimulus] for stimulus in own], device=model.device)
            encodings = [Encoding(space, rows, fmri) for space in spaces]
            weights, left = trust(encodings, seed)
            told = ", ".join(f"{model} {t:.2f}" for model, t in weights.items())
            logger.info(f"{name}: weights of the encoding models: {told}")
            components.add(name, encodings, weights)
            read, penalty = spaces[0].scores[rows], encodings[0].penalties[spaces[0].name]
        else:
            learned = image_latents(model, stimuli, own).learned.mean
            read, left = model.latent_to_fmri.read(learned, learned[:, :0]), 1.0
            ridge = fit_ridge(read, fmri, own)
            maps[name], penalty = (ridge.weights, ridge.intercept), ridge.penalty
        expected = held_out_predictions(penalty, read, fmri, own)
        model.set_noise(name, left * trials.squared_errors(name, own, expected))
        few = len(own) < FEW_STIMULI
        voxel_weights[name] = fmri.new_ones(fmri.shape[1]) if few else reliability(expected, fmri)
    if use_maps:
        components.join(processes)
        maps = components.put_head(model)
    else:
        model.linear_head.weight.zero_()
        model.linear_head.bias.zero_()
    for name, (weights, intercept) in maps.items():
        voxel_map = model.latent_to_fmri.voxel_maps[model.config.subjects.index(name)]
        voxel_map.weight.zero_()
        read_dims = slice(-len(weights), None) if use_maps else slice(len(weights))
        voxel_map.weight[:, read_dims] = weights.T
        voxel_map.bias.copy_(intercept)
    return voxel_weights


def reliability(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """max(r, 1e-3) of each voxel, `(voxels,)`, r being over stimuli; scaled to mean square 1."""
    predicted, measured = predicted - predicted.mean(0), measured - measured.mean(0)
    norms = (predicted.square().sum(0) * measured.square().sum(0)).sqrt()
    weights = ((predicted * measured).sum(0) / norms.clamp(min=1e-12)).clamp(min=LEAST_WEIGHT)
    return weights / weights.square().mean().sqrt()


def trust(encodings: list[Encoding], seed: int) -> tuple[dict[str, float], float]:
    """Weights of the encoding models that predict held-out stimuli best.

    They are common to all voxels; of many voxels some stand for all.

    Args:
        encodings: of one subject, from each feature space.

    Returns:
        The weights by the models' names, and the squared error with them as a share of that of ridge from the first
        space, where it is smaller.
    """
    rows, fmri = encodings[0].rows, encodings[0].fmri
    enough = min(len(fmri), 250)
    voxels = max(100, ASKED // enough)
    fmri = fmri[:, :: max(1, fmri.shape[1] // voxels)]
    everything = slice(0, fmri.shape[1])
    predicted, measured = {}, []
    for train, test in group_folds(rows.tolist(), FOLDS, seed)[:ASKED_FOLDS]:
        level = fmri[train].mean(0)
        for encoding in encodings:
            for name, model in Encoding(encoding.space, rows[train], fmri[train]).models.items():
                predicted.setdefault(name, []).append(model(everything).fmri[rows[test]] - level)
        measured.append(fmri[test] - level)
        if sum(map(len, measured)) >= enough:
            break
    columns, targets = [torch.cat(one) for one in predicted.values()], torch.cat(measured)
    weights = stack(columns, targets)
    first = list(predicted).index(encodings[0].space.name)
    if not weights.any():  # nothing predicts held-out stimuli
        weights[first] = 1
    left = targets - sum(t * one for t, one in zip(weights.tolist(), columns, strict=True))
    alone = (targets - columns[first]).square().sum()
    share = float((left.square().sum() / alone.clamp(min=1e-12)).clamp(1e-3, 1))
    return dict(zip(predicted, weights.tolist(), strict=True)), share


class Components:
    """The main components of what the encoding models predict, subject by subject and block by block of voxels.

        predicted - mean  ~  scores readout        scores  =  sum over feature spaces of (maps - mean) head

    The predictions of a block are reduced to their largest components, and these with those kept so far to the largest
    again, so that the predictions are never in memory for all voxels, and their linear maps for none.

    Source: Iwen & Ong 2016, A distributed and incremental SVD algorithm for agglomerative data analysis.
    """

    def __init__(self, spaces: list[FeatureSpace], most: int):
        self.spaces, self.most = spaces, most
        self.scores = spaces[0].mean.new_zeros(len(spaces[0].scores), 0) if spaces else torch.zeros(0, 0)
        self.heads = [space.mean.new_zeros(space.mean.numel(), 0) for space in spaces]
        self.readouts: list[tuple[str, torch.Tensor, torch.Tensor]] = []  # subject, (components, voxels), mean

    def add(self, subject: str, encodings: list[Encoding], shares: dict[str, float]) -> None:
        """The weighted predictions of one more subject, by an encoding from each feature space."""
        fmri = encodings[0].fmri
        block = max(1, min(BLOCK, MOST_WEIGHTS // sum(encoding.field_weights for encoding in encodings)))
        for start in range(0, fmri.shape[1], block):
            voxels = slice(start, min(start + block, fmri.shape[1]))
            predictions = [
                (place, shares[name], model(voxels))
                for place, encoding in enumerate(encodings)
                for name, model in encoding.models.items()
                if shares[name]
            ]
            predicted = sum(share * one.fmri for _, share, one in predictions)
            scores, readout = self._largest(predicted - predicted.mean(0))
            kept = self.scores.shape[1]
            self.scores, turn = self._largest(torch.cat([self.scores, scores], dim=1))
            self.heads = [head @ turn[:, :kept].T for head in self.heads]
            readout = turn[:, kept:] @ readout
            for place, share, one in predictions:
                self.heads[place] += one.times(share * readout.T).flatten(0, 1)
            self.readouts = [(name, turn[:, :kept] @ own, mean) for name, own, mean in self.readouts]
            self.readouts.append((subject, readout, predicted.mean(0)))

    def join(self, processes: Processes) -> None:
        """Make one set of components of those that several processes have, each of its own subjects."""
        if processes.count == 1:
            return
        parts = processes.gather(self.scores.cpu())
        found = processes.of_first(lambda: self._largest(torch.cat(parts, dim=1)))
        self.scores, turn = (one.to(self.scores.device) for one in found)
        turn = turn.split([part.shape[1] for part in parts], dim=1)[processes.rank]
        self.heads = [head @ turn.T for head in self.heads]
        for head in self.heads:
            processes.add_up(head)
        self.readouts = [(name, turn @ own, mean) for name, own, mean in self.readouts]

    def put_head(self, model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Put the components, each of variance 1 over the stimuli, into the model's linear head; unused ones are zero.

        Returns:
            For each subject the weights `(linear_dim, voxels)` and the intercept `(voxels,)` that read them.
        """
        sizes = self.scores.norm(dim=0)
        kept = int((sizes > max(1e-6 * len(self.scores), 1e-5 * float(sizes[:1].sum()))).sum())  # the rest is rounding
        spread = sizes[:kept] / len(self.scores) ** 0.5
        unused = (0, model.config.linear_dim - kept)
        heads, bias = [], 0
        for space, head in zip(self.spaces, self.heads, strict=True):
            head = head[:, :kept] / spread
            bias = bias - space.mean.flatten() @ head
            head = head / space.scale.repeat_interleave(space.grid**2)[:, None]
            bias = bias - space.centre.repeat_interleave(space.grid**2) @ head
            heads.append(head)
        model.linear_head.weight.copy_(torch.nn.functional.pad(torch.cat(heads), unused).T)
        model.linear_head.bias.copy_(torch.nn.functional.pad(bias, unused))
        readouts = {}
        for subject in dict.fromkeys(name for name, *_ in self.readouts):
            own = [(readout[:kept] * spread[:, None], mean) for name, readout, mean in self.readouts if name == subject]
            weights, level = (torch.cat(parts, dim=-1) for parts in zip(*own, strict=True))
            readouts[subject] = torch.nn.functional.pad(weights.T, unused).T, level
        return readouts

    def _largest(self, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, sizes, readout = torch.linalg.svd(columns, full_matrices=False)
        return (scores * sizes)[:, : self.most], readout[: self.most]
