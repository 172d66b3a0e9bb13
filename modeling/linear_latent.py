# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The linear part of the latent: the main components of what the encoding models of all subjects predict.

    [w, 1] readout of a subject  ~  what its encoding models predict        w  =  a linear map of all feature spaces

The feature spaces are the Gabor energies and colours of an image, and the maps of each of `config.linear_layers` of the
encoder. Beside them z itself predicts voxels, as one more encoding model with a weight of its own; that part of the
prediction needs no component, since the maps to voxels read z.
"""

import numpy as np
import torch
from transformers.utils import logging

from .alignment import image_latents
from .augmentation import FEW_STIMULI
from .encoding_models import Encoding, stacking_weights
from .feature_spaces import LATENT, FeatureSpace, LatentSpace, feature_spaces
from .ridge import BLOCK, fit_ridge, held_out_predictions
from .shared_fit import Processes
from .trials import Trials

logger = logging.get_logger(__name__)

MOST_STIMULI = 8000
MOST_WEIGHTS = 64_000_000  # of the fields of a block of voxels
LEAST_WEIGHT = 1e-3  # of a voxel that is not predicted


@torch.no_grad()
def fit_encoding(
    model, trials: Trials, stimuli, seed: int, processes: Processes | None = None, from_learned: bool = False
) -> dict[str, torch.Tensor]:
    """Fit the maps from the latent to the voxels of all subjects, and the head of the latent's linear dimensions.

    Args:
        stimuli: as in `refit.RowImages`.
        seed: which stimuli the encoding models are fitted to where there are more than 8,000, and which are held out to
            find their weights.
        processes: that share the subjects. Each one fits the maps of its own, and the common head.
        from_learned: whether z predicts voxels beside the feature spaces. Only where gradient descent has seen no
            fMRI: otherwise z of a train stimulus knows the noise of its responses. A model without linear dimensions
            has z alone.

    Returns:
        For each subject of this process a weight for each voxel, `(voxels,)`, of mean square 1: its correlation, 0
        where negative, with what ridges from the feature spaces and z predict of held-out stimuli. With many voxels and
        few trials most voxels hold no signal. Over fewer than 50 stimuli a correlation says too little of a voxel: all
        weights are 1.
    """
    names, processes = trials.subjects, processes or Processes()
    chosen = choose_stimuli(trials, seed)
    distinct = list(dict.fromkeys(stimulus for own in chosen.values() for stimulus in own))
    place = {stimulus: row for row, stimulus in enumerate(distinct)}
    spaces = feature_spaces(model, stimuli, distinct) if model.config.linear_dim else []
    components = Components(spaces, model.config.linear_dim) if spaces else None
    predictors = list(spaces)
    if spaces and from_learned:
        predictors.append(LatentSpace(image_latents(model, stimuli, distinct, with_linear=False).learned.mean))
    maps, from_z, shift, voxel_weights = {}, {}, {}, {}
    for name in processes.own(names):
        own = chosen[name]
        fmri = trials.mean_responses(name, own).to(model.device)
        if spaces:
            rows = torch.tensor([place[stimulus] for stimulus in own], device=model.device)
            encodings = [Encoding(space, rows, fmri) for space in predictors]
            weights, of_ridges, left = stacking_weights(encodings, seed)
            told = ", ".join(f"{which} {t:.2f}" for which, t in weights.items())
            logger.info(f"{name}: weights of the encoding models: {told}")
            components.add(name, encodings[: len(spaces)], weights)
            expected, level = 0, fmri.mean(0)
            shift[name] = (1 - sum(weights.values())) * level  # the models are weighted about their mean
            if from_learned:
                ridge = encodings[-1].fit_ridge(slice(None))
                from_z[name] = weights[LATENT] * ridge.weights
                shift[name] += weights[LATENT] * ridge.intercept
            for one, t in zip(encodings, of_ridges, strict=True):
                if t:
                    which = one.space.name
                    known = one.penalties[which], one.space.scores[rows], fmri, own, one.eigen[which]
                    expected = expected + t * (held_out_predictions(*known) - level)
            expected = expected + level
        else:
            learned = image_latents(model, stimuli, own).learned.mean
            read, left = model.latent_to_fmri.read(learned, learned[:, :0]), 1.0
            ridge = fit_ridge(read, fmri, own)
            maps[name] = ridge.weights, ridge.intercept
            expected = held_out_predictions(ridge.penalty, read, fmri, own)
        # The fields lower the error of mean responses; the noise of single trials around these stays.
        gained = (1 - left) * (expected - fmri).square().mean(0).cpu()
        model.set_noise(name, trials.squared_errors(name, own, expected) - gained)
        few = len(own) < FEW_STIMULI
        voxel_weights[name] = fmri.new_ones(fmri.shape[1]) if few else reliability(expected, fmri)
    if spaces:
        components.join(processes)
        maps = components.put_head(model)
    for name, (weights, intercept) in maps.items():
        voxel_map = model.latent_to_fmri.voxel_maps[model.config.subjects.index(name)]
        voxel_map.weight.zero_()
        read_dims = slice(-len(weights), None) if spaces else slice(len(weights))
        voxel_map.weight[:, read_dims] = weights.T
        voxel_map.bias.copy_(intercept + shift.get(name, 0))
        if name in from_z:
            voxel_map.weight[:, : len(from_z[name])] = from_z[name].T
    return voxel_weights


def choose_stimuli(trials: Trials, seed: int) -> dict[str, list[str]]:
    """The stimuli of each subject that the encoding models are fitted to: of many, 8,000 are drawn for all subjects.

    A subject who saw few of these gets others: together as many as its part of 8,000.
    """
    stimuli, names = trials.stimuli, trials.subjects
    drawn = {stimuli[row] for row in np.random.default_rng(seed).permutation(len(stimuli))[:MOST_STIMULI].tolist()}
    chosen = {}
    for name in names:
        own = [stimulus for stimulus in dict.fromkeys(trials.stimulus_ids(name)) if stimulus in drawn]
        least = trials.some_stimuli(name, MOST_STIMULI // len(names), seed)
        chosen[name] = own if len(own) >= len(least) else least
    return chosen


def reliability(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """max(r, 1e-3) of each voxel, `(voxels,)`, r being over stimuli; scaled to mean square 1."""
    predicted, measured = predicted - predicted.mean(0), measured - measured.mean(0)
    norms = (predicted.square().sum(0) * measured.square().sum(0)).sqrt()
    weights = ((predicted * measured).sum(0) / norms.clamp(min=1e-12)).clamp(min=LEAST_WEIGHT)
    return weights / weights.square().mean().sqrt()


class Components:
    """The main components of what the encoding models predict, subject by subject and block by block of voxels.

        predicted - mean  ~  scores readout        scores  =  sum over feature spaces of (maps - mean) head

    The predictions of a block are reduced to their largest components, and these with those kept so far to the largest
    again, so that the predictions are never in memory for all voxels, and their linear maps for none.

    Args:
        most: how many are kept.

    Attributes:
        scores: of each stimulus, `(stimuli, components)`.
        heads: from each feature space to the scores, `(channels * places, components)`.
        score_heads: from the scores of each feature space, `(its components, components)`, which is added.
        readouts: for each block of voxels its subject, its readout `(components, voxels)` and its mean `(voxels,)`.

    Source: Iwen & Ong 2016, A distributed and incremental SVD algorithm for agglomerative data analysis.
    """

    def __init__(self, spaces: list[FeatureSpace], most: int):
        self.spaces, self.most = spaces, most
        self.scores = spaces[0].mean.new_zeros(len(spaces[0].scores), 0)
        self.heads = [space.mean.new_zeros(space.mean.numel(), 0) for space in spaces]
        self.score_heads = [space.mean.new_zeros(space.scores.shape[1], 0) for space in spaces]
        self.readouts: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def add(self, subject: str, encodings: list[Encoding], shares: dict[str, float]) -> None:
        """The weighted predictions of one more subject, by an encoding from each feature space."""
        fmri = encodings[0].fmri
        scale = fmri.shape[1] ** -0.5  # so that a subject with many voxels counts as much as one with few
        block = max(1, min(BLOCK, MOST_WEIGHTS // sum(encoding.field_weights for encoding in encodings)))
        for start in range(0, fmri.shape[1], block):
            voxels = slice(start, min(start + block, fmri.shape[1]))
            predictions = [
                (place, shares[name], model(voxels))
                for place, encoding in enumerate(encodings)
                for name, model in encoding.models.items()
                if shares[name]
            ]
            predicted = fmri.new_zeros(len(self.scores), fmri[:, voxels].shape[1])  # where z alone predicts
            for _, share, one in predictions:
                predicted += share * one.fmri
            scores, readout = self._largest((predicted - predicted.mean(0)) * scale)
            kept = self.scores.shape[1]
            self.scores, turn = self._largest(torch.cat([self.scores, scores], dim=1))
            self._turn(turn[:, :kept])
            readout = turn[:, kept:] @ readout
            for place, share, one in predictions:
                heads = self.score_heads if one.of_scores else self.heads
                heads[place] += one.times(share * scale * readout.T)
            self.readouts.append((subject, readout / scale, predicted.mean(0)))

    def join(self, processes: Processes) -> None:
        """Make one set of components of those that several processes have, each of its own subjects."""
        if processes.count == 1:
            return
        parts = processes.gather(self.scores.cpu())
        found = processes.of_first(lambda: self._largest(torch.cat(parts, dim=1)))
        self.scores, turn = (one.to(self.scores.device) for one in found)
        turn = turn.split([part.shape[1] for part in parts], dim=1)[processes.rank]
        self._turn(turn)
        for place, space in enumerate(self.spaces):  # the bases of the scores may differ between processes
            self.heads[place] = self.heads[place] + space.of_scores(self.score_heads[place]).flatten(0, 1)
            self.score_heads[place] = torch.zeros_like(self.score_heads[place])
            processes.add_up(self.heads[place])

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
        for space, head, score_head in zip(self.spaces, self.heads, self.score_heads, strict=True):
            head = (head[:, :kept] + space.of_scores(score_head[:, :kept]).flatten(0, 1)) / spread
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

    def _turn(self, turn: torch.Tensor) -> None:
        """From the components kept so far, of which the new ones are made by `turn`."""
        self.heads = [head @ turn.T for head in self.heads]
        self.score_heads = [head @ turn.T for head in self.score_heads]
        self.readouts = [(name, turn @ own, mean) for name, own, mean in self.readouts]

    def _largest(self, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, sizes, readout = torch.linalg.svd(columns, full_matrices=False)
        return (scores * sizes)[:, : self.most], readout[: self.most]
