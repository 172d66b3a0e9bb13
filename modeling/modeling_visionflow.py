# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""VisionFlowModel: images and the fMRI that they evoke in one latent Gaussian, read and written from both sides."""

import inspect
import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .configuration_visionflow import VisionFlowConfig
from .fmri_bridges import FmriToLatent, LatentToFmri
from .gabor_wavelets import GRID, wavelet_channels, wavelet_maps
from .image_decoder import AutoencoderKLDecoder, ConvTransposeDecoder, LinearDecoder, blacken, blend
from .latent_gaussian import LatentGaussian
from .losses import alignment_loss, fmri_loss, image_loss, kl_loss
from .row_noise import draw_rows

NARROW = -3.0  # logarithm of the variance with which posteriors begin
DRAWS = 8  # of noise, each taken with both signs, that decoding averages over


@dataclass
class VisionFlowOutput(ModelOutput):
    r"""
    What a forward pass makes of a batch. A row may lack its image or its fMRI; each part covers the rows that have
    what it needs, and is absent where none has.

    Args:
        loss (`torch.Tensor` of shape `()`):
            image_weight * loss_image + kl_weight * loss_kl + alignment_weight * loss_alignment
            + fmri_weight * loss_fmri.
        loss_image (`torch.Tensor` of shape `()`):
            Bernoulli divergence per pixel of the image decoded from the image's own latent and, for paired rows, from
            the latent of its fMRI (see `losses.image_loss`).
        loss_kl (`torch.Tensor` of shape `()`):
            KL(q || N(0, 1)) per latent dimension, q being the posterior given the image (given fMRI without one).
        loss_alignment (`torch.Tensor` of shape `()`):
            KL(q(z | image) || q(z | fmri)) per latent dimension, over paired rows.
        loss_fmri (`torch.Tensor` of shape `()`):
            Mean squared error per voxel, in standard deviations of train, of the fMRI read from the image's latent
            (from its own without an image).
        reconstruction (`torch.Tensor` of shape `(batch, num_channels, height, width)`):
            Image decoded from the fMRI, from the image itself in rows without fMRI; on a 0..1 scale.
        fmri (`torch.Tensor` of shape `(batch, max_voxels)`):
            Response predicted from the image, from the fMRI itself in rows without image; standardised on train.
        image_latent_mean, image_latent_logvar (`torch.Tensor` of shape `(batch, latent_dim)`):
            q(z | image).
        fmri_latent_mean, fmri_latent_logvar (`torch.Tensor` of shape `(batch, latent_dim)`):
            q(z | fmri).
        hidden_states, attentions (`tuple(torch.Tensor)`, *optional*):
            Those of the image encoder, on request.
    """

    loss: torch.Tensor | None = None
    loss_image: torch.Tensor | None = None
    loss_kl: torch.Tensor | None = None
    loss_alignment: torch.Tensor | None = None
    loss_fmri: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    fmri: torch.Tensor | None = None
    image_latent_mean: torch.Tensor | None = None
    image_latent_logvar: torch.Tensor | None = None
    fmri_latent_mean: torch.Tensor | None = None
    fmri_latent_logvar: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class VisionFlowModel(PreTrainedModel):
    """One latent Gaussian between an image encoder and decoder on one side and the fMRI of several subjects opposite.

    Encoding is `predict_fmri` (image to fMRI), decoding is `reconstruct_image` (fMRI to image); the round trip is one
    after the other. `forward` does both at once and computes the four losses. Sampling happens only in training, or
    where `noise` or `num_samples` is given: everything else is the posterior's mean, and deterministic.
    """

    config_class = VisionFlowConfig
    base_model_prefix = "visionflow"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the losses are means, so Trainer has to divide them over accumulation steps
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: VisionFlowConfig):
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.vision_config)
        trained_on = getattr(config.vision_config, "image_size", None)
        other_size = trained_on is not None and config.encoder_image_size not in (trained_on, [trained_on] * 2)
        takes_it = "interpolate_pos_encoding" in inspect.signature(self.encoder.forward).parameters
        self.encoder_options = {"interpolate_pos_encoding": True} if other_size and takes_it else {}
        tokens = len(config.feature_layers) * (1 + config.feature_grid**2)
        self.posterior_head = nn.Linear(tokens * encoder_width(config.vision_config), 2 * config.learned_dim)
        if config.wavelet_dim:
            self.wavelet_head = nn.Linear(wavelet_channels(config.num_channels) * GRID**2, config.wavelet_dim)
            self.wavelet_logvar = nn.Parameter(torch.full((config.wavelet_dim,), NARROW))
        if config.decoder_type == "autoencoder_kl":
            self.image_decoder = AutoencoderKLDecoder(config)
        else:
            self.image_decoder = ConvTransposeDecoder(config, config.image_size, config.num_channels, nn.Sigmoid())
        if config.linear_share:
            self.linear_decoder = LinearDecoder(config)
        self.decoding_noise = nn.Parameter(torch.empty(DRAWS, config.learned_dim), requires_grad=False)
        self.fmri_to_latent = FmriToLatent(config)
        self.latent_to_fmri = LatentToFmri(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.ConvTranspose2d):
            init.normal_(module.weight, std=1 / math.sqrt(module.in_channels * math.prod(module.kernel_size)))
        elif module is self.posterior_head:  # narrow posteriors: the first reconstructions are not drowned in noise
            if not getattr(module.bias, "_is_hf_initialized", False):  # a slice does not bear the flag
                init.constant_(module.bias[self.config.learned_dim :], NARROW)
        elif module is self:
            if self.config.wavelet_dim:
                init.constant_(self.wavelet_logvar, NARROW)
            generator = torch.Generator().manual_seed(0)  # the same for every model
            init.copy_(
                self.decoding_noise, torch.randn(DRAWS, self.config.learned_dim, generator=generator, device="cpu")
            )
        elif isinstance(module, FmriToLatent):
            init.normal_(module.hidden.weight, std=1 / math.sqrt(self.config.latent_dim))
            init.zeros_(module.head.weight)
            init.ones_(module.mlp_share)
            if module.wavelet_logvar is not None:
                init.zeros_(module.wavelet_logvar)
        elif isinstance(module, LatentToFmri):
            init.normal_(module.hidden.weight, std=1 / math.sqrt(self.config.learned_dim))
            init.zeros_(module.noise_logvar)
            for voxel_map in module.voxel_maps:
                init.zeros_(voxel_map.weight)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, use_safetensors: bool | None = True, **kwargs):
        """As in `PreTrainedModel`, but from safetensors only: a pickle can run code, and is refused with an OSError."""
        if not use_safetensors:
            raise ValueError("use_safetensors is off: VisionFlow reads safetensors only, since a pickle can run code")
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, use_safetensors=True, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(model.image_decoder, AutoencoderKLDecoder):
            model.image_decoder.from_autoencoder.requires_grad_(False)  # loading has made new parameters
        return loaded

    def save_pretrained(self, save_directory, *, save_original_format: bool = False, **kwargs):
        """As in `PreTrainedModel`, but the encoder's weights keep the names that they have in this model.

        Under the names of the encoder's original release, the default elsewhere, Trainer would not find them when it
        resumes or returns to the best checkpoint: it loads names as they stand, and only warns of what it misses.
        """
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        fmri: torch.Tensor | None = None,
        subject_ids: torch.Tensor | None = None,
        subject_rows: dict[int, torch.Tensor] | None = None,
        has_image: torch.Tensor | None = None,
        has_fmri: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        fmri_mean: torch.Tensor | None = None,
        fmri_std: torch.Tensor | None = None,
        decode_images: bool = True,
        **kwargs,
    ) -> VisionFlowOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`, *optional*):
                Images on a 0..1 scale, as `VisionFlowProcessor` makes them.
            fmri (`torch.Tensor` of shape `(batch, max_voxels)`, *optional*):
                Responses, standardised on train; subjects with fewer voxels are padded on the right.
            subject_ids (`torch.Tensor` of shape `(batch,)`, *optional*):
                Place of each row's subject in `config.subjects`, -1 for none. May be left out with a single subject.
            subject_rows (`dict[int, torch.Tensor]`, *optional*):
                The rows of each subject that occurs, by its place. They follow from `subject_ids`; but an accelerator
                has to finish its work before they can be found there.
            has_image, has_fmri (`torch.Tensor` of shape `(batch,)`, bool, *optional*):
                Which rows have an image, and which a response; all by default.
            noise (`torch.Tensor` of shape `(batch, latent_dim)`, *optional*):
                Standard normal noise by which the latents are sampled. In training it is drawn where it is not given,
                otherwise latents are the posterior's means.
            image_features (`torch.Tensor` of shape `(batch, features)`, *optional*):
                What `extract_image_features` made of these images, so that the encoder need not run.
            fmri_mean, fmri_std:
                Not used here (the processor gives them, and `predict_fmri` uses them).
            decode_images (`bool`, *optional*, defaults to `True`):
                False leaves out `reconstruction` and `loss_image`, which cost most.
            kwargs: passed on to the image encoder.
        """
        if pixel_values is None and fmri is None:
            raise ValueError("neither pixel_values nor fmri was given: give one or both")
        size = (pixel_values if pixel_values is not None else fmri).shape[0]
        every_row = torch.ones(size, dtype=torch.bool, device=self.device)
        has_image = ~every_row if pixel_values is None else every_row if has_image is None else has_image
        has_fmri = ~every_row if fmri is None else every_row if has_fmri is None else has_fmri
        if self.training and noise is None:
            shape = {"device": self.device, "dtype": self.dtype}
            noise = draw_rows(lambda rows: torch.randn(rows, self.config.latent_dim, **shape), size)

        image_posterior = fmri_posterior = encoded = None
        if pixel_values is not None:
            if image_features is None:
                image_features, encoded = self.extract_image_features(pixel_values, **kwargs)
            image_posterior = self.encode_image(pixel_values, image_features)
        if fmri is not None:
            with_fmri = subject_rows or self._subject_rows(subject_ids, has_fmri)
            fmri_posterior = self.fmri_to_latent(fmri.to(self.dtype), with_fmri)
        if image_posterior is None or fmri_posterior is None:
            posterior = image_posterior or fmri_posterior
        else:
            posterior = image_posterior.where(has_image, fmri_posterior)

        latent = posterior.sample(noise)
        paired = has_image & has_fmri
        both = image_posterior is not None and fmri_posterior is not None
        reconstruction = reconstructions = None
        if decode_images:
            latents = torch.stack([latent, fmri_posterior.sample(noise)] if both else [latent])
            reconstructions = self.decode(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
            reconstruction = reconstructions[0]
            if both:
                reconstruction = torch.where(has_fmri[:, None, None, None], reconstructions[1], reconstruction)
        predicted = None
        asked = fmri is not None or not self.training  # in training images alone teach nothing about voxels
        if asked and (subject_ids is not None or len(self.config.subjects) == 1):
            rows_of_subject = subject_rows or self._subject_rows(subject_ids, every_row)
            predicted = self.latent_to_fmri(latent, rows_of_subject)

        losses = {
            "loss_image": None,
            "loss_kl": kl_loss(posterior, has_image | has_fmri),
            "loss_alignment": alignment_loss(image_posterior, fmri_posterior, paired) if both else None,
            "loss_fmri": None,
        }
        if pixel_values is not None and decode_images:
            counted = torch.stack([has_image, paired][: len(reconstructions)])
            losses["loss_image"] = image_loss(reconstructions, pixel_values.to(self.dtype), counted)
        if fmri is not None:
            counts = fmri.new_ones(size)
            for subject, rows in rows_of_subject.items():
                counts[rows] = self.config.num_voxels[subject]
            losses["loss_fmri"] = fmri_loss(predicted[:, : fmri.shape[1]], fmri.to(self.dtype), counts, has_fmri)
        weights = {name: getattr(self.config, name.removeprefix("loss_") + "_weight") for name in losses}
        return VisionFlowOutput(
            loss=sum(weights[name] * loss for name, loss in losses.items() if loss is not None),
            **losses,
            reconstruction=reconstruction,
            fmri=predicted,
            image_latent_mean=image_posterior and image_posterior.mean,
            image_latent_logvar=image_posterior and image_posterior.logvar,
            fmri_latent_mean=fmri_posterior and fmri_posterior.mean,
            fmri_latent_logvar=fmri_posterior and fmri_posterior.logvar,
            hidden_states=getattr(encoded, "hidden_states", None),
            attentions=getattr(encoded, "attentions", None),
        )

    @torch.no_grad()
    def predict_fmri(
        self,
        pixel_values: torch.Tensor | None = None,
        subject_ids: torch.Tensor | None = None,
        fmri_mean: torch.Tensor | None = None,
        fmri_std: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Encoding: the response of each row's subject to its image.

        Samples are responses of single trials: the prediction and, voxel by voxel, Gaussian noise as wide as what
        predictions missed of the stimuli held out in training. Nine tenths of what is measured lie between a voxel's
        5th and 95th percentile. Noise that voxels share is not modelled.

        Args:
            num_samples (`int`, *optional*): samples of each row's response, instead of its mean.
            generator (`torch.Generator`, *optional*): their randomness, on the CPU.
            fmri_mean, fmri_std (`torch.Tensor` of shape `(batch, max_voxels)`, *optional*):
                Mean and standard deviation of each voxel over train, from the processor.
            The others as in `forward`.

        Returns:
            `(batch, max_voxels)` in the data's own unit, max_voxels being that of `fmri_mean`; without `fmri_mean` and
            `fmri_std` in standard deviations from the mean of train, as wide as the subject with the most voxels
            needs. A row is zero beyond its subject's own voxels. `(batch, num_samples, max_voxels)` with samples.
        """
        latent = self.encode_image(pixel_values, image_features).mean
        rows = self._subject_rows(subject_ids, latent.new_ones(latent.shape[0]) > 0)
        fmri = self.latent_to_fmri(latent, rows)[:, None]
        if num_samples is not None:
            noise = torch.randn(len(fmri), num_samples, fmri.shape[2], generator=generator)
            fmri = fmri + self.latent_to_fmri.noise_std(fmri[:, 0], rows)[:, None] * noise.to(fmri)
        if fmri_mean is not None:
            fmri = fmri[..., : fmri_mean.shape[1]] * fmri_std[:, None] + fmri_mean[:, None]
        return fmri.squeeze(1) if num_samples is None else fmri

    @torch.no_grad()
    def reconstruct_image(
        self,
        fmri: torch.Tensor,
        subject_ids: torch.Tensor | None = None,
        fmri_mean: torch.Tensor | None = None,
        fmri_std: torch.Tensor | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Decoding: the image behind each response, as `decode_mean` makes it of q(z | fmri).

        Samples are images of samples of q(z | fmri).

        Args:
            fmri (`torch.Tensor` of shape `(batch, max_voxels)`): standardised on train, as the processor makes it.
            fmri_mean, fmri_std: not used (the processor has standardised `fmri` already).
            num_samples, generator: as in `predict_fmri`.
            subject_ids: as in `forward`.

        Returns:
            `(batch, num_channels, height, width)` on a 0..1 scale; `(batch, num_samples, ...)` with samples.
        """
        posterior = self.encode_fmri(fmri, subject_ids)
        if num_samples is None:
            return self.decode_mean(posterior)
        noise = torch.randn(len(fmri), num_samples, self.config.latent_dim, generator=generator).to(posterior.mean)
        latents = posterior.mean[:, None] + (posterior.logvar / 2).exp()[:, None] * noise
        return self.decode(latents.flatten(0, 1)).unflatten(0, (-1, num_samples))

    @torch.no_grad()
    def add_subject(self, name: str, voxels: int) -> None:
        """Make room for a new person: linear maps between the latent and their voxels, zero until they are fitted.

        What the subjects share stays as it is, and so do the maps of the others. The processor has to learn the name
        too (`VisionFlowProcessor.add_subject`). `visionflow train CORPUS RUN --from-model OLD --freeze-shared` does
        both, and fits the maps.

        Args:
            name (`str`): of the person, as a corpus has it in its column `subject`.
            voxels (`int`): their number.

        Raises:
            ValueError: a name that is known, or no voxel.
        """
        if name in self.config.subjects:
            raise ValueError(f"subject {name} is known already: give another name, or remove_subject first")
        if voxels < 1:
            raise ValueError(f"{voxels} voxels for subject {name}: at least 1 is needed")
        self.fmri_to_latent.add_subject(voxels)
        self.latent_to_fmri.add_subject(voxels, self.config.wavelet_dim)
        self.config.subjects = [*self.config.subjects, name]
        self.config.num_voxels = [*self.config.num_voxels, voxels]

    @torch.no_grad()
    def remove_subject(self, name: str) -> None:
        """Forget a person: the maps between the latent and their voxels, the name and the noise.

        Raises:
            ValueError: a name that is not known.
        """
        if name not in self.config.subjects:
            raise ValueError(f"unknown subject {name}: this model knows {', '.join(self.config.subjects) or 'none'}")
        place = self.config.subjects.index(name)
        self.fmri_to_latent.remove_subject(place)
        self.latent_to_fmri.remove_subject(place)
        self.config.subjects = [other for other in self.config.subjects if other != name]
        self.config.num_voxels = [voxel_map.in_features for voxel_map in self.fmri_to_latent.voxel_maps]

    def pipeline(self, task: str, processor):
        """`image-to-fmri` or `fmri-to-image` with this model, as `transformers.pipeline` makes it from a folder's name.

        Args:
            processor (`VisionFlowProcessor`): the model's own.
        """
        from .pipeline_visionflow import FmriToImagePipeline, ImageToFmriPipeline

        pipelines = {"image-to-fmri": ImageToFmriPipeline, "fmri-to-image": FmriToImagePipeline}
        if task not in pipelines:
            raise ValueError(f"unknown task {task}: {', '.join(pipelines)} are there")
        return pipelines[task](model=self, processor=processor)

    def encode_image(self, pixel_values: torch.Tensor | None, image_features: torch.Tensor | None = None):
        """q(z | image), a `LatentGaussian`; from `pixel_values`, or from the `image_features` made of them."""
        if image_features is None:
            image_features, _ = self.extract_image_features(pixel_values)
        features, wavelets = image_features.to(self.dtype).tensor_split([self.posterior_head.in_features], dim=-1)
        posterior = LatentGaussian.from_head(self.posterior_head(features))
        if self.config.wavelet_dim:
            posterior = posterior.beside(self.wavelet_head(wavelets), self.wavelet_logvar)
        return posterior

    def encode_fmri(self, fmri: torch.Tensor, subject_ids: torch.Tensor | None = None):
        """q(z | fmri), a `LatentGaussian`."""
        every_row = torch.ones(fmri.shape[0], dtype=torch.bool, device=fmri.device)
        return self.fmri_to_latent(fmri.to(self.dtype), self._subject_rows(subject_ids, every_row))

    def encode(
        self,
        pixel_values: torch.Tensor | None = None,
        fmri: torch.Tensor | None = None,
        subject_ids: torch.Tensor | None = None,
    ):
        """q(z | image), q(z | fmri), or of both the product of experts q(z | image) q(z | fmri) / p(z).

        A `LatentGaussian`; the arguments are those of `forward`.
        """
        if pixel_values is None and fmri is None:
            raise ValueError("neither pixel_values nor fmri was given: give one or both")
        if fmri is None:
            return self.encode_image(pixel_values)
        if pixel_values is None:
            return self.encode_fmri(fmri, subject_ids)
        return self.encode_image(pixel_values).times(self.encode_fmri(fmri, subject_ids))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """logit image = (1 - linear_share) logit decoder(z) + linear_share logit linear(z).

        `(batch, latent_dim)` to `(batch, num_channels, height, width)` on a 0..1 scale.
        """
        image, share = self.image_decoder(latent), self.config.linear_share
        return blend(image, self.linear_decoder(latent), share) if share else image

    def decode_mean(self, posterior) -> torch.Tensor:
        """image = blacken(mean of decode(mean + decoding_spread std noise)), the noise the same for each row and call.

        What is uncertain comes out soft, so that the squared error is less than that of the mean latent's image, and
        what is darker than `black_point` is black.

        Args:
            posterior (`LatentGaussian`)

        Returns:
            `(batch, num_channels, height, width)` on a 0..1 scale.
        """
        if not self.config.decoding_spread:
            return blacken(self.decode(posterior.mean), self.config.black_point)
        step = nn.functional.pad(self.decoding_noise, (0, self.config.wavelet_dim))
        step = self.config.decoding_spread * step[:, None] * (posterior.logvar / 2).exp()
        images = 0
        for away in step:
            images = images + self.decode(posterior.mean + away) + self.decode(posterior.mean - away)
        return blacken(images / (2 * len(self.decoding_noise)), self.config.black_point)

    def extract_image_features(self, pixel_values: torch.Tensor, **kwargs):
        """What the posterior's heads read of an image, and the encoder's whole output.

        Returns:
            Features `(batch, layers * (1 + feature_grid^2) * width)`: of each of `feature_layers` the class token, or
            the mean token of an encoder without one, beside the patch tokens averaged over a grid of `feature_grid` x
            `feature_grid` cells; and, where the latent has dimensions for them, the Gabor-wavelet energies and colours.
        """
        vision = self.config.vision_config
        pixels = pixel_values.float()  # resizing is not defined for every dtype on every device
        if self.config.num_channels == 1 and vision.num_channels == 3:
            pixels = pixels.expand(-1, 3, -1, -1)
        mean, std = (  # filled in on the device: a copy to it would wait for all that it still has to do
            torch.cat([pixels.new_full((1, 1, 1), value) for value in values[: pixels.shape[1]]])
            for values in (self.config.image_mean, self.config.image_std)
        )
        size = self.config.encoder_image_size
        if list(pixels.shape[-2:]) != size:
            pixels = nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        layers = self.config.feature_layers
        if layers != [-1]:
            kwargs["output_hidden_states"] = True
        encoded = self.encoder(pixel_values=((pixels - mean) / std).to(self.dtype), **self.encoder_options, **kwargs)
        features = []
        for layer in layers:
            tokens = encoded.last_hidden_state if layer == -1 else encoded.hidden_states[layer]
            if tokens.ndim == 4:  # (batch, width, rows, columns), a convolutional encoder
                tokens = tokens.flatten(2).transpose(1, 2)
            side = math.isqrt(tokens.shape[1])
            before = tokens.shape[1] - side**2  # class token, registers
            patches = tokens[:, before:]
            features.append(tokens[:, 0] if before else patches.mean(1))
            if self.config.feature_grid:
                grid = patches.transpose(1, 2).unflatten(2, (side, side))
                if side != self.config.feature_grid:
                    grid = nn.functional.adaptive_avg_pool2d(grid, self.config.feature_grid)
                features.append(grid.flatten(1))
        if self.config.wavelet_dim:
            features.append(wavelet_maps(pixel_values).flatten(1).to(tokens.dtype))
        return torch.cat(features, dim=1), encoded

    def _subject_rows(self, subject_ids: torch.Tensor | None, rows: torch.Tensor) -> dict[int, torch.Tensor | slice]:
        """Of the rows that count, `(batch,)` bool, those of each subject that occurs, by place in `config.subjects`."""
        if not self.config.subjects:
            raise ValueError("this model knows no subject: give the config `subjects` and `num_voxels`")
        if subject_ids is None:
            if len(self.config.subjects) > 1:
                raise ValueError(f"subject_ids is missing: this model knows {', '.join(self.config.subjects)}")
            return {0: slice(None)}
        return {
            subject: torch.nonzero(rows & (subject_ids == subject)).squeeze(1)
            for subject in range(len(self.config.subjects))
        }


def encoder_width(vision_config) -> int:
    """Length of one token of the image encoder."""
    if getattr(vision_config, "hidden_sizes", None):  # ConvNeXt and its kin: one width a stage
        return vision_config.hidden_sizes[-1]
    return vision_config.hidden_size


__all__ = ["VisionFlowModel", "VisionFlowOutput"]
