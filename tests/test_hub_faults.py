"""What the Hub, a card or a file refuses: told in one line, never taken for something that is absent."""

import json
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from loopback_hub import LoopbackHub, Repository, environment, reply
from PIL import Image
from transformers import ViTConfig, ViTModel

from visionflow_hf.app import Demo
from visionflow_hf.cli import main
from visionflow_hf.corpus.from_hub import about_corpus
from visionflow_hf.corpus.leakage import seen_by
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.evaluate import about_model
from visionflow_hf.export import Decode
from visionflow_hf.hub import load_model, model_files
from visionflow_hf.pretrained import load_encoder
from visionflow_hf.training import train as training
from visionflow_hf.training.arguments import VisionFlowTrainingArguments

# Prints what loading an encoder, then a model, ends in.
LOAD = """
import sys
from visionflow_hf.errors import UserError
from visionflow_hf.hub import load_model
from visionflow_hf.pretrained import load_encoder
for load, name in (load_encoder, "lab/vit"), (load_model, "lab/digits"):
    try:
        found = load(name)
        print("loaded", found[1] if load is load_encoder else found[0].voxels is not None)
    except UserError as error:
        print("refused", error)
"""


# Prints what is known of the training of the model lab/digits.
GUARDS = """
import json
from visionflow_hf.corpus.leakage import seen_by
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.evaluate import about_model, warn_of_units
try:
    warn_of_units("lab/digits", "z-scores of a session")
    print(json.dumps([sorted(seen_by("lab/digits")), about_model("lab/digits", "corpus")]))
except UserError as error:
    print("refused", error)
"""


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The folder of a small encoder that has no image processor."""
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub(run, vit):
    with LoopbackHub() as hub:
        for name, folder in ("models/lab/vit", vit), ("models/lab/digits", run):
            hub.repositories[name] = Repository(False)
            hub.repositories[name].commit({file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})
        yield hub
        hub.spoil = lambda make, method, path: make()


def python(*words, env: dict) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, words)], env=env, capture_output=True, text=True)


def failing(file: str, status: int):
    """Answers of a Hub that fails for one file alone."""
    return lambda make, method, path: reply({}, status) if path.endswith(file) else make()


def test_what_the_hub_fails_to_give_is_not_taken_for_absent(hub, tmp_path):
    hub.spoil = lambda make, method, path: make()
    told = python("-c", LOAD, env=environment(hub, tmp_path / "home", PYTHONPATH=str(ROOT)))
    assert told.stdout.splitlines() == ["loaded {}", "loaded True"], told.stderr[-2000:]
    assert "has no image processor" in told.stderr
    again = environment(hub, tmp_path / "home", PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")
    assert python("-c", LOAD, env=again).stdout.splitlines() == ["loaded {}", "loaded True"]
    for file, line in ("preprocessor_config.json", 0), ("voxels.parquet", 1):
        hub.spoil = failing(file, 403)
        told = python("-c", LOAD, env=environment(hub, tmp_path / file, PYTHONPATH=str(ROOT))).stdout.splitlines()
        assert told[line].startswith("refused") and told[1 - line].startswith("loaded"), told


def test_a_model_of_the_hub_is_guarded_as_a_folder_is(hub, run, tmp_path):
    hub.spoil = lambda make, method, path: make()
    told = python("-c", GUARDS, env=environment(hub, tmp_path / "home", PYTHONPATH=str(ROOT)))
    assert "trained on fMRI in the unit 'simulated response" in told.stderr, told.stderr[-2000:]
    seen, about = json.loads(told.stdout)
    assert set(seen) == seen_by(run) and len(seen) == 36
    assert about == about_model(run, "corpus") | {"model": "lab/digits"} and about["train stimuli"] == 36
    for file in "README.md", "train_images.txt":
        hub.spoil = failing(file, 403)
        told = python("-c", GUARDS, env=environment(hub, tmp_path / file, PYTHONPATH=str(ROOT)))
        assert told.stdout.startswith("refused no model at lab/digits: the Hub did not accept the request"), told


def test_training_that_cannot_be_pushed_does_not_begin(hub, corpus, run, tmp_path):
    refusal = {"X-Error-Message": "your storage is full"}
    hub.spoil = lambda make, method, path: (403, refusal, b"") if path.endswith("auth-check/write") else make()
    flags = ["--max_steps", "4", "--push_to_hub", "true", "--hub_model_id", "lab/full", "--hub_private_repo", "true"]
    command = ["-m", "visionflow_hf.cli", "train", corpus, tmp_path / "run", *flags]
    done = python(*command, env=environment(hub, tmp_path / "home"))
    assert done.returncode == 2 and "the Hub refused lab/full (403: your storage is full): log in" in done.stderr
    assert not (tmp_path / "run").exists() and hub.repositories["models/lab/full"].private


def test_a_push_that_fails_after_training_names_the_model_and_the_remedy(corpus, tmp_path, monkeypatch, refused):
    made = []

    def push(*words):
        raise UserError("the Hub has a fault of its own (500): try again later")

    monkeypatch.setattr(training, "prepare_push", lambda *words: made.append(words))
    monkeypatch.setattr(training, "push", push)
    run = tmp_path / "run"
    flags = ["--max_steps", "4", "--linear_dim", "0", "--disable_tqdm", "true", "--push_to_hub", "true"]
    line = rf"the model is in {run}, but was not pushed \(.*later\): repeat with `visionflow push {run} lab/x`"
    refused(lambda: main(["train", str(corpus), str(run), *flags, "--hub_model_id", "lab/x"]), line)
    assert made == [("lab/x", False)] and (run / "config.json").is_file()


def test_what_a_push_cannot_do_is_said(hub, run, tmp_path):
    env = environment(hub, tmp_path / "home")
    command = ["-m", "visionflow_hf.cli", "push", run]
    hub.spoil = lambda make, method, path: make()
    there = hub.repositories["models/lab/digits"]
    commits = len(there.commits)
    done = python(*command, "lab/digits", "--private", env=env)
    assert done.returncode == 2 and "lab/digits is there already, in public" in done.stderr
    assert len(there.commits) == commits
    hub.spoil = lambda make, method, path: reply({}, 400) if "/tag/" in path else make()
    done = python(*command, "lab/digits", "--tag", "v 1", env=env)
    assert done.returncode == 2 and "lab/digits was pushed (" in done.stderr and "but not tagged v 1" in done.stderr
    assert len(there.commits) == commits + 1
    errors = {"errors": [{"message": '"license" must be one of a list'}], "warnings": []}
    hub.spoil = lambda make, method, path: reply(errors, 400) if path == "api/validate-yaml" else make()
    done = python(*command, "lab/refused", env=env)
    assert done.returncode == 2 and "error: the Hub refuses the card of lab/refused" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("failing", "ran"), [("", 5), ("evaluate", 5), ("train", 2), ("made", 1)])
def test_a_job_of_the_hub_pushes_what_it_has_trained(monkeypatch, capsys, failing, ran):
    asked = []

    def command(words):
        asked.append(words)
        return 2 if words[0] == failing else 0

    def prepare_push(*words):
        if command(["made", *words]):
            raise UserError("no")

    monkeypatch.setattr("visionflow_hf.cli.main", command)
    monkeypatch.setattr("visionflow_hf.hub.prepare_push", prepare_push)
    words = ["x", "lab/c", "lab/m", "--private", "--allow-leakage", "--max_steps", "4"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "train_on_hub.py"))
    push = ["push", "model", "lab/m", "--private"]
    train = ["train", "lab/c", "model", "--allow-leakage", "--max_steps", "4"]
    everything = [
        ["made", "lab/m", True],
        train,
        push,
        ["evaluate", "model", "lab/c", "report", "--allow-leakage"],
        push,
    ]
    assert asked == everything[:ran] and ended.value.code == (2 if failing else 0)
    assert ("error: no" in capsys.readouterr().err) == (failing == "made")


@pytest.mark.parametrize("flag", ["hub_model_id", "hub_private_repo"])
def test_flags_of_a_push_without_one(flag, tmp_path):
    with pytest.raises(UserError, match=f"--{flag} without --push_to_hub"):
        VisionFlowTrainingArguments(output_dir=str(tmp_path), **{flag: "lab/m" if flag == "hub_model_id" else True})


def spoil_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def spoil_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))


def spoil_size(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))


def spoil_processor(folder):
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "image_mean"')


@pytest.mark.parametrize("damage", [spoil_weights, spoil_config, spoil_size, spoil_processor])
def test_a_damaged_encoder_is_one_line(vit, tmp_path, damage):
    shutil.copytree(vit, tmp_path / "vit")
    damage(tmp_path / "vit")
    with pytest.raises(UserError, match=r"no encoder .*|the image processor of encoder .* cannot be loaded") as error:
        load_encoder(str(tmp_path / "vit"))
    assert "\n" not in str(error.value)


def test_a_shard_that_is_missing(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "run" / "model.safetensors").rename(tmp_path / "run" / names["a"])
    (tmp_path / "run" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match=r"is no model folder \(model-00002-of-00002.safetensors missing\)"):
        model_files(tmp_path / "run")


@pytest.mark.parametrize("head", ["license: mit: mine", "- a\n- list", "name: \xe9"])
def test_a_card_that_cannot_be_read_does_not_stop_a_checkpoint(run, tmp_path, head):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "README.md").write_bytes(f"---\n{head}\n---\ntext\n".encode("latin-1"))
    model, _ = load_model(tmp_path / "run")
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").is_file() and not (tmp_path / "again" / "README.md").exists()


def test_the_continued_card_knows_the_subjects_and_no_folder(run, tmp_path):
    model, _ = load_model(run)
    model.remove_subject("subj01")
    model.save_pretrained(tmp_path / "less")
    card = (tmp_path / "less" / "README.md").read_text()
    assert 'subject="subj01"' not in card and 'subject="subj02"' in card
    assert f"its subjects are subj02 ({model.config.num_voxels[0]} voxels)" in card
    assert f"Made from `{run.name}`" in card


def test_a_model_without_subjects_is_saved_and_says_so(run, tmp_path, refused):
    model, processor = load_model(run)
    for one in (model, processor):
        for name in ("subj01", "subj02"):
            one.remove_subject(name)
        one.save_pretrained(tmp_path / "none")
    assert "Made from" in (tmp_path / "none" / "README.md").read_text()
    refused(lambda: main(["export", str(tmp_path / "none"), str(tmp_path / "out")]), "none knows no subject")
    refused(lambda: main(["app", str(tmp_path / "none")]), "none knows no subject")


def test_a_card_of_a_corpus_that_cannot_be_read(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit: mine\n---\n")
    with pytest.raises(UserError, match=r"the metadata of .*README.md cannot be read"):
        about_corpus(tmp_path)


def test_a_row_with_several_images_is_refused(run):
    model, processor = load_model(run)
    encode = model.pipeline("image-to-fmri", processor=processor)
    images = [Image.fromarray(np.full((16, 16), level, np.uint8)) for level in (0, 100, 200)]
    with pytest.raises(ValueError, match="the image of a row is a list of 3: give a row for each"):
        encode({"image": images}, subject="subj01")


def test_what_is_exported_is_not_refined(run):
    model, processor = load_model(run)
    model.config.refine_steps = 5
    fmri = processor(fmri=np.ones((2, model.config.num_voxels[0])), subject="subj01")["fmri"]
    raw = torch.tensor(np.ones((2, max(model.config.num_voxels)), dtype=np.float32))
    made = Decode(model, processor)(raw, torch.zeros(2, dtype=torch.long))
    assert torch.allclose(made, model.reconstruct_image(fmri, torch.zeros(2, dtype=torch.long), refine=0), atol=1e-5)


def test_a_walk_in_bfloat16(run):
    demo = Demo(run, device="cpu")
    images = [Image.fromarray(np.full((16, 16), level, np.uint8)) for level in (20, 200)]
    full = demo.walk(*images)
    demo.model.to(torch.bfloat16)
    assert np.abs(demo.walk(*images).astype(int) - full).mean() < 8
