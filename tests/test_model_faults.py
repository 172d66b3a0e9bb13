"""Models and batches that do not quite fit: other precisions, ids of another length, layers that are frozen."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from transformers import AutoConfig, AutoModel, ViTConfig

from visionflow_hf.errors import UserError
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel, VisionFlowProcessor, linear_latent
from visionflow_hf.modeling.refit import RowImages, Undisturbed
from visionflow_hf.modeling.trials import Trials
from visionflow_hf.modeling.voxel_table import VoxelTable
from visionflow_hf.training.arguments import ModelArguments
from visionflow_hf.training.build import build_model, build_processor, continue_model
from visionflow_hf.training.train import refuse_contradictions

FEATURES = Features(image=Image(), fmri=List(Value("float32")), subject=Value("string"), stimulus_id=Value("string"))


def rows_of(subjects: dict[str, np.ndarray], side: int = 16, channels: tuple[int, ...] = ()) -> Dataset:
    """The same images for all subjects, with these responses."""
    rng = np.random.default_rng(0)
    most = max(map(len, subjects.values()))
    pictures = [Pictures.fromarray(one) for one in rng.integers(0, 256, (most, side, side, *channels), dtype=np.uint8)]
    rows = [(pictures[row], one, name, f"i{row}") for name, fmri in subjects.items() for row, one in enumerate(fmri)]
    return Dataset.from_dict(dict(zip(FEATURES, map(list, zip(*rows, strict=True)), strict=True)), features=FEATURES)


def noise(trials: int, voxels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(trials, voxels)).astype(np.float32)


@pytest.fixture(scope="module")
def two():
    """A model of two subjects with 40 voxels of noise each, fitted to 120 images."""
    rows = rows_of({"ann": noise(120, 40), "bob": noise(120, 40, 1)})
    processor = VisionFlowProcessor.from_dataset(rows)
    torch.manual_seed(0)
    model = VisionFlowModel(VisionFlowConfig.for_dataset(rows, processor)).eval()
    return model.refit(rows, processor), processor, rows


def test_subject_ids_of_another_length_are_refused(two):
    model, processor, rows = two
    batch = processor(images=rows["image"][:3], fmri=np.stack(rows["fmri"][:3]), subject="ann")
    for ids in (torch.tensor([0]), torch.tensor(0), torch.zeros(3, 1, dtype=torch.long)):
        for call in (model.predict_fmri, model.reconstruct_image, model):
            given = {**batch, "subject_ids": ids}
            with pytest.raises(ValueError, match=r"subject_ids has shape .*: one for each of 3 rows"):
                call(**given)


def test_responses_with_too_few_voxels_are_refused(two):
    model, processor, rows = two
    batch = processor(fmri=np.stack(rows["fmri"][:3]), subject="ann")
    short = {**batch, "fmri": batch["fmri"][:, :30]}
    for call in (model.encode_fmri, model.reconstruct_image, model.reconstruct_embedding):
        with pytest.raises(ValueError, match="fmri has 30 voxels a row, ann has 40: prepare it with the model's proc"):
            call(**short)


def test_a_known_subject_is_not_fitted_from_its_own_maps(two):
    """They were fitted to the same trials: noise would be predicted, and taken for signal."""
    model, processor, rows = two
    own = [row for row, name in enumerate(rows["subject"]) if name == "ann"]
    images, fmri = rows.select(own)["image"], np.stack(rows.select(own)["fmri"])
    table = pa.table({"subject": ["ann"] * 40 + ["bob"] * 40, "voxel": [*range(40)] * 2, "roi": [["V1"]] * 80})
    model.voxels = VoxelTable(table)
    model.fit_subject("ann", images=images, fmri=fmri, processor=processor)
    assert model.config.subjects == ["ann", "bob"]
    assert model.latent_to_fmri.noise_logvar[0, :40].exp().mean() > 0.9
    assert list(model.roi_voxels("ann")) == ["V1"]  # the same voxels
    model.fit_subject("ann", images=images, fmri=fmri[:, :30], processor=processor)
    with pytest.raises(ValueError, match="knows no regions of ann"):
        model.roi_voxels("ann")


def test_voxels_of_a_layer_count_as_much_as_voxels_of_energies():
    """What a layer of the encoder tells of a voxel makes it as reliable as what Gabor energies tell of another."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(200, 5))  # what the layer says of each image
    layer = (hidden @ rng.normal(size=(5, 16 * 49))).astype(np.float32)
    of_layer = hidden @ rng.normal(size=(5, 10))
    fmri = (of_layer / of_layer.std(0) + 0.5 * rng.normal(size=(200, 10))).astype(np.float32)
    rows = rows_of({"ann": np.concatenate([fmri, noise(200, 10)], axis=1)}, side=32)
    processor = VisionFlowProcessor.from_dataset(rows)
    vision = ViTConfig(
        **{"image_size": 32, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "intermediate_size": 32},
    )
    config = VisionFlowConfig.for_dataset(rows, processor, vision_config=vision, linear_layers=[1], latent_dim=16)
    model = VisionFlowModel(config).eval()

    class Told(RowImages):
        def image_features(self, stimulus_ids, with_linear=True):
            plain = torch.zeros(len(stimulus_ids), model.feature_sizes[0])
            told = torch.from_numpy(layer[[int(name[1:]) for name in stimulus_ids]])
            return torch.cat([plain, told], dim=1) if with_linear else plain

    with Undisturbed(model):
        weights = linear_latent.fit_encoding(model, Trials(rows, processor), Told(rows, processor), 0)["ann"]
    assert weights[:10].min() > 1 and weights[10:].mean() < 0.4, weights
    claimed = model.latent_to_fmri.noise_logvar[0].exp()
    assert claimed[:10].mean() < 0.4 and claimed[10:].mean() > 0.85, claimed


