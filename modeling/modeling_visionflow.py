# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""VisionFlowModel: images and the fMRI responses that they evoke in one latent Gaussian, in both directions."""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.hub import extract_commit_hash
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from .card import LEADERBOARDS, card_in, has_no_results, write_card
from .configuration_visionflow import TAGS, VisionFlowConfig
from .fmri_bridges import LEAST_NOISE, MLP_SHARE, FmriToLatent, LatentToFmri, at_hand
from .gabor_wavelets import GRID, wavelet_channels, wavelet_maps
from .image_decoder import (
    AutoencoderKLDecoder,
    ConvTransposeDecoder,
    EmbeddingDecoder,
    LinearDecoder,
    StretchedSigmoid,
    blend,
)
from .latent_gaussian import Gaussian, LatentGaussian
from .losses import alignment_loss, fmri_loss, image_loss, kl_loss
from .optional_files import delete_others
from .precision import without_autocast
from .processing_visionflow import VisionFlowProcessor
from .refinement import refined
from .refit import RefitCallback, Undisturbed, refit
from .subject_fit import enough, fit_maps, known_voxels, latents_of, latents_of_the_prior
from .vision_encoder import average_pool, layer_maps, pooled_features, resized
from .voxel_table import VOXELS, VoxelTable, can_read_tables, remove_table

NARROW = -3.0  # logarithm of the variance with which posteriors begin
LINEAR_CELLS = 7  # cells a side over which the maps of `linear_layers` are averaged
BALANCED = ("auto", "balanced", "balanced_low_0")  # divide a model among GPUs where one would do
OF_THE_HUB = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")
TO_LOAD_AGAIN = ("cache_dir", "proxies", "local_files_only", "subfolder")  # more files of the model; no token is kept
OF_THE_PROCESSOR = ("fmri_mean", "fmri_std")  # in its batches for `predict_fmri`; no other method needs them


@dataclass
class VisionFlowOutput(ModelOutput):
    r"""
    What a forward pass makes of a batch. A row may lack its image or its response; each part covers the rows that have
    what it needs. A loss is 0 where no row has it, and absent where what it needs was not given.

    Args:
        loss (`torch.Tensor` of shape `()`):
            image_weight * loss_image + kl_weight * loss_kl + alignment_weight * loss_alignment
            + fmri_weight * loss_fmri.
        loss_image (`torch.Tensor` of shape `()`):
            Bernoulli divergence per pixel of the image decoded from the image's own latent and, for paired rows, from
            the latent of its response (see `losses.image_loss`).
        loss_kl (`torch.Tensor` of shape `()`):
            KL(q || N(0, 1)) per learned dimension, q being the posterior given the image (given fMRI without one).
        loss_alignment (`torch.Tensor` of shape `()`):
            KL(q(z, w | image) || q(z, w | fmri)) per latent dimension, over paired rows.
        loss_fmri (`torch.Tensor` of shape `()`):
            Mean squared error per voxel, standardised, of the response predicted from the image's latent (from the
            response's own without an image).
        reconstruction (`torch.Tensor` of shape `(batch, num_channels, height, width)`):
            Image decoded from the response, from the image itself in rows without one; on a 0..1 scale.
        fmri (`torch.Tensor` of shape `(batch, max_voxels)`):
            Response predicted from the image, from the response itself in rows without image; standardised.
        image_latent_mean, image_latent_logvar (`torch.Tensor` of shape `(batch, latent_dim + linear_dim)`):
            q(z, w | image), learned dimensions first.
        fmri_latent_mean, fmri_latent_logvar (`torch.Tensor` of shape `(batch, latent_dim + linear_dim)`):
            q(z, w | fmri).
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


def with_gradients_of_inputs(method: Callable) -> Callable:
    """Record gradients only where a tensor given to `method` requires them; its result is a plain tensor otherwise."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(value.requires_grad for value in given)):
            return method(self, *args, **kwargs)

    return wrapped


