"""The model: what it computes, for whom, and that it survives saving, dtypes and missing parts."""

import pytest
import torch
from transformers import ViTConfig

from visionflow_hf import VisionFlowConfig, VisionFlowModel
from visionflow_hf.modeling.latent_gaussian import Gaussian

VOXELS = [9, 5]


def tiny_config(**changes) -> VisionFlowConfig:
    vision = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=12, patch_size=4
    )
    settings = {
        "vision_config": vision,
        "image_size": [14, 10],
        "feature_grid": 3,
        "latent_dim": 6,
        "linear_dim": 3,
        "subjects": ["ann", "bob"],
        "num_voxels": VOXELS,
        "bridge_hidden_size": 8,
    }
    return VisionFlowConfig(**settings | changes)


@pytest.fixture
def model() -> VisionFlowModel:
    torch.manual_seed(0)
    model = VisionFlowModel(tiny_config()).eval()
    for parameter in model.parameters():  # leave no part at its zero start
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def batch() -> dict:
    generator = torch.Generator().manual_seed(1)
    fmri = torch.randn(4, 9, generator=generator)
    subject_ids = torch.tensor([0, 1, 1, 0])
    fmri[subject_ids == 1, 5:] = 0
    return {"pixel_values": torch.rand(4, 3, 14, 10, generator=generator), "fmri": fmri, "subject_ids": subject_ids}


def test_shapes_and_the_order_of_the_output(model, batch):
    out = model(**batch)
    assert out.reconstruction.shape == (4, 3, 14, 10)
    assert out.fmri.shape == (4, 9)
    for name in ("image_latent_mean", "image_latent_logvar", "fmri_latent_mean", "fmri_latent_logvar"):
        assert out[name].shape == (4, 6 + 3)
    assert list(out.keys())[:5] == ["loss", "loss_image", "loss_kl", "loss_alignment", "loss_fmri"]
    assert torch.equal(model(**batch, return_dict=False)[0], out.loss)


def test_the_loss_is_the_weighted_sum_of_its_named_parts(batch):
    weights = {"image_weight": 2.0, "kl_weight": 0.3, "alignment_weight": 0.5, "fmri_weight": 0.7}
    model = VisionFlowModel(tiny_config(**weights)).eval()
    out = model(**batch)
    expected = 2 * out.loss_image + 0.3 * out.loss_kl + 0.5 * out.loss_alignment + 0.7 * out.loss_fmri
    torch.testing.assert_close(out.loss, expected)


