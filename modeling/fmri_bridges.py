# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The two bridges between fMRI and the latent: a linear map for each subject, and an MLP that all subjects share."""

import torch
from torch import nn

from .latent_gaussian import LatentGaussian
from .row_noise import RowDropout


class FmriToLatent(nn.Module):
    """fMRI of any subject to the posterior over the latent.

        h = W_subject fmri + b_subject
        correction, logvar = MLP(h)
        mean = h_z + mlp_share_subject correction

    The correction starts at zero, so that the bridge starts as the linear map. The MLP reads all of h and corrects h_z,
    the dimensions that the image encoder makes. The last `wavelet_dim` dimensions are linear: their mean is that of h,
    their variance is the same for all responses.
    """

    def __init__(self, config):
        super().__init__()
        self.voxel_maps = nn.ModuleList(nn.Linear(count, config.latent_dim) for count in config.num_voxels)
        self.hidden = nn.Linear(config.latent_dim, config.bridge_hidden_size)
        self.head = nn.Linear(config.bridge_hidden_size, 2 * config.learned_dim)
        self.mlp_share = nn.Parameter(torch.ones(len(config.num_voxels)))
        self.wavelet_logvar = nn.Parameter(torch.zeros(config.wavelet_dim)) if config.wavelet_dim else None
        self.voxel_dropout = RowDropout(config.voxel_dropout)
        self.dropout = RowDropout(config.bridge_dropout)

    def forward(self, fmri: torch.Tensor, rows_of_subject: dict[int, torch.Tensor | slice]) -> LatentGaussian:
        """q(z | fmri); the arguments are those of `linear`."""
        linear = self.linear(fmri, rows_of_subject)
        share = linear.new_ones(linear.shape[0], 1)
        for subject, rows in rows_of_subject.items():
            share[rows] = self.mlp_share[subject].to(share.dtype)
        return self.posterior(linear, share)

    def linear(self, fmri: torch.Tensor, rows_of_subject: dict[int, torch.Tensor | slice]) -> torch.Tensor:
        """h, what the linear maps alone make of fMRI, `(batch, latent_dim)`.

        Args:
            fmri (`torch.Tensor` of shape `(batch, max_voxels)`):
                Standardised on train; subjects with fewer voxels are padded on the right.
            rows_of_subject: for each subject that occurs, its rows.

        Raises:
            ValueError: more voxels than any subject has.
        """
        most = max(voxel_map.in_features for voxel_map in self.voxel_maps)
        if fmri.shape[1] > most:
            raise ValueError(f"fmri has {fmri.shape[1]} voxels a row, the subjects of this model have {most} at most")
        fmri = self.voxel_dropout(nn.functional.pad(fmri, (0, most - fmri.shape[1])))
        linear = fmri.new_zeros(fmri.shape[0], self.hidden.in_features)
        for subject, rows in rows_of_subject.items():
            voxel_map = self.voxel_maps[subject]
            mapped = voxel_map(fmri[rows, : voxel_map.in_features])
            linear[rows] = mapped.to(linear.dtype)  # autocast computes in its own
        return linear

    def posterior(self, linear: torch.Tensor, share: torch.Tensor | float = 1.0) -> LatentGaussian:
        """q(z | fmri) from h, `(batch, latent_dim)`, with a share of the MLP's correction, `(batch, 1)`."""
        correction, logvar = self.head(self.dropout(nn.functional.gelu(self.hidden(linear)))).chunk(2, dim=-1)
        learned, wavelets = linear.tensor_split([correction.shape[1]], dim=-1)
        posterior = LatentGaussian.from_head(torch.cat([learned + share * correction, logvar], dim=-1))
        return posterior if self.wavelet_logvar is None else posterior.beside(wavelets, self.wavelet_logvar)

    def add_subject(self, voxels: int) -> None:
        """A map of one more subject, zero until it is fitted; the MLP, which never saw it, does not correct it."""
        self.voxel_maps.append(zero_map(voxels, self.hidden.in_features, self.hidden.weight))
        self.mlp_share = nn.Parameter(nn.functional.pad(self.mlp_share, (0, 1)))

    def remove_subject(self, place: int) -> None:
        """Forget the map of the subject with this place."""
        del self.voxel_maps[place]
        self.mlp_share = nn.Parameter(self.mlp_share[others(place, len(self.mlp_share))])


