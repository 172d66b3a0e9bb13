"""New subjects: `add_subject`, and `train --from_model OLD [--freeze_shared]`."""

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import DatasetDict, load_from_disk
from safetensors.torch import load_file
from scipy.optimize import nnls

from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import read_corpus
from visionflow_hf.evaluation.evaluate import evaluate
from visionflow_hf.hub import load_model
from visionflow_hf.modeling.ridge import nnls as weights_of
from visionflow_hf.modeling.ridge import stack
from visionflow_hf.training.arguments import ModelArguments
from visionflow_hf.training.build import continue_model

SHARED = ("encoder.", "posterior_head.", "linear_", "image_decoder.", "fmri_to_latent.h", "latent_to_fmri.hidden")


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """40 trials of a subject that no model knows, and 60 test stimuli."""
    path = tmp_path_factory.mktemp("newcomer") / "corpus"
    flags = ["--stimuli", "100", "--subjects", "1", "--voxels", "60", "--image-size", "16", "--test-fraction", "0.6"]
    assert main(["simulate", str(path), *flags, "--seed", "5"]) == 0
    return path


def named(corpus, name, path):
    """The same corpus, its subject called `name`."""
    splits = load_from_disk(str(corpus))
    DatasetDict({key: split.map(lambda row: {"subject": name}) for key, split in splits.items()}).save_to_disk(path)
    voxels = corpus / "voxels.parquet"
    pd.read_parquet(voxels).assign(subject=name).to_parquet(path / "voxels.parquet")
    return path


def test_a_subject_is_added_and_removed(run):
    model, processor = load_model(run)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    image = np.zeros((16, 16), np.uint8)
    known = model.predict_fmri(**processor(images=image, subject="subj02"))
    model.add_subject("ann", 50)
    processor.add_subject("ann", np.arange(50), np.ones(50))
    assert model.config.subjects == ["subj01", "subj02", "ann"] and model.config.num_voxels == [30, 30, 50]
    predicted = model.predict_fmri(**processor(images=image, subject="ann"))[0].detach()
    assert np.array_equal(predicted, np.arange(50))
    assert model.reconstruct_image(**processor(fmri=np.ones(50), subject="ann")).shape == (1, 1, 16, 16)
    torch.testing.assert_close(model.predict_fmri(**processor(images=image, subject="subj02"))[:, :30], known)
    with pytest.raises(ValueError, match="subject ann is known already"):
        model.add_subject("ann", 3)
    with pytest.raises(ValueError, match="subject ann is known already"):
        processor.add_subject("ann", np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="0 voxels for subject bob"):
        model.add_subject("bob", 0)
    with pytest.raises(ValueError, match=r"fmri_mean has shape \(3,\), fmri_std \(4,\)"):
        processor.add_subject("bob", np.zeros(3), np.ones(4))
    for one in (model, processor):
        one.remove_subject("ann")
        with pytest.raises(ValueError, match="unknown subject ann"):
            one.remove_subject("ann")
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_an_added_subject_is_saved_and_loaded(run, tmp_path):
    model, _ = load_model(run)
    model.add_subject("ann", 50)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.subjects == model.config.subjects
    assert all(torch.equal(values, again.state_dict()[name]) for name, values in model.state_dict().items())


def test_fit_subject_by_code(run, newcomer):
    """As good as `train --freeze-shared`, from images and responses at hand; known subjects stay as they are."""
    splits = read_corpus(newcomer).splits
    images, fmri = list(splits["train"]["image"]), np.array(splits["train"]["fmri"], np.float32)
    model, processor = load_model(run)
    batch = processor(images=images[0], subject="subj01")
    before = model.predict_fmri(**batch)
    found = model.fit_subject("ann", images=images, fmri=fmri, stimulus_ids=splits["train"]["stimulus_id"])
    assert found.subjects == model.config.subjects == ["subj01", "subj02", "ann"] and processor.subjects[-1] != "ann"
    np.testing.assert_allclose(found.fmri_mean["ann"], fmri.mean(0), atol=1e-5)
    torch.testing.assert_close(model.predict_fmri(**batch)[:, :30], before)
    predicted = model.predict_fmri(**found(images=list(splits["test"]["image"]), subject="ann")).detach().numpy()
    measured = np.array(splits["test"]["fmri"])
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, measured.T, strict=True)]
    assert np.mean(r) > 0.1
    shuffled, other = load_model(run)
    other = shuffled.fit_subject("ann", images=images, fmri=np.roll(fmri, 5, axis=0), processor=other)
    predicted = shuffled.predict_fmri(**other(images=list(splits["test"]["image"]), subject="ann")).detach().numpy()
    assert np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, measured.T, strict=True)]) < 0.05
    with pytest.raises(ValueError, match="only the model ann"):  # the processor is loaded anew, and does not know her
        model.fit_subject("bob", images=images, fmri=fmri)
    with pytest.raises(ValueError, match="3 distinct stimuli: at least 4"):
        model.fit_subject("bob", images=images[:3], fmri=fmri[:3], processor=found)
    with pytest.raises(ValueError, match=r"3 images and fmri of shape \(2, 60\)"):
        model.fit_subject("bob", images=images[:3], fmri=fmri[:2], processor=found)
    with pytest.raises(ValueError, match="3 images and fmri"):
        model.fit_subject("bob", images=images[:3], fmri=np.full((3, 60), np.nan), processor=found)
    with pytest.raises(ValueError, match=r"fmri of shape \(3, 0\)"):
        model.fit_subject("ann", images=images[:3], fmri=np.zeros((3, 0)), processor=found)
    with pytest.raises(ValueError, match=r"model.float\(\)"):
        model.bfloat16().fit_subject("bob", images=images, fmri=fmri)
    assert model.config.subjects == ["subj01", "subj02", "ann"]


