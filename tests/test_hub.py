"""Push, pull, fine-tune and push again, with the real client over HTTP, against a Hub on the loopback interface."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.cli._uv_script_header import parse_uv_script_header
from loopback_hub import LoopbackHub, environment
from PIL import Image
from stranger import STRANGER
from transformers import AutoConfig, pipeline

from visionflow_hf.hub import add_result, left_over, load_model
from visionflow_hf.results import result_of

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 16, 16), dtype=np.uint8)
FMRI = RNG.normal(size=(4, 30)).astype(np.float32)
CODE = sorted(path.name for path in (ROOT / "modeling").glob("*.py") if path.name != "__init__.py")

# What a stranger does with a name on the Hub: everything by name, everything from the Hub's own code.
PULL = """
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

name, revision, data, output = sys.argv[1:]
how = {"revision": revision, "trust_remote_code": True}
config = AutoConfig.from_pretrained(name, **how)
model = AutoModel.from_pretrained(name, **how)
processor = AutoProcessor.from_pretrained(name, **how)
encode = pipeline("image-to-fmri", model=name, **how)
decode = pipeline("fmri-to-image", model=name, **how)
for thing in (config, model, processor, encode, decode):
    assert type(thing).__module__.startswith("transformers_modules."), type(thing)
assert len(model.config._commit_hash) == 40 and revision in ("main", model.config._commit_hash)
arrays = np.load(data)
images, fmri = list(arrays["images"]), arrays["fmri"]
predicted = model.predict_fmri(**processor(images=images, subject="subj01"))
pixels = model.reconstruct_image(**processor(fmri=fmri, subject="subj01"))
np.testing.assert_allclose(encode(images, subject="subj01"), predicted, atol=1e-5)
assert len(decode(fmri, subject="subj01")) == len(fmri)
np.savez(output, predicted=predicted, pixels=pixels)
"""

# ... and to make it their own: the plain Trainer, on responses of their own to the subject's images.
TUNE = """
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

name, target, data, output = sys.argv[1:]
model = AutoModel.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
arrays = np.load(data)
rows = [dict(image=image, fmri=fmri) for image, fmri in zip(arrays["images"], arrays["fmri"])]

def collate(rows):
    batch = processor(images=[row["image"] for row in rows], fmri=[row["fmri"] for row in rows], subject="subj01")
    return dict(batch)

args = TrainingArguments(
    output, max_steps=4, per_device_train_batch_size=2, remove_unused_columns=False, label_names=["fmri"],
    save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, disable_tqdm=True,
    push_to_hub=True, hub_model_id=target, use_cpu=True,
)
trainer = Trainer(model, args, data_collator=collate, train_dataset=rows, eval_dataset=rows, processing_class=processor)
trainer.train()
trainer.push_to_hub()
predicted = trainer.model.eval().predict_fmri(**processor(images=list(arrays["images"]), subject="subj01"))
np.savez(output + "/predicted.npz", predicted=predicted)
"""

# ... and all other ways to push: from the folder, by a pipeline, and other weights without a voxel table.
PUSH_OTHERWISE = """
import torch
from transformers import AutoModel, pipeline

folder, = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(folder, push_to_hub=True, repo_id="lab/folder")
pipeline("fmri-to-image", model=folder, trust_remote_code=True).push_to_hub("lab/piped")
model.push_to_hub("lab/earlier")
model.voxels = None
model.linear_logvar.data += 1
model.push_to_hub("lab/earlier")
model.push_to_hub("lab/shards")
model.linear_logvar.data += 1
model.push_to_hub("lab/shards", max_shard_size="50KB")
shards = AutoModel.from_pretrained("lab/shards", trust_remote_code=True)
assert torch.equal(shards.linear_logvar, model.linear_logvar)
"""

PUSH_AGAIN = """
from transformers import AutoModel, AutoProcessor, pipeline

