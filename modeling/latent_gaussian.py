# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The diagonal Gaussian in which an image and the fMRI that it evoked meet."""

from dataclasses import dataclass

import torch


@dataclass
class LatentGaussian:
    """q(z) = N(mean, exp(logvar)), one row an image or a response.

    Attributes:
        mean (`torch.Tensor` of shape `(batch, latent_dim)`)
        logvar (`torch.Tensor` of shape `(batch, latent_dim)`): natural logarithm of the variance.
    """

    mean: torch.Tensor
    logvar: torch.Tensor

    @classmethod
    def from_head(cls, head: torch.Tensor) -> "LatentGaussian":
        """Split the `(batch, 2 * latent_dim)` output of a head; variances are kept between exp(-8) and exp(4)."""
        mean, logvar = head.chunk(2, dim=-1)
        return cls(mean, logvar.clamp(-8, 4))

    def beside(self, mean: torch.Tensor, logvar: torch.Tensor) -> "LatentGaussian":
        """With further dimensions behind: their means `(batch, more)`, and one logvar `(more,)` for all rows."""
        logvar = logvar.to(self.logvar.dtype).expand(mean.shape[0], -1)
        return LatentGaussian(torch.cat([self.mean, mean], dim=-1), torch.cat([self.logvar, logvar], dim=-1))

    def sample(self, noise: torch.Tensor | None) -> torch.Tensor:
        """z = mean + exp(logvar / 2) * noise, the mean itself without noise; `(batch, latent_dim)`.

        Source: Kingma & Welling 2014, Auto-Encoding Variational Bayes, section 2.4.
        """
        return self.mean if noise is None else self.mean + (self.logvar / 2).exp() * noise.to(self.mean.dtype)

    def kl_to_standard(self) -> torch.Tensor:
        """KL(q || N(0, 1)) = (mean^2 + exp(logvar) - 1 - logvar) / 2 for each element, `(batch, latent_dim)`."""
        return (self.mean.square() + self.logvar.exp() - 1 - self.logvar) / 2

    def kl_to(self, other: "LatentGaussian") -> torch.Tensor:
        """KL(q || p) = (logvar_p - logvar_q + (exp(logvar_q) + (mean_q - mean_p)^2) / exp(logvar_p) - 1) / 2.

        For each element, `(batch, latent_dim)`.
        """
        spread = self.logvar.exp() + (self.mean - other.mean).square()
        return (other.logvar - self.logvar + spread * (-other.logvar).exp() - 1) / 2

    def times(self, other: "LatentGaussian") -> "LatentGaussian":
        """q_1 q_2 / N(0, 1): what two independent observations tell of the latent together.

            1 / var = 1 / var_1 + 1 / var_2 - 1        mean = var (mean_1 / var_1 + mean_2 / var_2)

        Each of the two holds the prior already, so that one of them is taken out. None counts as wider than the prior.

        Source: Wu & Goodman 2018, Multimodal Generative Models for Scalable Weakly-Supervised Learning, section 2.2.
        """
        precision, other_precision = (-self.logvar.clamp(max=0)).exp(), (-other.logvar.clamp(max=0)).exp()
        total = precision + other_precision - 1
        mean = (self.mean * precision + other.mean * other_precision) / total
        return LatentGaussian(mean, -total.log())

    def where(self, choose: torch.Tensor, other: "LatentGaussian") -> "LatentGaussian":
        """Rows of `self` where `choose`, a bool tensor of shape `(batch,)`, is true, rows of `other` elsewhere."""
        choose = choose[:, None]
        return LatentGaussian(
            torch.where(choose, self.mean, other.mean), torch.where(choose, self.logvar, other.logvar)
        )
