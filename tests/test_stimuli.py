"""The stimuli on disk: equal to what processor and encoder make, computed once, and never stale."""

import os
import pickle
import time

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from PIL import Image
from transformers import ViTConfig, ViTModel

from visionflow_hf import stimuli as module
from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.stimuli import KeptArrays, Stimuli
from visionflow_hf.training.arguments import ModelArguments
from visionflow_hf.training.build import build_model, build_processor


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


@pytest.fixture
def parts(colour_corpus, encoder):
    train = open_corpus(colour_corpus).splits["train"]
    processor = build_processor(train, None)
    return train, processor, build_model(processor, ModelArguments(encoder=encoder), train).eval()


@pytest.fixture
def computed(monkeypatch):
    """How many stimuli were read, and how many were encoded."""
    seen = {"read": 0, "encoded": 0}
    read, encode = module.read_pixels, Stimuli._encode

    def watch_read(processor, where, keys):
        seen["read"] += len(keys)
        return read(processor, where, keys)

    def watch_encode(self, model, keys):
        seen["encoded"] += len(keys)
        return encode(self, model, keys)

    monkeypatch.setattr(module, "read_pixels", watch_read)
    monkeypatch.setattr(Stimuli, "_encode", watch_encode)
    return seen


def close(found: torch.Tensor, expected: torch.Tensor, model) -> None:
    """Those that the linear dimensions read are kept in float16."""
    (found, found_half), (expected, expected_half) = (one.split(model.feature_sizes, 1) for one in (found, expected))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found_half, expected_half, atol=1e-3, rtol=1e-3)


def test_they_are_what_processor_and_encoder_make(parts, tmp_path):
    train, processor, model = parts
    stimuli = Stimuli(processor, [train], model, tmp_path / "cache")
    names = list(dict.fromkeys(train["stimulus_id"]))[::-1]
    pictures = dict(zip(train["stimulus_id"], train["image"], strict=True))
    pixels = processor(images=[pictures[name] for name in names])["pixel_values"]
    assert torch.equal(stimuli.pixel_values(names), pixels)
    with torch.no_grad():
        features = model.extract_image_features(pixels)[0]
    close(stimuli.image_features(names), features, model)
    head = model.feature_sizes[0]
    assert torch.equal(stimuli.image_features(names, with_linear=False), stimuli.image_features(names)[:, :head])
    assert Stimuli(processor, [train], cache=tmp_path / "cache").image_features(names) is None


def test_a_second_run_finds_them_and_more_stimuli_cost_what_is_new(parts, tmp_path, computed):
    train, processor, model = parts
    few = train.select([0, 1, 2])
    first = Stimuli(processor, [few], model, tmp_path)
    assert computed == {"read": 3, "encoded": 3}
    again = Stimuli(processor, [few], model, tmp_path)
    assert computed == {"read": 3, "encoded": 3}
    assert torch.equal(first.image_features(few["stimulus_id"]), again.image_features(few["stimulus_id"]))
    Stimuli(processor, [train], model, tmp_path)
    assert computed == {"read": 16, "encoded": 16}
    assert isinstance(next(iter(again.features.files.values())), np.memmap)