name, target = sys.argv[1:]
AutoModel.from_pretrained(name, trust_remote_code=True).push_to_hub(target)
AutoProcessor.from_pretrained(name, trust_remote_code=True).push_to_hub(target)
"""


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "data.npz", images=IMAGES, fmri=FMRI)
    return tmp_path / "data.npz"


def stranger(script: str, *words, env: dict, cwd) -> None:
    command = [sys.executable, "-I", "-c", STRANGER + script, *map(str, words)]
    result = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]


def visionflow(*words, env: dict) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "visionflow_hf.cli", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pushed(hub, run, tmp_path_factory) -> str:
    """The commit under which `visionflow push` left the model `lab/digits`."""
    env = environment(hub, tmp_path_factory.mktemp("home"))
    result = visionflow("push", run, "lab/digits", env=env)
    assert result.returncode == 0, result.stderr
    assert "pushed" in result.stdout and "lab/digits/commit/" in result.stdout
    return result.stdout.split("/commit/")[1].split()[0]


def test_what_is_pushed(hub, run, pushed):
    files = hub.files("lab/digits")
    expected = {*CODE, "config.json", "processor_config.json", "model.safetensors", "README.md", ".gitattributes"}
    expected |= {"fmri_statistics.safetensors", "requirements.txt", "voxels.parquet", "train_images.txt"}
    assert set(files) == expected  # no checkpoint, no state of the Trainer
    for name in expected - {"README.md", ".gitattributes"}:
        assert files[name] == (run / name).read_bytes()
    card = files["README.md"].decode()
    assert '"lab/digits"' in card and str(run) not in card
    assert len(hub.repositories["models/lab/digits"].commits) == 2  # the repository's first, and all of ours at once


def test_by_name_and_revision_online_and_then_offline(hub, run, pushed, data, tmp_path):
    model, processor = load_model(run)
    predicted = model.predict_fmri(**processor(images=list(IMAGES), subject="subj01"))
    pixels = model.reconstruct_image(**processor(fmri=FMRI, subject="subj01"))
    hub.requests.clear()
    for number, (revision, offline) in enumerate([("main", "0"), (pushed, "0"), (pushed, "1")]):
        env = environment(hub, tmp_path / "home", HF_HUB_OFFLINE=offline)
        asked = len(hub.requests)
        stranger(PULL, "lab/digits", revision, data, tmp_path / f"{number}.npz", env=env, cwd=tmp_path)
        assert (len(hub.requests) == asked) == (offline == "1")
        with np.load(tmp_path / f"{number}.npz") as theirs:
            np.testing.assert_allclose(theirs["predicted"], predicted, atol=1e-6, rtol=0)
            np.testing.assert_allclose(theirs["pixels"], pixels, atol=1e-6, rtol=0)
    downloads = [line for line in hub.requests if line.startswith("GET") and line.endswith("model.safetensors")]
    assert len(downloads) == 1  # the cache serves every later use


def assert_whole(hub, name: str) -> None:
    """Weights, processor and exactly our code, and a config that points at nobody else's."""
    files = hub.files(name)
    for code in CODE:
        assert files[code] == (ROOT / "modeling" / code).read_bytes(), code
    config = json.loads(files["config.json"])
    references = [*config["auto_map"].values(), *(one["impl"] for one in config["custom_pipelines"].values())]
    references += json.loads(files["processor_config.json"])["auto_map"].values()
    assert {"visionflow", "brain-decoding"} <= set(ModelCard(files["README.md"].decode()).data.tags)
    assert references and not any("--" in reference for reference in references), references
    pickles = {file for file in files if file.endswith((".bin", ".pt", ".pkl"))}
    assert "model.safetensors" in files and pickles <= {"training_args.bin"}, pickles  # that one is the Trainer's


def test_fine_tuned_with_the_plain_trainer_and_pushed_again(hub, pushed, data, tmp_path):
    env = environment(hub, tmp_path / "home")
    stranger(TUNE, "lab/digits", "other/tuned", data, tmp_path / "tuned", env=env, cwd=tmp_path)
    assert_whole(hub, "other/tuned")
    assert hub.files("other/tuned")["model.safetensors"] != hub.files("lab/digits")["model.safetensors"]
    out = tmp_path / "out.npz"
    stranger(PULL, "other/tuned", "main", data, out, env=environment(hub, tmp_path / "fresh"), cwd=tmp_path)
    with np.load(out) as theirs, np.load(tmp_path / "tuned" / "predicted.npz") as before:
        np.testing.assert_allclose(theirs["predicted"], before["predicted"], atol=1e-5)