def test_each_loss_against_a_computation_of_its_own(model, batch):
    out = model(**batch)
    image_q = torch.distributions.Normal(out.image_latent_mean, (out.image_latent_logvar / 2).exp())
    fmri_q = torch.distributions.Normal(out.fmri_latent_mean, (out.fmri_latent_logvar / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    torch.testing.assert_close(out.loss_kl, torch.distributions.kl_divergence(image_q, prior)[:, :6].mean())
    torch.testing.assert_close(out.loss_alignment, torch.distributions.kl_divergence(image_q, fmri_q).mean())
    from_image = model.image_decoder(out.image_latent_mean[:, :6])
    real = torch.distributions.Bernoulli(batch["pixel_values"], validate_args=False)  # grey too, not 0 and 1 alone
    held_off = [1 / 512 + 510 / 512 * image for image in (from_image, out.reconstruction)]
    apart = [torch.distributions.kl_divergence(real, torch.distributions.Bernoulli(p)).mean() for p in held_off]
    torch.testing.assert_close(out.loss_image, sum(apart) / 2)
    by_row = [
        (out.fmri[row, : VOXELS[s]] - batch["fmri"][row, : VOXELS[s]]).square().mean()
        for row, s in enumerate(batch["subject_ids"].tolist())
    ]
    torch.testing.assert_close(out.loss_fmri, sum(by_row) / 4)


def test_a_row_does_not_depend_on_the_rest_of_its_batch(model, batch):
    together = model(**batch)
    for row in range(4):
        alone = model(**{name: values[row : row + 1] for name, values in batch.items()})
        voxels = VOXELS[batch["subject_ids"][row]]
        torch.testing.assert_close(alone.reconstruction[0], together.reconstruction[row])
        torch.testing.assert_close(alone.fmri[0, :voxels], together.fmri[row, :voxels])
        assert (together.fmri[row, voxels:] == 0).all()


def test_rows_without_image_or_without_fmri_leave_the_others_as_they_are(model, batch):
    has_image = torch.tensor([True, False, True, True])
    has_fmri = torch.tensor([True, True, False, True])
    out = model(**batch, has_image=has_image, has_fmri=has_fmri)
    spoiled = {name: values.clone() for name, values in batch.items()}
    spoiled["pixel_values"][1], spoiled["fmri"][2] = 0.7, 5.0  # what stands in a missing part does not matter
    same = model(**spoiled, has_image=has_image, has_fmri=has_fmri)
    for name in ("loss", "loss_image", "loss_kl", "loss_alignment", "loss_fmri", "reconstruction", "fmri"):
        torch.testing.assert_close(out[name], same[name])
    paired = model(**{name: values[[0, 3]] for name, values in batch.items()})
    torch.testing.assert_close(out.loss_alignment, paired.loss_alignment)


def test_one_modality_alone(model, batch):
    image_only = model(pixel_values=batch["pixel_values"])
    assert image_only.loss_fmri is None and image_only.loss_alignment is None and image_only.fmri is None
    fmri_only = model(fmri=batch["fmri"], subject_ids=batch["subject_ids"])
    assert fmri_only.loss_image is None and fmri_only.loss_alignment is None
    both = model(**batch)
    torch.testing.assert_close(fmri_only.reconstruction, both.reconstruction)
    unseen = model(**batch, decode_images=False)
    assert unseen.reconstruction is None and unseen.loss_image is None
    torch.testing.assert_close(unseen.loss, both.loss - model.config.image_weight * both.loss_image)
    with pytest.raises(ValueError, match="give one or both"):
        model()


def test_in_training_images_alone_predict_no_voxels(batch):
    model = VisionFlowModel(tiny_config(subjects=["subj01"], num_voxels=[6]))
    assert model.eval()(pixel_values=batch["pixel_values"]).fmri.shape == (len(batch["pixel_values"]), 6)
    assert model.train()(pixel_values=batch["pixel_values"]).fmri is None


def test_two_observations_of_a_latent_are_a_product_of_experts(model, batch):
    # z ~ N(0, 1) is measured twice, with noise of variance .5 and 2: the posterior in closed form.
    first = Gaussian(torch.tensor([[0.9 / 1.5]]), torch.tensor([[(0.5 / 1.5)]]).log())
    second = Gaussian(torch.tensor([[-0.6 / 3]]), torch.tensor([[2 / 3]]).log())
    both = first.times(second)
    torch.testing.assert_close(both.logvar.exp(), torch.tensor([[1 / (1 + 2 + 0.5)]]))
    torch.testing.assert_close(both.mean, torch.tensor([[(0.9 * 2 - 0.6 * 0.5) / 3.5]]))
    prior = Gaussian(torch.zeros(1, 1), torch.ones(1, 1))  # it cannot tell more than nothing
    torch.testing.assert_close(first.times(prior).mean, first.mean)
    image, fmri = {"pixel_values": batch["pixel_values"]}, {key: batch[key] for key in ("fmri", "subject_ids")}
    with torch.no_grad():
        one, other, joint = model.encode(**image), model.encode(**fmri), model.encode(**image, **fmri)
    torch.testing.assert_close(one.mean, model(**batch).image_latent_mean)
    torch.testing.assert_close(other.mean, model(**batch).fmri_latent_mean)
    assert (joint.logvar <= one.logvar + 1e-6).all() and (joint.logvar <= other.logvar.clamp(max=0) + 1e-6).all()
    with pytest.raises(ValueError, match="give one or both"):
        model.encode()


def test_sampling_happens_in_training_or_with_noise_and_nowhere_else(model, batch):
    assert torch.equal(model(**batch).reconstruction, model(**batch).reconstruction)
    noise = torch.randn(4, 6)
    noisy = model(**batch, noise=noise)
    assert torch.equal(noisy.reconstruction, model(**batch, noise=noise).reconstruction)
    assert not torch.equal(noisy.reconstruction, model(**batch).reconstruction)
    model.train()
    for module in model.modules():  # what is left of chance is the sampling
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert not torch.equal(model(**batch).reconstruction, model(**batch).reconstruction)
    assert torch.equal(model(**batch, noise=noise).reconstruction, model(**batch, noise=noise).reconstruction)


def test_both_directions_agree_with_forward_and_keep_units(model, batch):
    out = model(**batch)
    mean, std = torch.full((4, 9), 3.0), torch.full((4, 9), 2.0)
    predicted = model.predict_fmri(batch["pixel_values"], batch["subject_ids"], fmri_mean=mean, fmri_std=std)
    torch.testing.assert_close(predicted, out.fmri * 2 + 3)
    reconstructed = model.reconstruct_image(batch["fmri"], batch["subject_ids"])
    torch.testing.assert_close(reconstructed, out.reconstruction.clamp(0, 1))
    again = model.reconstruct_image(
        model.predict_fmri(batch["pixel_values"], batch["subject_ids"]), batch["subject_ids"]
    )
    assert again.shape == batch["pixel_values"].shape


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_forward_and_reconstruct_image_give_one_image(model, batch, share):
    model.config.linear_share = share
    alone = model.reconstruct_image(batch["fmri"], batch["subject_ids"])
    torch.testing.assert_close(model(**batch).reconstruction, alone)


def test_gradients_flow_through_both_directions(model, batch):
    pixels, fmri = (batch[name].clone().requires_grad_() for name in ("pixel_values", "fmri"))
    model.predict_fmri(pixels, batch["subject_ids"])[0, 0].backward()
    model.reconstruct_image(fmri, batch["subject_ids"]).sum().backward()
    assert pixels.grad[0].abs().sum() > 0 == pixels.grad[1].abs().sum() and fmri.grad.abs().sum() > 0


def test_a_batch_of_the_processor_fits_every_method(model, batch):
    more = {"fmri_mean": torch.zeros(4, 9), "fmri_std": torch.ones(4, 9)}
    torch.testing.assert_close(model(**batch, **more).loss, model(**batch).loss)
    torch.testing.assert_close(model.predict_fmri(**batch, **more), model(**batch).fmri)
    torch.testing.assert_close(model.reconstruct_image(**batch, **more), model(**batch).reconstruction)
    assert model.encode(**batch, **more).mean.shape == (4, 9)
    assert torch.equal(model.get_image_features(**batch, **more).pooler_output, model(**batch).image_latent_mean)
    assert torch.equal(model.get_fmri_features(**batch, **more), model(**batch).fmri_latent_mean)


def test_a_replica_without_parameters_runs(model, batch):
    """`nn.DataParallel` gives its replicas tensors in the place of parameters: `self.device` and `self.dtype` fail."""
    from torch.nn.parallel.replicate import _replicatable_module

    assert _replicatable_module(model)
    expected = model(**batch).loss
    replica = model._replicate_for_data_parallel()
    for name, module in model.named_modules():
        if name:
            parent, _, last = name.rpartition(".")
            copy = module._replicate_for_data_parallel()
            holder = replica.get_submodule(parent) if parent else replica
            holder._modules[last] = copy
    for module, original in zip(replica.modules(), model.modules(), strict=True):
        for name, values in original._parameters.items():
            module._parameters.pop(name, None)
            setattr(module, name, values.detach() if values is not None else None)
    assert not list(replica.parameters())
    torch.testing.assert_close(replica(**batch).loss, expected)


def test_a_batch_of_the_subject_with_fewer_voxels(model, batch):
    rows = batch["subject_ids"] == 1
    alone = {name: values[rows] for name, values in batch.items()}
    alone["fmri"] = alone["fmri"][:, :5]
    together = model(**batch, has_fmri=rows)
    assert torch.isclose(model(**alone).loss_fmri, together.loss_fmri)
    mean, std = torch.full((2, 5), 3.0), torch.full((2, 5), 2.0)
    predicted = model.predict_fmri(alone["pixel_values"], alone["subject_ids"], mean, std)
    torch.testing.assert_close(predicted, together.fmri[rows][:, :5] * 2 + 3)
    images = model.reconstruct_image(alone["fmri"], alone["subject_ids"])
    torch.testing.assert_close(images, together.reconstruction[rows].clamp(0, 1))
    with pytest.raises(ValueError, match="fmri has 10 voxels a row, the subjects of this model have 9 at most"):
        model.encode_fmri(torch.zeros(1, 10), torch.tensor([0]))


def test_a_missing_subject_is_named_in_the_error(model, batch):
    with pytest.raises(ValueError, match="ann, bob"):
        model.predict_fmri(batch["pixel_values"])
    for wrong in (torch.tensor([0, 1, 2, 0]), torch.tensor([0, -1, 0, 0])):  # the last voxels, silently
        with pytest.raises(ValueError, match="this model knows 0 to 1"):
            model.predict_fmri(batch["pixel_values"], wrong)
    with pytest.raises(ValueError, match="this model knows 0 to 1"):
        model(**batch | {"subject_ids": torch.tensor([0, 1, 2, 0])})
    alone = VisionFlowModel(tiny_config(subjects=["ann"], num_voxels=[9])).eval()
    assert alone.predict_fmri(batch["pixel_values"]).shape == (4, 9)


@pytest.mark.parametrize("size", [[8, 8], [7, 7], [2, 3], [28, 28], [33, 20], [112, 96], [224, 224], [225, 5]])
def test_the_decoder_reaches_every_image_size(size):
    config = tiny_config(image_size=size, decoder_channels=2)
    model = VisionFlowModel(config).eval()
    assert model.image_decoder(torch.zeros(1, 6)).shape == (1, 3, *size)
    assert max(model.image_decoder.grid) <= 7


def test_grey_images_reach_an_rgb_encoder(batch):
    model = VisionFlowModel(tiny_config(num_channels=1)).eval()
    grey = batch["pixel_values"][:, :1]
    assert model(pixel_values=grey).reconstruction.shape == (4, 1, 14, 10)


def test_features_computed_beforehand_give_the_same_result(model, batch):
    features, _ = model.extract_image_features(batch["pixel_values"])
    assert features.shape == (4, (1 + 9) * 16)
    torch.testing.assert_close(model(**batch, image_features=features).loss, model(**batch).loss)


def test_bfloat16_stays_close(model, batch):
    expected = model(**batch).reconstruction
    out = model.to(torch.bfloat16)(**batch)
    assert out.reconstruction.dtype == torch.bfloat16
    torch.testing.assert_close(out.reconstruction.float(), expected, atol=0.03, rtol=0.03)
    out.loss.backward()


def test_gradient_checkpointing_gives_the_same_gradients(batch):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = VisionFlowModel(tiny_config(bridge_dropout=0.0, voxel_dropout=0.0)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.encoder.modules())
        model(**batch, noise=torch.ones(4, 6)).loss.backward()
        gradients.append([p.grad for p in model.encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_sdpa_equals_eager(batch):
    models = {
        kind: VisionFlowModel._from_config(tiny_config(), attn_implementation=kind).eval() for kind in ("sdpa", "eager")
    }
    models["eager"].load_state_dict(models["sdpa"].state_dict())
    assert models["sdpa"].encoder.config._attn_implementation == "sdpa"
    torch.testing.assert_close(models["sdpa"](**batch).loss, models["eager"](**batch).loss)


def test_hidden_states_and_attentions_of_the_encoder(batch):
    model = VisionFlowModel._from_config(tiny_config(), attn_implementation="eager").eval()
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2


def test_a_saved_model_comes_back_whole(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = VisionFlowModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, values in model.state_dict().items():
        assert torch.equal(values, loaded.state_dict()[name]), name
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    for name in ("subjects", "num_voxels", "image_size", "image_mean", "latent_dim", "kl_weight"):
        assert getattr(loaded.config, name) == getattr(model.config, name)


def test_weights_are_saved_under_the_names_by_which_trainer_loads_them(model, tmp_path):
    from safetensors.torch import load_file

    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_channels": 2}, "num_channels is 2"),
        ({"image_size": [8]}, "image_size"),
        ({"num_voxels": [9]}, "one voxel count for each"),
        ({"subjects": ["ann", "ann"]}, "one voxel count for each"),
    ],
)
def test_sizes_that_make_no_model_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_rows_that_lack_one_of_the_two(model):
    pixels, fmri = torch.rand(2, 3, 14, 10), torch.randn(2, max(VOXELS))
    gaps = {"has_image": torch.tensor([True, False]), "has_fmri": torch.tensor([True, True])}
    ids = torch.tensor([0, 0])
    with torch.no_grad():
        found = model.encode(pixel_values=pixels, fmri=fmri, subject_ids=ids, **gaps).mean
        both = model.encode(pixel_values=pixels, fmri=fmri, subject_ids=ids).mean
        torch.testing.assert_close(found[0], both[0])
        torch.testing.assert_close(found[1], model.encode_fmri(fmri, ids).mean[1])
        gaps["has_fmri"] = torch.tensor([False, True])
        found = model.encode(pixel_values=pixels, fmri=fmri, subject_ids=torch.tensor([-1, 0]), **gaps).mean
        torch.testing.assert_close(found[0], model.encode_image(pixels).mean[0])
    for method in (model.predict_fmri, model.encode_image, model.get_image_features):
        with pytest.raises(ValueError, match="row 1 of the batch has no image"):
            method(pixel_values=pixels, subject_ids=ids, **gaps)
    for method in (model.reconstruct_image, model.encode_fmri, model.get_fmri_features, model.reconstruct_embedding):
        with pytest.raises(ValueError, match="row 0 of the batch has no fMRI"):
            method(fmri=fmri, subject_ids=ids, **gaps)
