# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The two bridges between fMRI and the latent: linear maps of each subject, and an MLP that all subjects share."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from .latent_gaussian import Gaussian, LatentGaussian
from .precision import without_autocast
from .ridge import Ridge, eigh, fit_ridges

LEAST_NOISE = 1e-3  # of a voxel's variance
SHARED_NOISE = 0.8  # of the covariance of errors; the rest is taken for chance
MOST_ERRORS = 2000  # trials by which it is measured
MLP_SHARE = 0.5  # until `visionflow train` chooses it by held-out stimuli


class FmriToLatent(nn.Module):
    """The response of any subject to the posterior over the latent, q(z, w | fmri).

        h = W_subject fmri + b_subject        v = V_subject fmri + c_subject
        mean of z = h + mlp_share_subject MLP(h, v)        mean of w = v

    The MLP's correction starts at zero. It also gives the variance of z; that of w is the same for all responses.
    """

    def __init__(self, config):
        super().__init__()
        self.to_learned = nn.ModuleList(nn.Linear(voxels, config.latent_dim) for voxels in config.num_voxels)
        self.to_linear = nn.ModuleList(nn.Linear(voxels, config.linear_dim) for voxels in config.num_voxels)
        self.hidden = nn.Linear(config.latent_dim + config.linear_dim, config.bridge_hidden_size)
        self.head = nn.Linear(config.bridge_hidden_size, 2 * config.latent_dim)
        self.register_buffer("mlp_share", torch.full((len(config.num_voxels),), MLP_SHARE))  # trained, it would near 1
        self.linear_logvar = nn.Parameter(torch.zeros(config.linear_dim))
        self.voxel_dropout = nn.Dropout(config.voxel_dropout)
        self.dropout = nn.Dropout(config.bridge_dropout)

    def forward(self, fmri: torch.Tensor, subject_ids: torch.Tensor) -> LatentGaussian:
        """
        Args:
            fmri (`torch.Tensor` of shape `(batch, max_voxels)`):
                Standardised; subjects with fewer voxels are padded on the right.
            subject_ids (`torch.Tensor` of shape `(batch,)`): place of each row's subject; -1 for none, whose h and v
                are zero.
        """
        learned, linear = self.voxels_to_latent(fmri, subject_ids)
        known = subject_ids.clamp(min=0)
        return self.correct(learned, linear, self.mlp_share[known][:, None].to(learned.dtype))

    def voxels_to_latent(self, fmri: torch.Tensor, subject_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """h `(batch, latent_dim)` and v `(batch, linear_dim)`, what the linear maps alone make of responses."""
        most = max(voxel_map.in_features for voxel_map in self.to_learned)
        if fmri.shape[1] > most:
            raise ValueError(
                f"fmri has {fmri.shape[1]} voxels a row, the subjects of this model have {most} at most: prepare it "
                "with the model's processor"
            )
        fmri = self.voxel_dropout(nn.functional.pad(fmri, (0, most - fmri.shape[1])))
        learned = fmri.new_zeros(fmri.shape[0], self.head.out_features // 2)
        linear = fmri.new_zeros(fmri.shape[0], len(self.linear_logvar))
        for subject, rows, own in rows_by_subject(subject_ids, len(self.to_learned)):
            to_learned, to_linear = self.to_learned[subject], self.to_linear[subject]
            read = fmri[rows, : to_learned.in_features]
            learned[rows] = torch.where(own, to_learned(read).to(learned.dtype), learned[rows])  # autocast has its own
            linear[rows] = torch.where(own, to_linear(read).to(linear.dtype), linear[rows])
        return learned, linear

    def correct(self, learned: torch.Tensor, linear: torch.Tensor, share: torch.Tensor | float = 1.0) -> LatentGaussian:
        """q(z, w | fmri) from h and v, with a share of the MLP's correction, a number or `(batch, 1)`."""
        hidden = nn.functional.gelu(self.hidden(torch.cat([learned, linear], dim=-1)))
        correction = Gaussian.from_head(self.head(self.dropout(hidden)))
        return LatentGaussian(
            Gaussian(learned + share * correction.mean, correction.logvar),
            Gaussian(linear, self.linear_logvar.to(linear.dtype).expand_as(linear)),
        )

    @torch.no_grad()
    def fit(
        self,
        place: int,
        fmri: torch.Tensor,
        learned: torch.Tensor,
        linear: torch.Tensor,
        stimulus_ids: list[str],
        voxel_weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit the linear maps of the subject with this place by ridge regression on weighted voxels.

        Args:
            fmri (`torch.Tensor` of shape `(trials, voxels)`): standardised.
            learned (`torch.Tensor` of shape `(trials, latent_dim)`): mean of q(z | image) of each trial's image.
            linear (`torch.Tensor` of shape `(trials, linear_dim)`): mean of q(w | image).
            stimulus_ids: the stimulus of each trial.
            voxel_weights (`torch.Tensor` of shape `(voxels,)`): how much each voxel counts.

        Returns:
            Mean squared errors of z and of w on held-out stimuli, `(latent_dim,)` and `(linear_dim,)`.
        """
        ridges = fit_ridges(fmri * voxel_weights, [learned, linear], stimulus_ids)
        for own, ridge in zip((self.to_learned, self.to_linear), ridges, strict=True):
            put(own[place], Ridge(voxel_weights[:, None] * ridge.weights, ridge.intercept, ridge.penalty))
        return tuple(ridge.held_out_error for ridge in ridges)

    def add_subject(self, voxels: int) -> None:
        """Maps of one more subject, zero until they are fitted; the MLP, not trained on it, does not correct it."""
        self.to_learned.append(zeroed(nn.Linear(voxels, self.head.out_features // 2), self.hidden.weight))
        self.to_linear.append(zeroed(nn.Linear(voxels, len(self.linear_logvar)), self.hidden.weight))
        self.mlp_share = nn.functional.pad(self.mlp_share, (0, 1))

    def remove_subject(self, place: int) -> None:
        """Delete the maps of the subject with this place."""
        del self.to_learned[place], self.to_linear[place]
        self.mlp_share = self.mlp_share[others(place, len(self.mlp_share))]

    def order_subjects(self, places: list[int]) -> None:
        """Bring the maps into this order."""
        self.to_learned, self.to_linear = (
            nn.ModuleList(maps[place] for place in places) for maps in (self.to_learned, self.to_linear)
        )
        self.mlp_share = self.mlp_share[places]


class VoxelMap(nn.Linear):
    """[z, MLP(z), w] to the voxels of one subject, and the noise that these share, `noise_factors` `(rank, voxels)`."""

    def __init__(self, inputs: int, voxels: int, rank: int):
        super().__init__(inputs, voxels)
        self.register_buffer("noise_factors", torch.zeros(rank, voxels))


class LatentToFmri(nn.Module):
    """Latent to the response of any subject: fmri = W_subject [z, MLP(z), w] + b_subject + noise.

        cov of the noise = noise_factors' noise_factors + a diagonal, with exp(noise_logvar) on the diagonal of the sum

    `noise_logvar` `(subjects, max_voxels)` is the logarithm of the variance of single trials around the prediction, in
    standardised units, which training measures on held-out stimuli.
    """

    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config.latent_dim)
        self.hidden = nn.Linear(config.latent_dim, config.bridge_hidden_size)
        self.dropout = nn.Dropout(config.bridge_dropout)
        width = config.latent_dim + config.bridge_hidden_size + config.linear_dim
        self.voxel_maps = nn.ModuleList(VoxelMap(width, voxels, config.noise_rank) for voxels in config.num_voxels)
        self.noise_rank = config.noise_rank
        self.noise_logvar = nn.Parameter(torch.zeros(len(config.num_voxels), max(config.num_voxels, default=0)))

    def forward(self, learned: torch.Tensor, linear: torch.Tensor, subject_ids: torch.Tensor) -> torch.Tensor:
        """
        Args:
            learned (`torch.Tensor` of shape `(batch, latent_dim)`): z.
            linear (`torch.Tensor` of shape `(batch, linear_dim)`): w.
            subject_ids (`torch.Tensor` of shape `(batch,)`): place of each row's subject; -1 gives zeros.

        Returns:
            `(batch, max_voxels)`, as wide as the subject with the most voxels needs; standardised, and zero beyond a
            subject's own voxels.
        """
        read = self.read(learned, linear)
        fmri = learned.new_zeros(learned.shape[0], self.noise_logvar.shape[1])
        for subject, rows, own in rows_by_subject(subject_ids, len(self.voxel_maps)):
            voxel_map = self.voxel_maps[subject]
            voxels = slice(voxel_map.out_features)
            fmri[rows, voxels] = torch.where(own, voxel_map(read[rows]).to(fmri.dtype), fmri[rows, voxels])
        return fmri

    def noise_std(self, subject_ids: torch.Tensor) -> torch.Tensor:
        """Standard deviation of single trials around their prediction, `(batch, max_voxels)`, standardised."""
        std = (at_hand(self, "noise_logvar") / 2).exp()
        own = [torch.arange(std.shape[1], device=std.device) < voxel_map.out_features for voxel_map in self.voxel_maps]
        return (std * torch.stack(own))[subject_ids]

    @torch.no_grad()
    def set_shared_noise(self, place: int, errors: torch.Tensor) -> None:
        """Take `errors` `(trials, voxels)` of predictions for the noise that the voxels of one subject share.

        The errors are scaled to the variances in `noise_logvar`, since those of fitted trials are too small. Of their
        covariance 80 % is taken, along its main directions; the rest of each variance is the voxel's own.
        """
        voxel_map = self.voxel_maps[place]
        errors = errors[:: -(-len(errors) // MOST_ERRORS)]
        std = (self.noise_logvar[place, : errors.shape[1]] / 2).exp()
        errors = errors * (std / errors.square().mean(0).sqrt().clamp(min=1e-6)) / len(errors) ** 0.5
        values, vectors = eigh(errors @ errors.T)
        rank = min(self.noise_rank, len(values))
        voxel_map.noise_factors.zero_()
        voxel_map.noise_factors[:rank] = SHARED_NOISE**0.5 * vectors[:, len(values) - rank :].T @ errors

    def log_likelihood(self, fmri: torch.Tensor, predicted: torch.Tensor, place: int) -> torch.Tensor:
        """log N(fmri_i; predicted_j, cov of the subject's noise), `(responses, images)`.

        Args:
            fmri (`torch.Tensor` of shape `(responses, voxels)`): standardised.
            predicted (`torch.Tensor` of shape `(images, voxels)`): standardised.
        """
        with without_autocast(fmri):
            factors = at_hand(self.voxel_maps[place], "noise_factors").float()
            variance = at_hand(self, "noise_logvar")[place, : factors.shape[1]].float().exp()
            own = (variance - factors.square().sum(0)).clamp(min=(1 - SHARED_NOISE) * variance)
            level = predicted.float().mean(0).detach()  # the smaller the numbers, the more exact their squares
            fmri, predicted = ((values.float() - level) / own.sqrt() for values in (fmri, predicted))
            factors = factors / own.sqrt()
            rank = torch.eye(len(factors), device=factors.device)
            root = torch.linalg.cholesky(rank + factors @ factors.T)  # of the matrix in Woodbury's identity
            fmri_shared, predicted_shared = (
                torch.linalg.solve_triangular(root, factors @ values.T, upper=False).T for values in (fmri, predicted)
            )
            distance = squared_distances(fmri, predicted) - squared_distances(fmri_shared, predicted_shared)
            log_volume = own.log().sum() + 2 * root.diagonal().log().sum() + len(own) * math.log(2 * math.pi)
            return -(distance + log_volume) / 2

    def read(self, learned: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        """[z, MLP(z), w], which the voxel maps read, `(batch, latent_dim + bridge_hidden_size + linear_dim)`."""
        hidden = self.dropout(nn.functional.gelu(self.hidden(self.norm(learned))))
        return torch.cat([learned, hidden, linear], dim=-1)

    def add_subject(self, voxels: int, width: int) -> None:
        """A map of one more subject from `width` numbers, zero until it is fitted, and noise of variance 1."""
        self.voxel_maps.append(zeroed(VoxelMap(width, voxels, self.noise_rank), self.hidden.weight))
        more = max(voxels - self.noise_logvar.shape[1], 0)
        self.noise_logvar = nn.Parameter(nn.functional.pad(self.noise_logvar, (0, more, 0, 1)))

    def remove_subject(self, place: int) -> None:
        """Delete the map and the noise of the subject with this place."""
        del self.voxel_maps[place]
        most = max((voxel_map.out_features for voxel_map in self.voxel_maps), default=0)
        self.noise_logvar = nn.Parameter(self.noise_logvar[others(place, len(self.noise_logvar)), :most])

    def order_subjects(self, places: list[int]) -> None:
        """Bring the maps and the noise into this order."""
        self.voxel_maps = nn.ModuleList(self.voxel_maps[place] for place in places)
        self.noise_logvar = nn.Parameter(self.noise_logvar[places])


def at_hand(module: nn.Module, name: str) -> torch.Tensor:
    """A weight of `module` that is read outside of its `forward`: where accelerate has offloaded it, from there."""
    weight, hook = getattr(module, name), getattr(module, "_hf_hook", None)
    if weight.device.type != "meta" or hook is None:
        return weight
    for one in getattr(hook, "hooks", [hook]):
        if getattr(one, "weights_map", None) is not None:
            return one.weights_map[name].to(one.execution_device)
    return weight


def squared_distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """|one_i - other_j|^2, `(rows of one, rows of other)`."""
    return one.square().sum(1)[:, None] + other.square().sum(1) - 2 * one @ other.T


def rows_by_subject(
    subject_ids: torch.Tensor, subjects: int
) -> Iterator[tuple[int, torch.Tensor | slice, torch.Tensor]]:
    """For each subject its place, the rows to compute, and which of these are its own, `(rows, 1)`.

    These are its own rows, of which there may be none; all rows while a graph is recorded (`torch.compile`,
    `torch.export`), since the sizes in it must not depend on the data.
    """
    for subject in range(subjects):
        own = subject_ids == subject
        rows = slice(None) if torch.compiler.is_compiling() else torch.nonzero(own).squeeze(1)
        yield subject, rows, own[rows, None]


@torch.no_grad()
def put(layer: nn.Linear, ridge: Ridge) -> None:
    """The weights and intercept of a ridge into a linear layer."""
    layer.weight.copy_(ridge.weights.T)
    layer.bias.copy_(ridge.intercept)


def zeroed(layer: nn.Linear, like: torch.Tensor) -> nn.Linear:
    """The layer with weights of zero, of the dtype and on the device of `like`."""
    for part in layer.parameters():
        nn.init.zeros_(part)
    return layer.to(like)


def others(place: int, count: int) -> list[int]:
    """All places of `count` but one."""
    return [other for other in range(count) if other != place]