def test_pushed_again_as_it_was(hub, pushed, tmp_path):
    env = environment(hub, tmp_path / "home")
    stranger(PUSH_AGAIN, "lab/digits", "other/copy", env=env, cwd=tmp_path)
    assert_whole(hub, "other/copy")
    assert hub.files("other/copy")["model.safetensors"] == hub.files("lab/digits")["model.safetensors"]
    card = ModelCard(hub.files("other/copy")["README.md"].decode())
    assert card.data.base_model == "lab/digits" and card.data.to_dict()["visionflow"]["model_id"] == "other/copy"
    assert card.text.count('"other/copy"') == 3 and "Made from `lab/digits`" in card.text
    assert "lab/digits" not in card.text.replace("Made from `lab/digits`", "")
    assert "36 distinct stimuli in 72 trials" in card.text and "Not evaluated yet" in card.text


def test_train_pushes_once_on_request_and_what_is_finished(hub, corpus, tmp_path):
    env = environment(hub, tmp_path / "home")
    flags = ["--max_steps", 4, "--linear_dim", 0, "--disable_tqdm", "true"]
    flags += ["--push_to_hub", "true", "--hub_model_id", "lab/pushed"]
    result = visionflow("train", corpus, tmp_path / "run", *flags, env=env)
    assert result.returncode == 0, result.stderr[-2000:]
    assert_whole(hub, "lab/pushed")
    assert [name for name in hub.repositories if "rehearsal" in name] == []
    assert len(hub.repositories["models/lab/pushed"].commits) == 2  # its creation, and one push
    files = hub.files("lab/pushed")
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert "36 distinct stimuli in 72 trials" in files["README.md"].decode()


def test_private_models_and_evaluation_by_name(hub, run, corpus, tmp_path):
    env = environment(hub, tmp_path / "home")
    assert visionflow("push", run, "lab/secret", "--private", env=env).returncode == 0
    assert hub.repositories["models/lab/secret"].private
    result = visionflow("evaluate", "lab/secret", corpus, tmp_path / "report", env=env)
    assert result.returncode == 0, result.stderr[-2000:]
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["about"]["model"] == "lab/secret" and metrics["about"]["train stimuli"] == 36
    nobody = environment(hub, tmp_path / "other home") | {"HF_TOKEN": "hf_wrong"}
    result = visionflow("evaluate", "lab/secret", corpus, tmp_path / "no report", env=nobody)
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith("error: no model at lab/secret")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lab/digits/more", {}, "lab/digits/more is no name on the Hub: give ORG/NAME"),
        ("lab/refused", {"HF_TOKEN": "hf_wrong"}, "the Hub refused lab/refused (401): log in with `hf auth login`"),
        pytest.param(*("lab/offline", {"HF_HUB_OFFLINE": "1"}, "the Hub cannot be reached"), marks=pytest.mark.nightly),
        ("lab/nowhere", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub cannot be reached"),
    ],
)
def test_a_push_that_cannot_be(hub, run, tmp_path, name, settings, message):
    result = visionflow("push", run, name, env=environment(hub, tmp_path / "home") | settings)
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith(f"error: {message}"), result.stderr
    assert f"models/{name}" not in hub.repositories


def test_a_push_deletes_what_is_of_the_model_before():
    old = ["model-00001-of-00002.safetensors", "voxels.parquet", "train_images.txt"]
    old += [".eval_results/lab--old.yaml"]
    there = ["README.md", "model.safetensors", *old, "old.py", "adapter.safetensors", "a/model.safetensors"]
    assert left_over(there, {"README.md", "model.safetensors"}) == old


def test_a_tag_names_the_commit_and_is_not_moved(hub, run, tmp_path):
    env = environment(hub, tmp_path / "home")
    assert visionflow("push", run, "lab/tagged", "--tag", "v1", env=env).returncode == 0
    repository = hub.repositories["models/lab/tagged"]
    assert repository.tags == {"v1": repository.commits[-1][0]}
    again = visionflow("push", run, "lab/tagged", "--tag", "v1", env=env)
    assert again.returncode == 2 and "lab/tagged has a tag v1 already: give another" in again.stderr
    assert len(repository.commits) == 2