@pytest.mark.parametrize("change", ["weights", "normalisation", "grid", "size", "code"])
def test_what_they_follow_from_finds_them(parts, tmp_path, computed, monkeypatch, change):
    train, processor, model = parts
    Stimuli(processor, [train], model, tmp_path)
    if change == "weights":
        with torch.no_grad():
            model.encoder.layernorm.bias[3] += 1e-6
    elif change == "normalisation":
        model.config.image_std = [0.5, 0.5, 0.4]
    elif change == "grid":
        model.config.feature_grid = 2
    elif change == "size":
        processor.image_size = [9, 12]
    else:
        monkeypatch.setattr(module, "code_of", lambda part: "another")
    width = model.posterior_head.in_features
    if change == "grid":
        model.posterior_head = torch.nn.Linear(width // 17 * 5, 2)
    stimuli = Stimuli(processor, [train], model, tmp_path)
    reread = 16 if change in ("size", "code") else 0
    assert computed == {"read": 16 + reread, "encoded": 32}
    with torch.no_grad():
        pixels = stimuli.pixel_values(train["stimulus_id"][:4])
        features = model.extract_image_features(pixels)[0]
    close(stimuli.image_features(train["stimulus_id"][:4]), features, model)


def test_another_picture_under_an_old_name_is_seen(parts, tmp_path):
    train, processor, model = parts
    before = Stimuli(processor, [train], model, tmp_path)
    black = train.select([0]).map(lambda row: {"image": Image.new("RGB", (24, 18))}, features=train.features)
    after = Stimuli(processor, [concatenate_datasets([black, train.select(range(1, len(train)))])], model, tmp_path)
    name = train[0]["stimulus_id"]
    assert after.pixel_values([name]).max() == 0 < before.pixel_values([name]).max()
    assert not torch.equal(after.image_features([name]), before.image_features([name]))


def test_an_interrupted_pass_leaves_no_half_file_and_goes_on(parts, tmp_path, computed, monkeypatch):
    train, processor, model = parts
    monkeypatch.setattr(module, "FILE", 4)
    extract = type(model).extract_image_features

    def power_cut(self, pixels):
        if computed["encoded"] > 8:
            raise KeyboardInterrupt
        return extract(self, pixels)

    monkeypatch.setattr(type(model), "extract_image_features", power_cut)
    with pytest.raises(KeyboardInterrupt):
        Stimuli(processor, [train], model, tmp_path)
    assert not list(tmp_path.rglob("*.part")) and len(list(tmp_path.glob("features-*/*.npy"))) == 2
    monkeypatch.setattr(type(model), "extract_image_features", extract)
    computed["encoded"] = 0
    Stimuli(processor, [train], model, tmp_path)
    assert computed["encoded"] == 8


def test_processes_of_a_machine_make_all_of_them_though_one_comes_late(parts, tmp_path, computed, monkeypatch):
    train, processor, _ = parts
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in "01":  # the second one looks when the first one has made its part
        monkeypatch.setenv("LOCAL_RANK", rank)
        stimuli = Stimuli(processor, [train], None, tmp_path / "cache")
    names = sorted(set(train["stimulus_id"]))
    assert len(stimuli.pixel_values(names)) == computed["read"] == len(names)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot be written .*--stimulus_cache"):
        KeptArrays(tmp_path / "file" / "x", "<f4", [2], [b"k" * 32]).add([b"k" * 32], [np.zeros((1, 2))])


def test_a_damaged_file_of_the_cache_is_made_anew(parts, tmp_path, computed):
    train, processor, _ = parts
    names = sorted(set(train["stimulus_id"]))
    before = Stimuli(processor, [train], None, tmp_path).pixel_values(names)
    (file,) = tmp_path.glob("pixels-*/*.npy")
    file.write_bytes(file.read_bytes()[:-100])
    after = Stimuli(processor, [train], None, tmp_path)
    assert torch.equal(after.pixel_values(names), before) and computed["read"] == 2 * len(names)
    (file,) = tmp_path.glob("pixels-*/*.npy")
    file.write_bytes(b"")
    assert torch.equal(Stimuli(processor, [train], None, tmp_path).pixel_values(names), before)


def test_files_of_the_cache_can_be_read_by_whom_the_umask_allows(parts, tmp_path):
    train, processor, _ = parts
    before = os.umask(0o022)
    try:
        Stimuli(processor, [train], None, tmp_path)
    finally:
        os.umask(before)
    (file,) = tmp_path.glob("pixels-*/*.npy")
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_large_cache_loses_what_was_not_used_for_longest(parts, tmp_path, computed, monkeypatch):
    train, processor, _ = parts
    cache = tmp_path / "cache"
    old, middle, new = f"pixels-{'0' * 32}", f"latents-{'1' * 32}", f"features-{'2' * 32}"
    for name, day in (old, 1), (middle, 2), (new, 3), ("features-of-somebody-else", 0):
        (cache / name).mkdir(parents=True)
        (cache / name / "x.npy").write_bytes(bytes(10**6))
        os.utime(cache / name, (day, day))
    (cache / "pixels-of-somebody-else.h5").write_bytes(b"")
    used = sum(file.stat().st_size for file in Stimuli(processor, [train], None, cache).pixels.folder.iterdir())
    monkeypatch.setattr(module, "LARGEST_CACHE", 10**6 + used)
    again = Stimuli(processor, [train], None, cache)
    left = {folder.name for folder in cache.iterdir()}
    assert left == {new, "features-of-somebody-else", "pixels-of-somebody-else.h5", again.pixels.folder.name}
    assert computed["read"] == len(set(train["stimulus_id"]))  # its own folder stays


def test_folds_and_runs_share_one_folder(colour_corpus, encoder, tmp_path, computed):
    cache = tmp_path / "cache"
    flags = ["--encoder", encoder, "--max_steps", "2", "--linear_dim", "0", "--disable_tqdm", "true"]
    flags += ["--stimulus_cache", str(cache)]
    assert main(["crossvalidate", str(colour_corpus), str(tmp_path / "folds"), "--folds", "2", *flags]) == 0
    assert computed == {"read": 20, "encoded": 20}
    assert main(["train", str(colour_corpus), str(tmp_path / "run"), *flags]) == 0
    assert computed == {"read": 20, "encoded": 20}


def test_another_process_maps_the_files_itself(tmp_path):
    keys = [bytes([row]) * 32 for row in range(8)]
    kept = KeptArrays(tmp_path / "kept", "f4", (1000,), keys)
    kept.add(keys, [np.arange(8000, dtype="f4").reshape(8, 1000)])
    sent = pickle.dumps(kept)
    assert len(sent) < 2000
    assert np.array_equal(pickle.loads(sent).take([bytes([3]) * 32]), kept.take([bytes([3]) * 32]))


def test_files_of_other_stimuli_are_not_held_open(tmp_path):
    keys = [bytes([row]) * 32 for row in range(8)]
    for row, key in enumerate(keys):
        KeptArrays(tmp_path, "f4", (2,), [key]).add([key], [np.full((1, 2), row)])
    kept = KeptArrays(tmp_path, "f4", (2,), keys[2:4])
    assert [row for row, key in enumerate(keys) if key in kept] == [2, 3]
    assert kept.take(keys[2:4])[:, 0].tolist() == [2, 3]
    assert len(kept.files) == 8 and sum(file is not None for file in kept.files.values()) == 2


def test_what_a_killed_run_left_in_the_cache_goes_a_day_later(parts, tmp_path):
    train, processor, _ = parts
    Stimuli(processor, [train], None, tmp_path)
    (folder,) = tmp_path.glob("pixels-*")
    for name, age in ((".old.part", 25 * 3600), (".new.part", 60)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    Stimuli(processor, [train], None, tmp_path)
    assert [file.name for file in folder.glob(".*.part")] == [".new.part"]