class LatentToFmri(nn.Module):
    """Latent to the fMRI of any subject: W_subject [z, MLP(z), w] + b_subject.

    w are the `wavelet_dim` last dimensions of the latent, z the others. The columns that read the MLP start at zero, so
    that the bridge starts as a linear map. `noise_logvar` `(subjects, max_voxels)` is the logarithm of the variance of
    single trials around it, which training measures on held-out stimuli.
    """

    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config.learned_dim)
        self.hidden = nn.Linear(config.learned_dim, config.bridge_hidden_size)
        self.dropout = RowDropout(config.bridge_dropout)
        width = config.latent_dim + config.bridge_hidden_size
        self.voxel_maps = nn.ModuleList(nn.Linear(width, count) for count in config.num_voxels)
        self.noise_logvar = nn.Parameter(torch.zeros(len(config.num_voxels), max(config.num_voxels, default=0)))

    def forward(self, latent: torch.Tensor, rows_of_subject: dict[int, torch.Tensor | slice]) -> torch.Tensor:
        """
        Args:
            latent (`torch.Tensor` of shape `(batch, latent_dim)`)
            rows_of_subject: for each subject that occurs, its rows.

        Returns:
            `(batch, max_voxels)`, as wide as the subject with the most voxels needs; standardised on train, and zero
            beyond a subject's own voxels.
        """
        read = self.read(latent)
        most = max(voxel_map.out_features for voxel_map in self.voxel_maps)
        fmri = latent.new_zeros(latent.shape[0], most)
        for subject, rows in rows_of_subject.items():
            voxel_map = self.voxel_maps[subject]
            fmri[rows, : voxel_map.out_features] = voxel_map(read[rows]).to(fmri.dtype)
        return fmri

    def noise_std(self, fmri: torch.Tensor, rows_of_subject: dict[int, torch.Tensor | slice]) -> torch.Tensor:
        """Standard deviation of single trials around their prediction `fmri`, of the same shape and unit."""
        std = torch.zeros_like(fmri)
        for subject, rows in rows_of_subject.items():
            own = self.voxel_maps[subject].out_features
            std[rows, :own] = (self.noise_logvar[subject, :own] / 2).exp().to(std.dtype)
        return std

    def add_subject(self, voxels: int, wavelet_dim: int) -> None:
        """A map of one more subject, zero until it is fitted, and noise of a standardised voxel's variance."""
        width = self.hidden.in_features + self.hidden.out_features + wavelet_dim
        self.voxel_maps.append(zero_map(width, voxels, self.hidden.weight))
        more = max(voxels - self.noise_logvar.shape[1], 0)
        self.noise_logvar = nn.Parameter(nn.functional.pad(self.noise_logvar, (0, more, 0, 1)))

    def remove_subject(self, place: int) -> None:
        """Forget the map and the noise of the subject with this place."""
        del self.voxel_maps[place]
        most = max((voxel_map.out_features for voxel_map in self.voxel_maps), default=0)
        self.noise_logvar = nn.Parameter(self.noise_logvar[others(place, len(self.noise_logvar)), :most])

    def read(self, latent: torch.Tensor) -> torch.Tensor:
        """What the voxels' linear maps read: [z, MLP(z), w], `(batch, latent_dim + bridge_hidden_size)`."""
        learned, wavelets = latent.tensor_split([self.hidden.in_features], dim=-1)
        hidden = self.dropout(nn.functional.gelu(self.hidden(self.norm(learned))))
        return torch.cat([learned, hidden, wavelets], dim=-1)


def zero_map(inputs: int, outputs: int, like: torch.Tensor) -> nn.Linear:
    """A linear layer of zeros, of the dtype and on the device of `like`."""
    layer = nn.Linear(inputs, outputs, device=like.device, dtype=like.dtype)
    for part in layer.parameters():
        nn.init.zeros_(part)
    return layer


def others(place: int, count: int) -> list[int]:
    """All places of `count` but one."""
    return [other for other in range(count) if other != place]