class VisionFlowModel(PreTrainedModel):
    """One latent Gaussian between an image encoder and decoder on one side and the responses of several subjects.

    Encoding is `predict_fmri` (image to fMRI), decoding is `reconstruct_image` (fMRI to image); the round trip is one
    after the other. `forward` does both at once and computes the four losses. Sampling happens only in training, or
    where `noise` or `num_samples` is given: everything else uses the posterior's mean, and is deterministic. Gradients
    flow from both directions to images and responses that require them; those of weights come from `forward`.
    `predict_fmri`, `reconstruct_image`, `reconstruct_embedding`, `embed_image` and `log_likelihood` record no graph for
    weights alone; use `torch.no_grad()` around the others where no gradients are needed.

    The batch of a `VisionFlowProcessor` can be passed to every method, as in `model.predict_fmri(**batch)`: each uses
    what it needs.

    Attributes:
        voxels (`VoxelTable`, *optional*): regions, places and noise ceilings of the voxels, from voxels.parquet of the
            model folder, where `save_pretrained` writes it. None where nothing is known.
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
        self.voxels = None
        self._hub_options: dict = {}  # with which it was loaded
        self._card_there: bytes | None = None  # of the folder that was saved to last
        self.encoder = AutoModel.from_config(config.vision_config)
        features = sum(config.feature_widths) * (1 + config.feature_grid**2)
        self.posterior_head = nn.Linear(features, 2 * config.latent_dim)
        maps = wavelet_channels(config.num_channels) * GRID**2 + sum(config.linear_widths) * LINEAR_CELLS**2
        self.linear_head = nn.Linear(maps, config.linear_dim)
        self.linear_logvar = nn.Parameter(torch.full((config.linear_dim,), NARROW))
        if config.decoder_type == "autoencoder_kl":
            self.image_decoder = AutoencoderKLDecoder(config)
        else:
            self.image_decoder = ConvTransposeDecoder(
                config, config.image_size, config.num_channels, StretchedSigmoid()
            )
        self.linear_decoder = LinearDecoder(config)
        self.embedding_decoder = EmbeddingDecoder(config)
        self.fmri_to_latent = FmriToLatent(config)
        self.latent_to_fmri = LatentToFmri(config)
        self.post_init()
        self.add_model_tags(list(TAGS))  # for the cards that `push_to_hub` and Trainer write

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.ConvTranspose2d):
            init.normal_(module.weight, std=1 / math.sqrt(module.in_channels * math.prod(module.kernel_size)))
        elif module is self.posterior_head:  # narrow posteriors: the first reconstructions are not drowned in noise
            if not getattr(module.bias, "_is_hf_initialized", False):  # a slice does not bear the flag
                init.constant_(module.bias[self.config.latent_dim :], NARROW)
        elif module is self:
            init.constant_(self.linear_logvar, NARROW)
        elif isinstance(module, EmbeddingDecoder):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, FmriToLatent):
            init.normal_(module.hidden.weight, std=1 / math.sqrt(module.hidden.in_features))
            init.zeros_(module.head.weight)
            init.constant_(module.mlp_share, MLP_SHARE)
            init.zeros_(module.linear_logvar)
        elif isinstance(module, LatentToFmri):
            init.normal_(module.hidden.weight, std=1 / math.sqrt(module.hidden.in_features))
            init.zeros_(module.noise_logvar)
            for voxel_map in module.voxel_maps:
                init.zeros_(voxel_map.weight)
                init.zeros_(voxel_map.noise_factors)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, use_safetensors: bool | None = True, **kwargs):
        """As in `PreTrainedModel`, but from safetensors only: a pickle can run code, and is refused with an OSError.

        The voxel table is read as well, where there is one. All files are of one commit, `config._commit_hash`, of
        which `refit` and `fit_subject` read the processor.
        """
        if use_safetensors is False:
            raise ValueError("use_safetensors is off: VisionFlow reads safetensors only, since a pickle can run code")
        if str(kwargs.get("device_map")) in BALANCED:  # a GPU after the other: methods read weights of several parts
            kwargs["device_map"] = "sequential"
        name, commit = pretrained_model_name_or_path, None
        options = {option: kwargs[option] for option in OF_THE_HUB if kwargs.get(option) is not None}
        if name is not None:
            file = cached_file(name, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **options)
            commit = extract_commit_hash(file, None)
        if commit is not None:
            kwargs["revision"] = options["revision"] = commit
        loaded = super().from_pretrained(name, *args, use_safetensors=True, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config._commit_hash = commit
        model._hub_options = {option: value for option, value in options.items() if option in TO_LOAD_AGAIN}
        if isinstance(model.image_decoder, AutoencoderKLDecoder):
            model.image_decoder.from_autoencoder.requires_grad_(False)  # loading has made new parameters
        if name is not None:
            model.voxels = VoxelTable.of_model(name, **options)
            model._check_voxels()
        return loaded

    def save_pretrained(self, save_directory, *, save_original_format: bool = False, **kwargs):
        """As in `PreTrainedModel`, but the encoder's weights keep the names that they have in this model.

        Under the names of the encoder's original release, the default elsewhere, Trainer would not find them when it
        resumes or returns to the best checkpoint: it loads names as they stand, and only warns of what it misses.

        A folder without README.md gets the card of the model that this one was loaded from, without its results. One
        that has a card of VisionFlow keeps it, also where it is pushed; results of other weights leave it.
        """
        self._card_there = card_in(save_directory)  # where it pushes, transformers writes its own card over it
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)
        if kwargs.get("is_main_process", True):
            self._write_beside(save_directory)

    def _write_beside(self, folder: str, name: str | None = None, **options) -> None:
        """What a model folder has beside weights, config and code; the card under the name `name`."""
        from .handler import write_requirements  # handler.py, for Inference Endpoints, is saved beside this file

        write_requirements(folder, self.config)
        write_card(self.config, folder, name, **self._hub_options, **options)
        if self.voxels is not None:
            self.voxels.write(folder)
        else:
            remove_table(folder)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """As in `PreTrainedModel`, with the model's own card; what else an earlier model had is deleted.

        That is its weights where they are in other files, its voxels and its results.
        """
        token = kwargs.get("token")  # with which the model was perhaps loaded, too
        options = {"token": token} if token else {}
        self._write_beside(working_dir, repo_id, kept=self._card_there, **options)  # the card in place of a draft
        done = super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
        others = ["model.safetensors", "model-0"]  # one file of weights is read before many
        others += [VOXELS] if self.voxels is None and can_read_tables() else []
        others += [f"{LEADERBOARDS}/"] if has_no_results(working_dir) else []
        delete_others(repo_id, working_dir, others, revision=done.pr_revision or kwargs.get("revision"), **options)
        return done

    def get_input_embeddings(self):
        """Those of the image encoder."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value):
        """Those of the image encoder."""
        self.encoder.set_input_embeddings(value)

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        fmri: torch.Tensor | None = None,
        subject_ids: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_fmri: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        decode_images: bool = True,
        return_loss: bool = True,
        **kwargs,
    ) -> VisionFlowOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`, *optional*):
                Images on a 0..1 scale, as `VisionFlowProcessor` makes them.
            fmri (`torch.Tensor` of shape `(batch, max_voxels)`, *optional*):
                Responses, standardised; subjects with fewer voxels are padded on the right.
            subject_ids (`torch.Tensor` of shape `(batch,)`, *optional*):
                Place of each row's subject in `config.subjects`, -1 for none. May be left out with a single subject.
            has_image, has_fmri (`torch.Tensor` of shape `(batch,)`, bool, *optional*):
                Which rows have an image, and which a response; all by default.
            noise (`torch.Tensor` of shape `(batch, latent_dim)`, *optional*):
                Standard normal noise by which z is sampled. In training it is drawn where it is not given, otherwise
                the posterior's mean is used.
            image_features (`torch.Tensor` of shape `(batch, features)`, *optional*):
                What `extract_image_features` made of these images, so that the encoder need not run.
            decode_images (`bool`, *optional*, defaults to `True`):
                False leaves out `reconstruction` and `loss_image`, which cost most.
            return_loss (`bool`, *optional*, defaults to `True`):
                False leaves out all losses.
            kwargs: passed on to the image encoder.
        """
        if pixel_values is None and fmri is None:
            raise ValueError("neither pixel_values nor fmri was given: give one or both")
        given = pixel_values if pixel_values is not None else fmri
        every_row = torch.ones(given.shape[0], dtype=torch.bool, device=given.device)
        has_image = ~every_row if pixel_values is None else every_row if has_image is None else has_image
        has_fmri = ~every_row if fmri is None else every_row if has_fmri is None else has_fmri

        image_posterior = fmri_posterior = encoded = None
        if pixel_values is not None:
            if image_features is None:
                kwargs = {name: value for name, value in kwargs.items() if name not in OF_THE_PROCESSOR}
                if self.config.output_hidden_states:
                    kwargs.setdefault("output_hidden_states", True)
                image_features, encoded = self.extract_image_features(pixel_values, **kwargs)
            reads_linear = fmri is not None or not self.training or self.config.linear_share > 0
            image_posterior = self.encode_image(pixel_values, image_features, with_linear=reads_linear)
        known = subject_ids is not None or len(self.config.subjects) == 1
        if fmri is not None or known:
            subject_ids = self._subject_ids(subject_ids, given, least=-1)  # -1 for rows without fMRI
        if fmri is not None:
            ids = torch.where(has_fmri, subject_ids, -1)
            fmri_posterior = self._latent_of(fmri, ids)
        if image_posterior is None or fmri_posterior is None:
            posterior = image_posterior or fmri_posterior
        else:
            posterior = image_posterior.where(has_image, fmri_posterior)
        learned = posterior.learned
        if self.training and noise is None:
            noise = torch.randn_like(learned.mean)
        latent = learned.sample(noise)
        paired = has_image & has_fmri
        both = image_posterior is not None and fmri_posterior is not None

        reconstruction = reconstructions = None
        if decode_images:
            sources = [(latent, posterior.linear.mean)]
            if both:
                sources.append((fmri_posterior.learned.sample(noise), fmri_posterior.linear.mean))
            stacked = [torch.cat(parts) for parts in zip(*sources, strict=True)]
            reconstructions = self.decode(*stacked).unflatten(0, (len(sources), -1))
            reconstruction = reconstructions[0]
            if both:
                reconstruction = torch.where(has_fmri[:, None, None, None], reconstructions[1], reconstruction)
            if fmri is not None and self.config.refine_steps and not self.training and noise is None:
                better = self.decode(*self._refined(fmri_posterior, fmri, ids))
                reconstruction = torch.where(has_fmri[:, None, None, None], better, reconstruction)
        predicted = None
        if known and (fmri is not None or not self.training):  # in training images alone teach nothing about voxels
            predicted = self.latent_to_fmri(latent, posterior.linear.mean, subject_ids)

        losses = {}
        if return_loss:
            losses["loss_kl"] = kl_loss(learned, has_image | has_fmri)
            if both:
                losses["loss_alignment"] = alignment_loss(image_posterior, fmri_posterior, paired)
            if pixel_values is not None and decode_images:
                counted = torch.stack([has_image, paired][: len(reconstructions)])
                losses["loss_image"] = image_loss(reconstructions, pixel_values, counted)
            if fmri is not None:
                voxels = torch.tensor([*self.config.num_voxels, 0], device=fmri.device)[subject_ids]
                losses["loss_fmri"] = fmri_loss(predicted[:, : fmri.shape[1]], fmri, voxels, has_fmri)
            weights = {name: getattr(self.config, name.removeprefix("loss_") + "_weight") for name in losses}
            losses["loss"] = sum(weights[name] * loss for name, loss in losses.items())
        return VisionFlowOutput(
            **losses,
            reconstruction=reconstruction,
            fmri=predicted,
            image_latent_mean=image_posterior and image_posterior.mean,
            image_latent_logvar=image_posterior and image_posterior.logvar,
            fmri_latent_mean=fmri_posterior and fmri_posterior.mean,
            fmri_latent_logvar=fmri_posterior and fmri_posterior.logvar,
            hidden_states=getattr(encoded, "hidden_states", None) if kwargs.get("output_hidden_states") else None,
            attentions=getattr(encoded, "attentions", None),
        )

    @with_gradients_of_inputs
    def predict_fmri(
        self,
        pixel_values: torch.Tensor | None = None,
        subject_ids: torch.Tensor | None = None,
        fmri_mean: torch.Tensor | None = None,
        fmri_std: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        rois: list[str] | None = None,
        **kwargs,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Encoding: the response of each row's subject to its image.

        Samples are responses of single trials: the prediction and, voxel by voxel, Gaussian noise as wide as the errors
        of predictions for held-out train stimuli. 90 % of measured values lie between a voxel's 5th and 95th
        percentile. The noise of each voxel is independent here; `log_likelihood` knows what voxels share.

        Args:
            num_samples (`int`, *optional*): samples of each row's response, instead of its mean.
            generator (`torch.Generator`, *optional*): their randomness, on the CPU.
            fmri_mean, fmri_std (`torch.Tensor` of shape `(batch, max_voxels)`, *optional*):
                Mean and standard deviation of each voxel over the train split, from the processor.
            rois (`list[str]`, *optional*): names of regions, of which alone the responses are returned. All rows are
                then of one subject; `roi_voxels` knows its regions.
            kwargs: other parts of the processor's batch, which are not used.
            The others as in `forward`.

        Returns:
            `(batch, max_voxels)` in the data's own unit, max_voxels being that of `fmri_mean`; without `fmri_mean` and
            `fmri_std` standardised, as wide as the subject with the most voxels needs. A row is zero beyond its
            subject's own voxels. `(batch, num_samples, max_voxels)` with samples. With `rois` a dict by region: each
            value has the voxels of that region alone as its last axis.

        Raises:
            ValueError: an unknown region, rows of several subjects with `rois`, or a row without an image.
        """
        posterior = self.encode_image(pixel_values, image_features, has_image=kwargs.get("has_image"))
        subject_ids = self._subject_ids(subject_ids, posterior.learned.mean)
        if rois is not None:
            places = set(subject_ids.tolist())
            if len(places) != 1:
                raise ValueError(f"rows of {len(places)} subjects: with rois, all rows must be of one subject")
            chosen = self.roi_voxels(self.config.subjects[places.pop()], rois)
        fmri = self.latent_to_fmri(posterior.learned.mean, posterior.linear.mean, subject_ids)[:, None]
        if num_samples is not None:
            noise = torch.randn(fmri.shape[0], num_samples, fmri.shape[2], generator=generator)
            fmri = fmri + self.latent_to_fmri.noise_std(subject_ids)[:, None].to(fmri) * noise.to(fmri)
        if fmri_mean is not None:
            mean, std = fmri_mean.to(fmri.device)[:, None], fmri_std.to(fmri.device)[:, None]
            fmri = fmri[..., : mean.shape[2]] * std + mean  # in their float32: raw units can be beyond float16
        fmri = fmri.squeeze(1) if num_samples is None else fmri
        return fmri if rois is None else {name: fmri[..., voxels.to(fmri.device)] for name, voxels in chosen.items()}

    def roi_voxels(self, subject: str, rois: list[str] | None = None) -> dict[str, torch.Tensor]:
        """Which of a subject's voxels lie in which region.

        Args:
            subject (`str`): as in `config.subjects`.
            rois (`list[str]`, *optional*): names of regions; by default all that are known, in the order of the voxels.

        Returns:
            For each region the numbers of its voxels, int64 of shape `(voxels of the region,)`, on the model's device;
            on the CPU where the model is offloaded.

        Raises:
            ValueError: an unknown subject or region, or a model that knows no regions of the subject.
        """
        if subject not in self.config.subjects:
            raise ValueError(f"unknown subject {subject}: this model knows {', '.join(self.config.subjects) or 'none'}")
        known = {} if self.voxels is None else self.voxels.rois(subject)
        if not known:
            raise ValueError(
                f"this model knows no regions of {subject}'s voxels: leave out rois, or train it on a corpus whose "
                f"{VOXELS} has them"
            )
        names = list(known) if rois is None else [rois] if isinstance(rois, str) else list(rois)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"unknown region {', '.join(unknown)} of {subject}: it has {', '.join(sorted(known))}")
        device = "cpu" if self.device.type == "meta" else self.device  # an index on meta would read what is not there
        return {name: torch.from_numpy(known[name]).to(device) for name in names}

    @with_gradients_of_inputs
    def reconstruct_image(
        self,
        fmri: torch.Tensor,
        subject_ids: torch.Tensor | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        refine: int | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Decoding: the image behind each response, decoded from the mean of q(z, w | fmri).

        Gradient steps refine this mean where training has found that they help.

        Args:
            fmri (`torch.Tensor` of shape `(batch, max_voxels)`): standardised, as the processor makes it.
            num_samples (`int`, *optional*): images of that many samples of q(z | fmri), instead of one of its mean.
            refine (`int`, *optional*): gradient steps on that mean before it is decoded, towards an image for which the
                model itself predicts this response (see `refinement`). Each runs the encoder. By default
                `config.refine_steps`; 0 where a graph is recorded (`torch.compile`, export). The gradients that reach
                `fmri` are those of the mean.
            generator (`torch.Generator`, *optional*): their randomness, on the CPU.
            kwargs: other parts of the processor's batch, which are not used.
            subject_ids: as in `forward`.

        Returns:
            `(batch, num_channels, height, width)` on a 0..1 scale; `(batch, num_samples, ...)` with samples.

        Raises:
            ValueError: `refine` together with `num_samples`, or a row without fMRI.
        """
        posterior = self.encode_fmri(fmri, subject_ids, has_fmri=kwargs.get("has_fmri"))
        if refine and num_samples is not None:
            raise ValueError("refine moves the mean of q(z | fmri), and samples are drawn around it: give one of them")
        if num_samples is None:
            return self.decode(*self._refined(posterior, fmri, self._subject_ids(subject_ids, fmri), refine))
        mean, linear = posterior.learned.mean, posterior.linear.mean
        noise = torch.randn(fmri.shape[0], num_samples, mean.shape[1], generator=generator).to(mean)
        learned = mean[:, None] + (posterior.learned.logvar / 2).exp()[:, None] * noise
        linear = linear[:, None].expand(-1, num_samples, -1)
        return self.decode(learned.flatten(0, 1), linear.flatten(0, 1)).unflatten(0, (-1, num_samples))

    @with_gradients_of_inputs
    def reconstruct_embedding(
        self, fmri: torch.Tensor, subject_ids: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """Decoding into the space of the image encoder: the embedding of the image behind each response.

            embedding ~ M [z, w] + m, which training fits to all images, those without fMRI too

        Args:
            fmri (`torch.Tensor` of shape `(batch, max_voxels)`): standardised, as the processor makes it.
            subject_ids: as in `forward`.
            kwargs: other parts of the processor's batch, which are not used.

        Returns:
            `(batch, width)`, to be compared with `embed_image` of candidates.
        """
        return self.embedding_decoder(self.encode_fmri(fmri, subject_ids, **kwargs).mean)

    @with_gradients_of_inputs
    def embed_image(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """The encoder's embedding: the class token of the last of `feature_layers`, or the mean of its patches.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): on a 0..1 scale; not needed
                with `image_features`.
            image_features: as in `forward`.
            kwargs: other parts of the processor's batch, which are not used.

        Returns:
            `(batch, width)`, the width of that layer.

        Raises:
            ValueError: a row without an image.
        """
        refuse_gaps(kwargs, "has_image", "image")
        if pixel_values is None and image_features is None:
            raise ValueError("pixel_values is None: images are needed, as the processor makes them")
        if image_features is None:
            image_features, _ = self.extract_image_features(pixel_values)
        widths = self.config.feature_widths
        start = sum(widths[:-1]) * (1 + self.config.feature_grid**2)
        return image_features[:, start : start + widths[-1]]

    @torch.no_grad()
    def add_subject(self, name: str, voxels: int) -> None:
        """Make room for a new subject: linear maps between the latent and its voxels, zero until they are fitted.

        What the subjects share stays as it is, and so do the maps of the others. The processor has to know the name
        too (`VisionFlowProcessor.add_subject`). `visionflow train CORPUS RUN --from_model OLD --freeze_shared` does
        both, and fits the maps.

        Args:
            name (`str`): of the subject, as in the corpus's column `subject`.
            voxels (`int`): the number of its voxels.

        Raises:
            ValueError: a name that is known, or no voxel.
        """
        if name in self.config.subjects:
            raise ValueError(f"subject {name} is known already: give another name, or remove_subject first")
        if voxels < 1:
            raise ValueError(f"{voxels} voxels for subject {name}: at least 1 is needed")
        config = self.config
        self.fmri_to_latent.add_subject(voxels)
        self.latent_to_fmri.add_subject(voxels, config.latent_dim + config.bridge_hidden_size + config.linear_dim)
        config.subjects = [*config.subjects, name]
        config.num_voxels = [*config.num_voxels, voxels]

    @torch.no_grad()
    def remove_subject(self, name: str) -> None:
        """Delete a subject: the maps between the latent and its voxels, its name and its noise.

        Raises:
            ValueError: a name that is not known.
        """
        if name not in self.config.subjects:
            raise ValueError(f"unknown subject {name}: this model knows {', '.join(self.config.subjects) or 'none'}")
        place = self.config.subjects.index(name)
        self.fmri_to_latent.remove_subject(place)
        self.latent_to_fmri.remove_subject(place)
        if self.voxels is not None:
            self.voxels = self.voxels.without(name)
        self.config.subjects = [other for other in self.config.subjects if other != name]
        self.config.num_voxels = [count for at, count in enumerate(self.config.num_voxels) if at != place]

    @torch.no_grad()
    def fit_subject(self, name: str, images, fmri, stimulus_ids=None, processor=None, seed: int = 0):
        """Fit the maps of a new subject in closed form from its trials, or those of a known one anew.

        What the subjects share stays as it is. Of some hundred trials and more, `visionflow train` on all of the data
        gives a better model.

        Args:
            name (`str`): of the subject. A known one keeps its place among the subjects.
            images: the image of each trial, in any form that the processor takes.
            fmri: array or tensor of shape `(trials, voxels)`, in the raw unit. The processor gets the mean and the
                standard deviation of each voxel.
            stimulus_ids (`list[str]`, *optional*): the stimulus of each trial; by default trials whose images have the
                same pixels are its repeats.
            processor (`VisionFlowProcessor`, *optional*): that of this model, which learns the subject, too. By default
                it is loaded from where the model came from, which knows no subject that was fitted since: give the one
                that the last `fit_subject` has returned.
            seed (`int`): which images are simulated, and with which known voxels new ones are compared.

        Returns:
            `VisionFlowProcessor`, which knows the subject.

        Raises:
            ValueError: a model without subjects or with weights other than float32, numbers of images and responses
                that differ, responses that are not finite numbers, or fewer than 4 distinct stimuli. Model and
                processor are as before then.
        """
        self._check_precision()
        processor = processor or self._own_processor()
        processor.check_subjects(self.config)  # one that was loaded anew lacks subjects that were added since
        fmri = (
            torch.as_tensor(fmri if isinstance(fmri, (torch.Tensor, np.ndarray)) else np.array(fmri)).detach().float()
        )
        if not self.config.subjects:
            raise ValueError("the model knows no subject to whose voxels new ones could be compared: train it first")
        batch = processor(images=images, subject=self.config.subjects[0])
        refuse_gaps(batch, "has_image", "image")
        pixels = batch["pixel_values"]
        if fmri.ndim != 2 or len(fmri) != len(pixels) or not fmri.numel() or not fmri.isfinite().all():
            raise ValueError(
                f"{len(pixels)} images and fmri of shape {tuple(fmri.shape)}: one finite response (trials, voxels) to "
                "each image is expected"
            )
        if stimulus_ids is None:
            stimulus_ids = [one.cpu().numpy().tobytes() for one in pixels]
        stimulus_ids = stimulus_ids.tolist() if hasattr(stimulus_ids, "tolist") else list(stimulus_ids)
        if len(stimulus_ids) != len(pixels):
            raise ValueError(
                f"{len(stimulus_ids)} stimulus_ids for {len(pixels)} images: one to each image is expected"
            )
        enough(name, stimulus_ids)
        with torch.inference_mode(False), Undisturbed(self):
            known, latents = known_voxels(self, seed, [name]), latents_of(self, pixels)
            simulated = tuple(torch.cat(parts) for parts in zip(latents, latents_of_the_prior(self, seed), strict=True))
            before, table = list(self.config.subjects), self.voxels
            same = name in before and self.config.num_voxels[before.index(name)] == fmri.shape[1]
            std, mean = torch.std_mean(fmri.cpu().double(), 0, correction=0)
            mean, std = mean.numpy(), torch.where(std == 0, 1.0, std).numpy()
            unfinished, scaled = f"{name}, being fitted", copy.deepcopy(processor)
            scaled.add_subject(unfinished, mean, std)
            standardised = scaled(fmri=fmri, subject=unfinished)["fmri"].to(self.device)
            self.add_subject(unfinished, fmri.shape[1])
            try:
                fit_maps(self, unfinished, standardised, latents, stimulus_ids, simulated, known)
            except BaseException:
                self.remove_subject(unfinished)
                self.voxels = table
                raise
            if name in before:
                self.remove_subject(name)
                processor.remove_subject(name)
            self.config.subjects = [*self.config.subjects[:-1], name]
            processor.add_subject(name, mean, std)
            if name in before:  # a processor that was loaded before still has the subjects in this order
                self._order_subjects(before)
                processor.subjects = list(before)
            if same:  # these are the voxels that the table describes
                self.voxels = table
        return processor

    def _order_subjects(self, names: list[str]) -> None:
        order = [self.config.subjects.index(name) for name in names]
        self.fmri_to_latent.order_subjects(order)
        self.latent_to_fmri.order_subjects(order)
        self.config.subjects = list(names)
        self.config.num_voxels = [self.config.num_voxels[place] for place in order]

    def refit(self, rows, processor=None, seed: int = 0, from_learned: bool | None = None) -> "VisionFlowModel":
        """Fit all maps between the latent and fMRI anew, after gradient descent has changed the image side.

        That is the head of w, the maps of all subjects in both directions, their noise, the linear decoder, and the map
        to the encoder's embedding, each by ridge regression; and the MLP from fMRI to latent, by 500 steps on simulated
        trials. Encoder, head of z and image decoder stay as they are, and so do the shares of the MLP and of the linear
        decoder. It takes as long as the last part of `visionflow train`, a minute or so for some hundred stimuli on one
        core.

        Args:
            rows (`datasets.Dataset`): the columns `image`, `fmri` (in the raw unit), `subject` and `stimulus_id`, such
                as the train split. Rows that lack an image or fMRI are left out.
            processor (`VisionFlowProcessor`, *optional*): that of this model. By default it is loaded from where the
                model came from.
            seed (`int`): of the MLP and of what is drawn at random.
            from_learned (`bool`, *optional*): whether z predicts voxels beside w, as `visionflow train` does it. By
                default if it does in the maps that the model has. False where many steps of gradient descent had
                responses in the loss: z of a train image then holds the noise of its responses.

        Returns:
            The model itself.

        Raises:
            ValueError: a column is missing, the rows are not of just the subjects that the model knows, a subject has a
                single stimulus, or the weights are not float32. The model is as before then.
        """
        self._check_precision()
        with torch.inference_mode(False):  # what is fitted shall take part in gradients later
            refit(self, rows, processor or self._own_processor(), seed, from_learned)
        return self

    def refit_callback(self, from_learned: bool | None = None) -> RefitCallback:
        """For `Trainer(..., callbacks=[model.refit_callback()])`: `refit` while training.

        It refits before each evaluation and each checkpoint, and at the end. Without it gradient descent alone would
        change the maps to fMRI, which makes them worse where trials are few.

        Args:
            from_learned (`bool`, *optional*): as in `refit`; by default what the model does as training begins. True
                where a model learns from images alone (`ImageCollator`).
        """
        return RefitCallback(from_learned)

    def _own_processor(self) -> VisionFlowProcessor:
        if not self.config._name_or_path:
            raise ValueError("the model was not loaded from a folder or the Hub: give processor=..., its own")
        commit = getattr(self.config, "_commit_hash", None) or "main"  # the code and the statistics of one commit
        try:
            return VisionFlowProcessor.from_pretrained(self.config._name_or_path, revision=commit, **self._hub_options)
        except OSError as error:
            raise ValueError(
                f"the processor of {self.config._name_or_path} cannot be read ({' '.join(str(error).split())[:200]}): "
                "give processor=..., since no token is kept with a model"
            ) from error

    @torch.no_grad()
    def set_noise(self, subject: str, variance: torch.Tensor) -> None:
        """Take a variance `(voxels,)`, standardised, for that of a subject's single trials around their prediction."""
        logvar = variance.clamp(min=LEAST_NOISE).log()
        self.latent_to_fmri.noise_logvar[self.config.subjects.index(subject), : len(logvar)] = logvar.to(
            self.latent_to_fmri.noise_logvar
        )

    @with_gradients_of_inputs
    def log_likelihood(
        self,
        fmri: torch.Tensor,
        pixel_values: torch.Tensor,
        subject_ids: torch.Tensor | None = None,
        subject: str | None = None,
        image_features: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Which image was it: the log-likelihood of each response of one subject, had it been to each image.

            log N(fmri_i; predicted fmri of image j, covariance of the noise)

        The highest of a row names the image that was most probably shown. The values are of single trials; those of
        means over repeats have the same order.

        Args:
            fmri (`torch.Tensor` of shape `(responses, voxels)`): standardised, as the processor makes it.
            pixel_values (`torch.Tensor` of shape `(images, num_channels, height, width)`): on a 0..1 scale.
            subject (`str`, *optional*): whose responses these are, in place of `subject_ids`.
            subject_ids, image_features: as in `forward`, for the responses and for the images.
            kwargs: other parts of the processor's batch, which are not used.

        Returns:
            `(responses, images)`

        Raises:
            ValueError: responses of several subjects, or of none that the model knows, rows without image or fMRI, or
                responses of another shape.
        """
        refuse_gaps(kwargs, "has_image", "image")
        refuse_gaps(kwargs, "has_fmri", "fMRI")
        if fmri.ndim != 2:
            raise ValueError(f"fmri has shape {tuple(fmri.shape)}: (responses, voxels) is expected, standardised")
        if subject is not None:
            if subject not in self.config.subjects:
                raise ValueError(f"unknown subject {subject}: this model knows {', '.join(self.config.subjects)}")
            places = {self.config.subjects.index(subject)}
        else:
            places = set(self._subject_ids(subject_ids, fmri).tolist())
        if len(places) != 1:
            raise ValueError(f"responses of {len(places)} subjects: give those of one subject at a time")
        (place,) = places
        ids = torch.full((len(pixel_values),), place, device=pixel_values.device)
        predicted = self.predict_fmri(pixel_values, ids, image_features=image_features)
        voxels = self.config.num_voxels[place]
        self._check_width(fmri, place)
        if not torch.compiler.is_compiling() and fmri[:, voxels:].any():
            raise ValueError(
                f"fmri is not zero beyond the {voxels} voxels of {self.config.subjects[place]}: is it theirs?"
            )
        return self.latent_to_fmri.log_likelihood(fmri[:, :voxels], predicted[:, :voxels], place)

    def pipeline(self, task: str, processor):
        """The pipeline of a task with this model, as `transformers.pipeline` makes it from a folder's name.

        Args:
            task: `image-to-fmri`, `fmri-to-image`, or `image-feature-extraction`, the means of latents.
            processor (`VisionFlowProcessor`): the model's own.
        """
        from .pipeline_visionflow import FmriToImagePipeline, ImageFeaturesPipeline, ImageToFmriPipeline

        pipelines = {"image-to-fmri": ImageToFmriPipeline, "fmri-to-image": FmriToImagePipeline}
        pipelines["image-feature-extraction"] = ImageFeaturesPipeline
        if task not in pipelines:
            raise ValueError(f"unknown task {task}: {' or '.join(pipelines)} is expected")
        device = None if getattr(self, "hf_device_map", None) else self.device  # None alone is the first GPU
        return pipelines[task](model=self, processor=processor, device=device)

    def encode_image(
        self,
        pixel_values: torch.Tensor,
        image_features: torch.Tensor | None = None,
        with_linear: bool = True,
        **kwargs,
    ) -> LatentGaussian:
        """q(z, w | image).

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): on a 0..1 scale.
            image_features: as in `forward`; without w those of `feature_layers` are enough.
            with_linear (`bool`): False leaves w out, which costs time; it has no dimensions then.
            kwargs: other parts of the processor's batch, which are not used.

        Raises:
            ValueError: no images, or a row without one.
        """
        refuse_gaps(kwargs, "has_image", "image")
        if pixel_values is None and (image_features is None or (self.config.linear_dim and with_linear)):
            raise ValueError("pixel_values is None: images are needed, as the processor makes them")
        if image_features is None:
            image_features, _ = self.extract_image_features(pixel_values)
        dtype, width = self.posterior_head.weight.dtype, self.posterior_head.in_features
        learned = Gaussian.from_head(self.posterior_head(image_features[:, :width].to(dtype)))
        if self.config.linear_dim and with_linear:
            with without_autocast(pixel_values):
                energies = wavelet_maps(pixel_values.float()).flatten(1)
            read = torch.cat([energies.to(dtype), image_features[:, width:].to(dtype)], dim=1)
            mean = self.linear_head(read).to(learned.mean.dtype)
        else:
            mean = learned.mean[:, :0]
        logvar = at_hand(self, "linear_logvar")[: mean.shape[1]].to(mean).expand_as(mean)
        return LatentGaussian(learned, Gaussian(mean, logvar))

    @merge_with_config_defaults
    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        fmri: torch.Tensor | None = None,
        subject_ids: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_fmri: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The encoder's output; `pooler_output` is the mean of q(z, w | image), `(batch, latent_dim + linear_dim)`.

        Parts of the processor's batch other than `pixel_values` are not used.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in OF_THE_PROCESSOR}
        if self.config.output_hidden_states:
            kwargs.setdefault("output_hidden_states", True)
        features, encoded = self.extract_image_features(pixel_values, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.last_hidden_state,
            pooler_output=self.encode_image(pixel_values, features, has_image=has_image).mean,
            hidden_states=getattr(encoded, "hidden_states", None) if kwargs.get("output_hidden_states") else None,
            attentions=getattr(encoded, "attentions", None),
        )

    def get_fmri_features(self, fmri: torch.Tensor, subject_ids: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """Mean of q(z, w | fmri), `(batch, latent_dim + linear_dim)`."""
        return self.encode_fmri(fmri, subject_ids, **kwargs).mean

    def encode_fmri(self, fmri: torch.Tensor, subject_ids: torch.Tensor | None = None, **kwargs) -> LatentGaussian:
        """q(z, w | fmri); other parts of the processor's batch are not used."""
        refuse_gaps(kwargs, "has_fmri", "fMRI")
        return self._latent_of(fmri, self._subject_ids(subject_ids, fmri))

    def _latent_of(self, fmri: torch.Tensor, ids: torch.Tensor) -> LatentGaussian:
        """q(z, w | fmri), whose rows must have the voxels of their subjects; -1 in `ids` is a row without fMRI."""
        if not torch.compiler.is_compiling() and not (self.training and ids.device.type != "cpu"):
            for place in ids.unique().tolist():
                if place >= 0:
                    self._check_width(fmri, place)
        return self.fmri_to_latent(fmri.to(self._own_dtype()), ids)

    def _check_width(self, fmri: torch.Tensor, place: int) -> None:
        """Raise `ValueError` where responses `(rows, max_voxels)` lack voxels of a subject; more are not read."""
        voxels, name = self.config.num_voxels[place], self.config.subjects[place]
        if fmri.shape[1] < voxels:
            raise ValueError(
                f"fmri has {fmri.shape[1]} voxels a row, {name} has {voxels}: prepare it with the model's processor"
            )

    def encode(
        self,
        pixel_values: torch.Tensor | None = None,
        fmri: torch.Tensor | None = None,
        subject_ids: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_fmri: torch.Tensor | None = None,
        **kwargs,
    ) -> LatentGaussian:
        """q(z, w | image), q(z, w | fmri), or of both the product of experts q(. | image) q(. | fmri) / p.

        The arguments are those of `forward`; other parts of the processor's batch are not used. A row that lacks its
        image or its fMRI has the latent of the other.
        """
        if pixel_values is None and fmri is None:
            raise ValueError("neither pixel_values nor fmri was given: give one or both")
        if fmri is None:
            return self.encode_image(pixel_values, has_image=has_image)
        if pixel_values is None:
            return self.encode_fmri(fmri, subject_ids, has_fmri=has_fmri)
        every_row = torch.ones(fmri.shape[0], dtype=torch.bool, device=fmri.device)
        has_image, has_fmri = (every_row if has is None else has for has in (has_image, has_fmri))
        ids = torch.where(has_fmri, self._subject_ids(subject_ids, fmri, least=-1), -1)
        image, response = self.encode_image(pixel_values), self._latent_of(fmri, ids)
        return image.times(response).where(has_image & has_fmri, image.where(has_image, response))

    def decode(self, learned: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        """image = brightness p

            logit p = (1 - linear_share) logit decoder(z) + linear_share logit linear_decoder(z, w)

        z `(batch, latent_dim)` and w `(batch, linear_dim)` to `(batch, num_channels, height, width)` on a 0..1 scale.
        """
        image, share = self.image_decoder(learned), self.config.linear_share
        image = blend(image, self.linear_decoder(learned, linear), share) if share else image
        return image * self.config.brightness

    def extract_image_features(self, pixel_values: torch.Tensor, **kwargs):
        """What the heads of the posterior read of the encoder, and its whole output.

        Returns:
            Features `(batch, (1 + feature_grid^2) * feature_widths + 49 * linear_widths)`: of each of `feature_layers`
            the class token (the mean token of an encoder without one) beside the patch tokens averaged over a grid of
            `feature_grid` x `feature_grid` cells; then of each of `linear_layers` its channels over 7 x 7 cells.
        """
        pixels = pixel_values.float()  # resizing is not defined for every dtype on every device
        if self.config.num_channels == 1 and getattr(self.config.vision_config, "num_channels", 3) == 3:
            pixels = pixels.expand(-1, 3, -1, -1)
        elif self.config.num_channels == 3 and getattr(self.config.vision_config, "num_channels", 3) == 1:
            pixels = pixels.mean(1, keepdim=True)
        mean, std = (  # filled in on the device: a copy to it would wait for all that it still has to do
            torch.cat([pixels.new_full((1, 1, 1), value) for value in values[: pixels.shape[1]]])
            for values in (self.config.image_mean, self.config.image_std)
        )
        size = self.config.encoder_image_size
        if list(pixels.shape[-2:]) != size:
            pixels = resized(pixels, size)
        pixels = ((pixels - mean) / std).to(self._own_dtype())
        config, own = self.config, len(self.config.feature_layers)
        layers, encoded = layer_maps(self.encoder, pixels, [*config.feature_layers, *config.linear_layers], **kwargs)
        parts = [pooled_features(layer, config.feature_grid) for layer in layers[:own]]
        parts += [average_pool(layer.grid, LINEAR_CELLS).flatten(1) for layer in layers[own:]]
        return torch.cat(parts, dim=1), encoded

    @property
    def feature_sizes(self) -> list[int]:
        """How many of the features of `extract_image_features` the posterior's head reads, and the linear head."""
        return [self.posterior_head.in_features, sum(self.config.linear_widths) * LINEAR_CELLS**2]

    def _check_voxels(self) -> None:
        """Raise an OSError where the voxel table has another number of voxels than the model."""
        for name, voxels in zip(self.config.subjects, self.config.num_voxels, strict=True):
            rows = voxels if self.voxels is None else len(self.voxels.rows.get(name, range(voxels)))
            if rows != voxels:
                raise OSError(f"{VOXELS} has {rows} voxels of {name}, the model has {voxels}: copy both from one place")

    def _replicate_for_data_parallel(self):
        """As in `nn.Module`. The hooks that give the layers of the encoder are set before: a replica would add its own
        in each step, to those that all share."""
        for module in self.encoder.modules():
            if isinstance(module, PreTrainedModel):
                maybe_install_capturing_hooks(module)
        return super()._replicate_for_data_parallel()

    def train(self, mode: bool = True) -> "VisionFlowModel":
        """As in `nn.Module`; layers of the encoder that are frozen keep their running means and variances."""
        super().train(mode)
        for module in self.encoder.modules():
            weights = list(module.parameters(recurse=False))
            if getattr(module, "running_mean", None) is not None and not any(one.requires_grad for one in weights):
                module.training = False
        return self

    def _check_precision(self) -> None:
        """Raise a ValueError where weights are not float32."""
        for weight in self.parameters():
            if weight.is_floating_point() and weight.dtype != torch.float32:
                raise ValueError(
                    f"the weights are of {weight.dtype}: call model.float() first, the fits need torch.float32"
                )

    def _own_dtype(self) -> torch.dtype:
        """The weights' dtype; `self.dtype` has no parameters to look at in a replica of `nn.DataParallel`."""
        return self.posterior_head.weight.dtype

    def _refined(
        self, posterior: LatentGaussian, fmri: torch.Tensor, subject_ids: torch.Tensor, steps: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """z and w of each response after gradient steps, as in `reconstruct_image`; their gradients are the means'."""
        means = posterior.learned.mean, posterior.linear.mean
        if steps is None:
            steps = 0 if torch.compiler.is_compiling() else self.config.refine_steps
        if not steps or not len(fmri):
            return means
        found = refined(self, posterior, fmri, subject_ids, steps)
        return tuple(mean + (latent - mean).detach() for mean, latent in zip(means, found, strict=True))

    def _subject_ids(self, subject_ids: torch.Tensor | None, rows: torch.Tensor, least: int = 0) -> torch.Tensor:
        """The place of each row's subject in `config.subjects`, `(batch,)`, on the device of `rows`.

        Raises:
            ValueError: none given although there are several subjects, or a place below `least` or beyond the last.
        """
        subjects = self.config.subjects
        if not subjects:
            raise ValueError("this model knows no subject: give the config `subjects` and `num_voxels`")
        if subject_ids is None:
            if len(subjects) > 1:
                raise ValueError(f"subject_ids is missing: this model knows {', '.join(subjects)}")
            return torch.zeros(rows.shape[0], dtype=torch.long, device=rows.device)
        if subject_ids.shape != rows.shape[:1]:
            raise ValueError(f"subject_ids has shape {tuple(subject_ids.shape)}: one for each of {rows.shape[0]} rows")
        waits = subject_ids.device.type != "cpu" and self.training  # an accelerator would have to finish its work first
        if not torch.compiler.is_compiling() and not waits and len(subject_ids):
            low, high = int(subject_ids.min()), int(subject_ids.max())
            if low < least or high >= len(subjects):
                raise ValueError(f"subject_ids has {low} to {high}: this model knows 0 to {len(subjects) - 1}")
        return subject_ids.to(rows.device)


def refuse_gaps(batch: dict, name: str, what: str) -> None:
    """Raise `ValueError` where a batch says that rows lack what is needed of all; not in a graph, which cannot ask."""
    has = batch.get(name)
    if has is None or torch.compiler.is_compiling() or bool(has.all()):
        return
    missing = ", ".join(map(str, (~has).nonzero().flatten().tolist()))
    raise ValueError(f"row {missing} of the batch has no {what}: leave such rows out")


__all__ = ["VisionFlowModel", "VisionFlowOutput"]
