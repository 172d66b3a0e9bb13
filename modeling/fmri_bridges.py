# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The two bridges between fMRI and the latent: a linear map for each subject, and an MLP that all subjects share."""

import torch
from torch import nn

from .latent_gaussian import LatentGaussian


class FmriToLatent(nn.Module):
    """fMRI of any subject to the posterior over the latent.

        h = W_subject fmri + b_subject
        mean, logvar = [h, 0] + MLP(h)

    The MLP starts at zero in the mean, so that the bridge starts as the linear map. The last `wavelet_dim` dimensions
    are linear: their mean is that of h, their variance is the same for all responses.
    """

    def __init__(self, config):
        super().__init__()
        self.voxel_maps = nn.ModuleList(nn.Linear(count, config.latent_dim) for count in config.num_voxels)
        self.norm = nn.LayerNorm(config.learned_dim)
        self.hidden = nn.Linear(config.learned_dim, config.bridge_hidden_size)
        self.head = nn.Linear(config.bridge_hidden_size, 2 * config.learned_dim)
        self.wavelet_logvar = nn.Parameter(torch.zeros(config.wavelet_dim)) if config.wavelet_dim else None
        self.voxel_dropout = nn.Dropout(config.voxel_dropout)
        self.dropout = nn.Dropout(config.bridge_dropout)

    def forward(self, fmri: torch.Tensor, rows_of_subject: dict[int, torch.Tensor | slice]) -> LatentGaussian:
        """
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
        fmri = nn.functional.pad(fmri, (0, most - fmri.shape[1]))
        linear = fmri.new_zeros(fmri.shape[0], self.voxel_maps[0].out_features)
        for subject, rows in rows_of_subject.items():
            voxel_map = self.voxel_maps[subject]
            mapped = voxel_map(self.voxel_dropout(fmri[rows, : voxel_map.in_features]))
            linear[rows] = mapped.to(linear.dtype)  # autocast computes in its own
        learned, wavelets = linear.tensor_split([self.hidden.in_features], dim=-1)
        hidden = self.dropout(nn.functional.gelu(self.hidden(self.norm(learned))))
        mean, logvar = self.head(hidden).chunk(2, dim=-1)
        posterior = LatentGaussian.from_head(torch.cat([learned + mean, logvar], dim=-1))
        return posterior if self.wavelet_logvar is None else posterior.beside(wavelets, self.wavelet_logvar)


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
        self.dropout = nn.Dropout(config.bridge_dropout)
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

    def read(self, latent: torch.Tensor) -> torch.Tensor:
        """What the voxels' linear maps read: [z, MLP(z), w], `(batch, latent_dim + bridge_hidden_size)`."""
        learned, wavelets = latent.tensor_split([self.hidden.in_features], dim=-1)
        hidden = self.dropout(nn.functional.gelu(self.hidden(self.norm(learned))))
        return torch.cat([learned, hidden, wavelets], dim=-1)
