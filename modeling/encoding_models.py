# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Encoding models: from a feature space to the voxels of a subject.

    fMRI of a subject  =  sum over models k of t_k model_k

The models of each feature space are

    ridge       ridge from all of it, its penalty by generalised cross-validation
    fields      the mean over many ridges that each read one place of the visual field, weighted by likelihood
    colours     ridge from the colours on a grid, which are a part of the first space

z has a ridge alone.

The weights t are fitted by non-negative least squares to what the models predict of held-out stimuli.

Source: Kay et al. 2008 for the energies, St-Yves & Naselaris 2018 and Klindt et al. 2017 for the fields.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from .feature_spaces import ENERGIES, LATENT, WORKING_SET, FeatureSpace, LatentSpace, in_parts
from .gabor_wavelets import CYCLES, GRID, ORIENTATIONS, SIZES, WAVELETS
from .ridge import FOLDS, Groups, Ridge, RidgePath, evenly, group_folds, likely_mean, stack

FEWEST_STIMULI = 6  # of fewer, none are held out to find the weights of the models
ASKED = 50_000  # held-out responses by which the weights of the models are fitted, about
ASKED_FOLDS = 3  # of the five folds, that are held out for it: each costs as much as a fit
FIELDS = (0.12, 0.25)  # sigma of a pooling field, as a share of the image's side


@dataclass
class Prediction:
    """What one encoding model predicts of all stimuli of its feature space, and by which linear map.

    Attributes:
        fmri (`torch.Tensor` of shape `(stimuli, voxels)`)
        times: `(voxels, k)` to `(channels * places, k)`, the map's weights times a matrix. The weights themselves,
            `(channels * places, voxels)`, would fill memory.
        of_scores: whether the map reads the space's scores instead of its maps; `times` then gives `(components, k)`.
    """

    fmri: torch.Tensor
    times: Callable[[torch.Tensor], torch.Tensor]
    of_scores: bool = False


class Encoding:
    """The encoding models of one subject from one feature space, fitted to its mean response to each of some stimuli.

    Args:
        rows (`torch.Tensor` of shape `(stimuli,)`): their places in the maps.
        fmri (`torch.Tensor` of shape `(stimuli, voxels)`): standardised.

    Attributes:
        models: functions that give the `Prediction` of some voxels, by their name.
    """

    def __init__(self, space: FeatureSpace | LatentSpace, rows: torch.Tensor, fmri: torch.Tensor):
        self.space, self.rows, self.fmri = space, rows, fmri
        self.models = {space.name: self.ridge}
        if space.name != LATENT:
            self.models[f"fields of {space.name}"] = self.fields
        read = {space.name: space.scores[rows]}
        if space.name == ENERGIES:
            self.models = {"colours": self.colours, **self.models}
            read["colours"] = self._colours(rows)
        paths = {name: RidgePath(features, fmri[:, :: evenly(fmri.shape[1])]) for name, features in read.items()}
        self.penalties = {name: path.best_penalty() for name, path in paths.items()}
        self.eigen = {name: path.eigen for name, path in paths.items()}
        self.field_groups: list[tuple[slice, torch.Tensor, Groups]] = []  # channels, places' weights, what is read

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
            return weights.flatten(0, 1)

        return Prediction(ridge.predict(self._colours(slice(None))), times)

    def ridge(self, voxels: slice) -> Prediction:
        """Ridge from the whole feature space."""
        ridge = self.fit_ridge(voxels)
        return Prediction(ridge.predict(self.space.scores), lambda matrix: ridge.weights @ matrix, of_scores=True)

    def fit_ridge(self, voxels: slice) -> Ridge:
        """Ridge from the scores of the feature space."""
        return self._ridge(self.space.name, self.space.scores[self.rows], voxels)

    def fields(self, voxels: slice) -> Prediction:
        """For each voxel the mean over all fields and penalties, by their likelihood."""
        space, responses = self.space, self.fmri[:, voxels]
        if not self.field_groups:
            longer = max(len(space.scores), responses.shape[1])
            self.field_groups = [
                (channels, some, Groups(partial(pooled, space, self.rows, channels, some)))
                for channels, places in pooling_fields(space)
                for some in places.split(max(1, WORKING_SET // (len(space.read[channels]) * longer)))
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
            weights = weights if space.turn is None else torch.einsum("ck,kpd->cpd", space.turn, weights)
            return weights.flatten(0, 1)

        return Prediction(fmri, times)

    def _ridge(self, name: str, features: torch.Tensor, voxels: slice) -> Ridge:
        return RidgePath(features, self.fmri[:, voxels], self.eigen[name]).solve(self.penalties[name])

    def _colours(self, rows: torch.Tensor | slice) -> torch.Tensor:
        return self.space.values[WAVELETS:, rows].float().transpose(0, 1).flatten(1)


def pooled(space: FeatureSpace, rows: torch.Tensor | slice, channels: slice, places: torch.Tensor) -> torch.Tensor:
    """What fields, by their weights of the places, read of the channels of some stimuli, `(fields, rows, channels)`."""
    read = [part @ places.T for part in in_parts(space.read[channels], rows)]
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


def stacking_weights(encodings: list[Encoding], seed: int) -> tuple[dict[str, float], list[float], float]:
    """Weights of the encoding models that predict held-out stimuli best.

    They are common to all voxels; of many voxels some stand for all. With fewer than 6 stimuli none are held out, and
    ridge from the first space gets all the weight.

    Args:
        encodings: of one subject, from each feature space.

    Returns:
        The weights by the models' names; those of the ridges from the spaces alone, without fields; and the squared
        error with the former as a share of that with the latter, where it is smaller.
    """
    rows, fmri = encodings[0].rows, encodings[0].fmri
    names, ridges = [name for one in encodings for name in one.models], [one.space.name for one in encodings]
    first = ridges[0]
    if len(rows) < FEWEST_STIMULI:
        return {name: float(name == first) for name in names}, [float(name == first) for name in ridges], 1.0
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
    alone = [columns[names.index(name)] for name in ridges]
    weights, of_ridges, errors = stack(columns, targets), stack(alone, targets), []
    for chosen, some, place in ((weights, columns, names.index(first)), (of_ridges, alone, 0)):
        if not chosen.any():  # nothing predicts held-out stimuli
            chosen[place] = 1
        left = targets - sum(t * one for t, one in zip(chosen.tolist(), some, strict=True))
        errors.append(left.square().sum())
    share = float((errors[0] / errors[1].clamp(min=1e-12)).clamp(1e-3, 1))
    return dict(zip(names, weights.tolist(), strict=True)), of_ridges.tolist(), share