@pytest.mark.parametrize("kind", ["resnet", "dinov2"])
def test_a_model_saved_in_half_precision_is_continued_in_float32(kind, tmp_path):
    rows = rows_of({"ann": noise(12, 5)}, side=32, channels=(3,))
    sizes = {
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        "dinov2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28},
    }
    processor = VisionFlowProcessor.from_dataset(rows)
    config = VisionFlowConfig.for_dataset(rows, processor, vision_config=AutoConfig.for_model(kind, **sizes[kind]))
    VisionFlowModel(config).to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, processor = continue_model(str(tmp_path), rows, ModelArguments(from_model=str(tmp_path)))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model(**processor(images=rows["image"][:2])).reconstruction.isfinite().all()
    model.encoder.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"the weights are of torch\.bfloat16"):
        model.refit(rows, processor)


def encoder_of(kind: str, folder, **sizes) -> str:
    AutoModel.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    return str(folder)


def test_frozen_layers_keep_their_running_means(tmp_path):
    encoder = encoder_of("resnet", tmp_path, embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    rows = rows_of({"ann": noise(12, 5)}, side=32, channels=(3,))
    model = build_model(build_processor(rows), ModelArguments(encoder=encoder, unfreeze_blocks=1), rows)
    modes = {name: one.training for name, one in model.train().encoder.named_modules() if hasattr(one, "running_mean")}
    assert not any(mode for name, mode in modes.items() if "stages.3" not in name)
    assert all(mode for name, mode in modes.items() if "stages.3" in name) and len(set(modes.values())) == 2
    model.encoder.requires_grad_(True)
    assert all(one.training for one in model.train().encoder.modules())


@pytest.mark.parametrize("kind", ["poolformer", "pvt"])
def test_the_last_block_is_none_of_the_patch_embeddings(kind, tmp_path):
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    sizes |= {"num_attention_heads": [1, 1, 2, 2], "image_size": 32} if kind == "pvt" else {}
    rows = rows_of({"ann": noise(12, 5)}, side=32, channels=(3,))
    args = ModelArguments(encoder=encoder_of(kind, tmp_path, **sizes), unfreeze_blocks=1)
    encoder = build_model(build_processor(rows), args, rows).encoder
    trained = [name for name, weight in encoder.named_parameters() if weight.requires_grad]
    assert trained and not [name for name in trained if ".0.0." in name or ".1.0." in name or ".2.0." in name], trained


@pytest.mark.parametrize("flag", ["kl_weight", "linear_dim", "bridge_dropout"])
def test_flags_that_new_subjects_do_not_heed_are_refused(flag):
    given = {"kl_weight": 0.5, "linear_dim": 64, "bridge_dropout": 0.5}
    with pytest.raises(UserError, match=f"--freeze_shared fits .* leave out --{flag}"):
        refuse_contradictions(ModelArguments(from_model="model", freeze_shared=True, **{flag: given[flag]}))