def test_fit_subject_of_a_known_one_keeps_the_order_of_all(run, newcomer):
    """A processor that was loaded before still names the right subject by its number."""
    rows = read_corpus(newcomer).splits["train"].select(range(30))
    model, processor = load_model(run)
    batch = processor(images=rows[0]["image"], subject="subj02")
    before = model.predict_fmri(**batch)
    found = model.fit_subject("subj01", list(rows["image"]), np.array(rows["fmri"], np.float32), rows["stimulus_id"])
    assert found.subjects == model.config.subjects == processor.subjects == ["subj01", "subj02"]
    assert model.config.num_voxels == [60, 30]
    torch.testing.assert_close(model.predict_fmri(**batch)[:, :30], before)
    for name, width in (("subj01", 60), ("subj02", 30)):
        assert model.reconstruct_image(**found(fmri=np.ones(width), subject=name)).shape == (1, 1, 16, 16)


def test_fit_subject_leaves_the_model_as_it_was_where_something_is_missing(run, newcomer):
    rows = read_corpus(newcomer).splits["train"].select(range(6))
    images, fmri = list(rows["image"]), np.array(rows["fmri"], np.float32)
    model, processor = load_model(run)
    with pytest.raises(ValueError, match="4 stimulus_ids for 6 images"):
        model.fit_subject("subj01", images, fmri, rows["stimulus_id"][:4], processor=processor)
    with pytest.raises(ValueError, match="row 2 of the batch has no image"):
        model.fit_subject("ann", [*images[:2], None, *images[3:]], fmri, processor=processor)
    assert model.config.subjects == processor.subjects == ["subj01", "subj02"]
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match="give processor="):
        model.fit_subject("ann", images, fmri)


def test_fit_subject_while_training(run, newcomer):
    """The maps are those of evaluation, without dropout, and neither mode nor random state is touched."""
    splits = read_corpus(newcomer).splits
    images, fmri = list(splits["train"]["image"]), np.array(splits["train"]["fmri"], np.float32)
    weights = []
    for training in (False, True):
        model, processor = load_model(run)
        width = model.config.latent_dim
        with torch.no_grad():  # voxels that read the MLP, in which dropout is
            for voxel_map in model.latent_to_fmri.voxel_maps:
                voxel_map.weight[:, width : width + model.config.bridge_hidden_size] = 0.1
        model.train(training)
        model.encoder.eval()
        before = torch.get_rng_state()
        model.fit_subject("ann", images=images, fmri=fmri, processor=processor)
        assert model.training == training and not model.encoder.training and torch.equal(torch.get_rng_state(), before)
        weights.append(model.latent_to_fmri.voxel_maps[-1].weight)
    torch.testing.assert_close(*weights)


def test_weights_of_models_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for signs in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
        one, other, noise = rng.normal(size=(3, 50))
        other = other + one  # correlated
        targets = signs[0] * one + 0.3 * signs[1] * other + 0.1 * noise
        columns = np.stack([one, other], 1)
        expected, _ = nnls(columns, targets)
        found = weights_of(*map(torch.from_numpy, (columns.T @ columns, columns.T @ targets)))
        np.testing.assert_allclose(found, expected, atol=1e-8)
        size = np.sqrt(np.square(targets).mean())  # and one more target of this size that says 1/2 each
        drawn = np.concatenate([columns, size * np.eye(2)]), np.concatenate([targets, size * np.full(2, 0.5)])
        np.testing.assert_allclose(
            stack(list(map(torch.from_numpy, (one, other))), torch.from_numpy(targets)), nnls(*drawn)[0], rtol=1e-5
        )
    assert stack([torch.zeros(3), torch.zeros(3)], torch.ones(3)).tolist() == [0.5, 0.5]
    small = [torch.full((6,), 1e-3), torch.full((6,), -1e-3)]  # as ridges predict noise
    assert stack(small, torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0])).max() < 0.51


