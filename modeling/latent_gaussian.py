# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The diagonal Gaussian in which an image and the fMRI response that it evoked meet."""

from dataclasses import dataclass

import torch


@dataclass
class Gaussian:
    """N(mean, exp(logvar)), one row for each image or response.

    Attributes:
        mean (`torch.Tensor` of shape `(batch, dimensions)`)
        logvar (`torch.Tensor` of shape `(batch, dimensions)`): natural logarithm of the variance.
    """

    mean: torch.Tensor
    logvar: torch.Tensor

    @classmethod
    def from_head(cls, head: torch.Tensor) -> "Gaussian":
        """Split the `(batch, 2 * dimensions)` output of a head; variances are kept between exp(-8) and exp(4)."""
        mean, logvar = head.chunk(2, dim=-1)
        return cls(mean, logvar.clamp(-8, 4))

    def sample(self, noise: torch.Tensor | None = None) -> torch.Tensor:
        """mean + exp(logvar / 2) * noise, or the mean itself without noise; `(batch, dimensions)`.

        Source: Kingma & Welling 2014, Auto-Encoding Variational Bayes, section 2.4.
        """
        return self.mean if noise is None else self.mean + (self.logvar / 2).exp() * noise.to(self.mean)

    def kl_to_standard(self) -> torch.Tensor:
        """KL(q || N(0, 1)) = (mean^2 + exp(logvar) - 1 - logvar) / 2 of each element, `(batch, dimensions)`."""
        return (self.mean.square() + self.logvar.exp() - 1 - self.logvar) / 2

    def kl_to(self, other: "Gaussian") -> torch.Tensor:
        """KL(q || p) = (logvar_p - logvar_q + (exp(logvar_q) + (mean_q - mean_p)^2) / exp(logvar_p) - 1) / 2.

        Of each element, `(batch, dimensions)`.
        """
        spread = self.logvar.exp() + (self.mean - other.mean).square()
        return (other.logvar - self.logvar + spread * (-other.logvar).exp() - 1) / 2

    def times(self, other: "Gaussian") -> "Gaussian":
        """q_1 q_2 / N(0, 1): what two independent observations tell together.

            1 / var = 1 / var_1 + 1 / var_2 - 1        mean = var (mean_1 / var_1 + mean_2 / var_2)

        Each of the two contains the prior already, so one prior is divided out. Variances above that of the prior count
        as that of the prior.

        Source: Wu & Goodman 2018, Multimodal Generative Models for Scalable Weakly-Supervised Learning, section 2.2.
        """
        precision, other_precision = (-self.logvar.clamp(max=0)).exp(), (-other.logvar.clamp(max=0)).exp()
        total = precision + other_precision - 1
        mean = (self.mean * precision + other.mean * other_precision) / total
        return Gaussian(mean, -total.log())

    def where(self, choose: torch.Tensor, other: "Gaussian") -> "Gaussian":
        """Rows of `self` where `choose`, a bool tensor of shape `(batch,)`, is true, rows of `other` elsewhere."""
        choose = choose[:, None]
        return Gaussian(torch.where(choose, self.mean, other.mean), torch.where(choose, self.logvar, other.logvar))


@dataclass
class LatentGaussian:
    """The latent of an image or a response: two independent Gaussians.

    Attributes:
        learned: z, `latent_dim` dimensions that the image encoder's head makes and the image decoder reads.
        linear: w, `linear_dim` dimensions that are linear in fixed features of the image; there may be none.
    """

    learned: Gaussian
    linear: Gaussian

    @property
    def mean(self) -> torch.Tensor:
        """z and w side by side, `(batch, latent_dim + linear_dim)`."""
        return torch.cat([self.learned.mean, self.linear.mean], dim=-1)

    @property
    def logvar(self) -> torch.Tensor:
        """The logarithms of their variances, `(batch, latent_dim + linear_dim)`."""
        return torch.cat([self.learned.logvar, self.linear.logvar], dim=-1)

    def kl_to(self, other: "LatentGaussian") -> torch.Tensor:
        """As in `Gaussian`, `(batch, latent_dim + linear_dim)`."""
        return torch.cat([self.learned.kl_to(other.learned), self.linear.kl_to(other.linear)], dim=-1)

    def times(self, other: "LatentGaussian") -> "LatentGaussian":
        """As in `Gaussian`."""
        return LatentGaussian(self.learned.times(other.learned), self.linear.times(other.linear))

    def where(self, choose: torch.Tensor, other: "LatentGaussian") -> "LatentGaussian":
        """As in `Gaussian`."""
        return LatentGaussian(self.learned.where(choose, other.learned), self.linear.where(choose, other.linear))