def test_features_by_the_task_that_the_card_names(run):
    config = AutoConfig.from_pretrained(run)
    task = ModelCard.load(run / "README.md").data.pipeline_tag
    features = pipeline(task, model=str(run), trust_remote_code=True)(Image.fromarray(IMAGES[0]))
    model, processor = load_model(run)
    expected = model.encode_image(**processor(images=IMAGES[0], subject="subj01")).mean[0].detach()
    assert features.shape == (config.latent_dim + config.linear_dim,)
    np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.nightly
def test_the_job_of_the_hub_trains_evaluates_and_pushes(hub, corpus, tmp_path):
    script = ROOT / "scripts" / "train_on_hub.py"
    header = parse_uv_script_header(script.read_text())
    assert header.flavor == "l4x1" and header.secrets == ["HF_TOKEN"]
    env = environment(hub, tmp_path / "home")
    assert visionflow("push-corpus", corpus, "lab/corpus", "--benchmark", env=env).returncode == 0
    benchmark = yaml.safe_load(hub.files("lab/corpus", "datasets")["eval.yaml"])
    flags = ["--max_steps", "4", "--linear_dim", "0", "--disable_tqdm", "true"]
    command = [sys.executable, script, "lab/corpus", "lab/trained", *flags]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    files = hub.files("lab/trained")
    head = ModelCard(files["README.md"].decode()).data
    assert (head.datasets, head.license, head.base_model) == (["lab/corpus"], "unknown", None)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/lab_corpus.yaml"]))
    assert {entry.task_id: entry.value for entry in entries} == {
        "image-to-fmri": metrics["encoding"]["model"]["voxel_r_mean"],
        "fmri-to-image": metrics["decoding"]["model"]["pixcorr"],
    }
    assert {entry.dataset_id for entry in entries} == {"lab/corpus"}
    assert [task["id"] for task in benchmark["tasks"]] == [entry.task_id for entry in entries]


def test_a_folder_that_is_no_model_is_not_pushed(hub, tmp_path):
    result = visionflow("push", tmp_path, "lab/empty", env=environment(hub, tmp_path / "home"))
    assert result.returncode == 2
    assert "(config.json, processor_config.json, fmri_statistics.safetensors, README.md missing)" in result.stderr


def test_every_push_carries_the_card_and_nothing_of_other_weights(hub, run, report, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(run, folder)
    metrics = json.loads((report / "metrics.json").read_text()) | {"leakage": ""}
    add_result(folder, result_of(metrics, "lab/data", ""))
    edited = (folder / "README.md").read_text().replace("## Limits\n", "## Limits\n\nOnly for horses.\n")
    (folder / "README.md").write_text(edited)
    env = environment(hub, tmp_path / "home", HF_HUB_OFFLINE="0")
    assert visionflow("push", folder, "lab/earlier", env=env).returncode == 0
    count = len(hub.repositories["models/lab/earlier"].commits)
    stranger(PUSH_OTHERWISE, folder, env=env, cwd=tmp_path)

    files = hub.files("lab/folder")
    assert files["README.md"] == (folder / "README.md").read_bytes()
    for name in "lab/folder", "lab/piped":
        card = ModelCard(hub.files(name)["README.md"].decode())
        assert "Only for horses." in card.text and f'model="{name}"' in card.text
        assert card.data.visionflow["model_id"] == name and str(tmp_path) not in card.content
        assert ("voxel_r_mean" in card.text) == (name == "lab/folder")  # the folder's own, and one made from it
    assert "processor_config.json" in hub.files("lab/piped")

    assert "model.safetensors" not in hub.files("lab/shards")

    commits = [files for _, files in hub.repositories["models/lab/earlier"].commits]
    of_one = {"voxels.parquet", ".eval_results/lab_data.yaml"}
    assert "voxel_r_mean" in commits[count]["README.md"].decode() and of_one <= set(commits[count])  # the same weights
    assert commits[-1]["model.safetensors"] != commits[count]["model.safetensors"]
    card = ModelCard(commits[-1]["README.md"].decode())
    assert "Only for horses." in card.text and "voxel_r_mean" not in card.content and not of_one & set(commits[-1])