def test_what_is_shared_is_kept(run, newcomer, tmp_path):
    corpus = named(newcomer, "ann", tmp_path / "corpus")
    flags = ["--from-model", str(run), "--freeze-shared"]
    assert main(["train", str(corpus), str(tmp_path / "new"), *flags]) == 0
    old, new = load_file(run / "model.safetensors"), load_file(tmp_path / "new" / "model.safetensors")
    shared = [name for name in old if name.startswith(SHARED)]
    assert len(shared) > 20 and all(torch.equal(old[name], new[name]) for name in shared)
    model, processor = load_model(tmp_path / "new")
    assert processor.subjects == model.config.subjects == ["subj01", "subj02", "ann"]
    batch = processor(images=np.zeros((16, 16), np.uint8), subject="subj01")
    torch.testing.assert_close(model.predict_fmri(**batch)[:, :30], load_model(run)[0].predict_fmri(**batch))


def test_a_known_name_is_fitted_anew(run, newcomer, tmp_path, caplog):
    flags = ["--from-model", str(run), "--freeze-shared"]
    assert main(["train", str(newcomer), str(tmp_path / "new"), *flags]) == 0
    assert "subj01 is a subject of the model already, and is fitted anew" in caplog.text
    model, processor = load_model(tmp_path / "new")
    assert model.config.subjects == processor.subjects == ["subj02", "subj01"]
    assert model.config.num_voxels == [30, 60] and len(processor.fmri_mean["subj01"]) == 60


def test_without_freezing_the_image_side_is_trained_on(run, newcomer, tmp_path):
    flags = ["--from-model", str(run), "--max_steps", "10", "--disable_tqdm", "true"]
    assert main(["train", str(newcomer), str(tmp_path / "new"), *flags]) == 0
    model, processor = load_model(tmp_path / "new")
    assert model.config.subjects == processor.subjects == ["subj01"] and model.config.num_voxels == [60]
    old = load_model(run)[0]
    seed, before = model.image_decoder.seed.weight, old.image_decoder.seed.weight
    assert not torch.equal(seed, before) and torch.corrcoef(torch.stack([seed.ravel(), before.ravel()]))[0, 1] > 0.9
    assert "that of model" in (tmp_path / "new" / "README.md").read_text()


def test_the_fmri_side_of_other_subjects_is_not_continued(run, newcomer):
    splits = read_corpus(newcomer).splits
    model, _ = continue_model(str(run), splits["train"], ModelArguments())
    old = load_file(run / "model.safetensors")
    assert old["fmri_to_latent.head.weight"].abs().max() > 0
    assert model.fmri_to_latent.head.weight.abs().max() == 0
    for name in ("image_decoder.seed.weight", "posterior_head.weight"):
        assert torch.equal(model.state_dict()[name], old[name]), name


def test_what_cannot_be(run, newcomer, tmp_path, refused):
    def train(*flags):
        return main(["train", str(newcomer), str(tmp_path / "x"), *flags])

    refused(lambda: train("--freeze-shared"), "name it with --from_model")
    refused(lambda: train("--from-model", str(run), "--latent_dim", "8"), "brings its own --latent_dim")
    refused(lambda: train("--from-model", str(tmp_path / "nobody"), "--freeze-shared"), "nobody is no model folder")
    assert not (tmp_path / "x").exists()


@pytest.mark.nightly
def test_a_newcomer_s_few_trials_go_further_than_in_ridge(newcomer, tmp_path):
    """Against a model from scratch, at full size and over seeds: benchmarks/new_subjects.py."""
    flags = ["--stimuli", "200", "--subjects", "2", "--voxels", "60", "--image-size", "16"]
    assert main(["simulate", str(tmp_path / "corpus"), *flags]) == 0
    short = ["--max_steps", "100", "--disable_tqdm", "true"]
    assert main(["train", str(tmp_path / "corpus"), str(tmp_path / "old"), *short]) == 0
    flags = ["--from-model", str(tmp_path / "old"), "--freeze-shared"]
    assert main(["train", str(newcomer), str(tmp_path / "new"), *flags]) == 0
    metrics = evaluate(tmp_path / "new", newcomer, tmp_path / "report")
    model, ridge = (metrics["encoding"][name]["voxel_r_mean"] for name in ("model", "ridge"))
    assert model > 1.2 * ridge
    model, ridge = (metrics["decoding"][name] for name in ("model", "ridge"))
    assert model["two_way"] > ridge["two_way"] and model["ssim"] > ridge["ssim"]
