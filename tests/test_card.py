"""The model card: the figures of metrics.json in its head and tables, and nothing that was not measured."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from datasets import load_from_disk
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub, environment
from test_hub import visionflow
from transformers import TrainingArguments

from visionflow_hf import VisionFlowCollator, VisionFlowModel, VisionFlowTrainer
from visionflow_hf.cli import main
from visionflow_hf.hub import add_result, hub_name, load_model, make_card, named, training_of
from visionflow_hf.modeling import VisionFlowConfig
from visionflow_hf.results import result_of


@pytest.fixture
def fresh(corpus, run, tmp_path) -> Path:
    """The model folder of `run` as `train` left it: with a card, and no evaluation in it."""
    folder = tmp_path / "model"
    shutil.copytree(run, folder)
    card = ModelCard.load(folder / "README.md")
    training = {name: value for name, value in card.data.to_dict()["visionflow"].items() if name != "results"}
    make_card(str(folder), VisionFlowConfig.from_pretrained(folder), training).save(folder / "README.md")
    return folder


def evaluate(*words) -> dict:
    assert main(["evaluate", *map(str, words)]) == 0
    return json.loads((Path(words[2]) / "metrics.json").read_text())


def measured(metrics: dict) -> dict[tuple[str, str], float]:
    """The model's figures by task and name, without those that are null."""
    blocks = {
        "fmri-to-image": metrics["decoding"]["model"],
        "image-to-fmri": metrics["encoding"]["model"],
        "latent-alignment": metrics["latent"],
    }
    return {
        (task, name): value for task, figures in blocks.items() for name, value in figures.items() if value is not None
    }


def in_head(card: ModelCard, dataset: str, split: str = "test") -> dict[tuple[str, str], float]:
    return {
        (one.task_type, one.metric_type): one.metric_value
        for one in card.data.eval_results or []
        if (one.dataset_name, one.dataset_split) == (dataset, split)
    }


def cells(card: ModelCard, figure: str) -> list[list[str]]:
    """The rows of all tables that give a figure."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in card.text.splitlines() if "|" in line]
    return [row for row in rows if len(row) > 3 and row[1] == figure]


def test_before_any_evaluation_the_card_has_no_figure(fresh):
    card = ModelCard.load(fresh / "README.md")
    assert card.data.eval_results is None and "model-index" not in card.data.to_dict()
    (line,) = [line for line in card.text.splitlines() if "Not evaluated yet" in line]
    assert "`visionflow evaluate RUN CORPUS REPORT`" in line and "adds results here" in line
    assert "pixcorr" not in card.text


def test_evaluation_fills_head_and_table(fresh, corpus, tmp_path):
    metrics = evaluate(fresh, corpus, tmp_path / "report")
    card = ModelCard.load(fresh / "README.md")
    assert in_head(card, "simulated") == measured(metrics)
    assert card.data.model_name == "model" and len(card.data.eval_results) == len(measured(metrics))
    text = " ".join(card.text.split())
    assert "### simulated, split test" in text and "Not evaluated" not in text
    assert "4 stimuli, 24 trials. No stimulus is in two splits of this corpus." in text
    assert "Licence of these data: not stated by the corpus" in text
    assert "**Simulated data.** The voxels of the simulator are Gabor energies" in text
    (row,) = cells(card, "pixcorr")
    low, high = metrics["intervals"]["decoding.model.pixcorr"]
    (header,) = cells(card, "figure")
    shown = dict(zip(header, row, strict=True))
    assert shown["95 % interval"] == f"{low:.3f} to {high:.3f}"
    for method, figures in metrics["decoding"].items():
        assert shown[method.replace("_", " ")] == f"{figures['pixcorr']:.3f}"
    assert list(fresh.glob(".*")) == []  # nothing half-written is left behind


def test_other_splits_stand_beside_and_the_same_is_replaced(fresh, corpus, tmp_path):
    evaluate(fresh, corpus, tmp_path / "test")
    train = evaluate(fresh, corpus, tmp_path / "train", "--split", "train")
    card = ModelCard.load(fresh / "README.md")
    result = card.data.to_dict()["visionflow"]["results"][0]
    result["decoding"]["model"]["pixcorr"] = 0.123456
    add_result(fresh, result)
    assert in_head(ModelCard.load(fresh / "README.md"), "simulated")["fmri-to-image", "pixcorr"] == 0.123456
    test = evaluate(fresh, corpus, tmp_path / "again")
    card = ModelCard.load(fresh / "README.md")
    assert in_head(card, "simulated") == measured(test)
    assert in_head(card, "simulated", "train") == measured(train)
    assert len(cells(card, "pixcorr")) == 2 and card.text.count("these are its training stimuli") == 1


def test_what_was_not_measured_does_not_appear(fresh, report, tmp_path):
    metrics = json.loads((report / "metrics.json").read_text())
    metrics["encoding"]["model"]["ceiling_normalised"] = None
    metrics["encoding"]["noise_ceiling"] = None
    add_result(fresh, result_of(metrics, tmp_path, ""))
    card = ModelCard.load(fresh / "README.md")
    assert ("image-to-fmri", "ceiling_normalised") not in in_head(card, tmp_path.name)
    assert "ceiling_normalised" not in card.text and "null" not in card.content.split("---\n")[1]
    assert "| noise ceiling |" not in card.text
    metrics["encoding"]["noise_ceiling"] = {"voxel_r_mean": 0.875, "r2_median": None}
    metrics["leakage"] = "1 stimulus (s1) in train and test"
    add_result(fresh, result_of(metrics, tmp_path, "cc-by-4.0"))
    card = ModelCard.load(fresh / "README.md")
    assert "| noise ceiling |" in card.text
    assert [cells(card, name)[0][-1] for name in ("voxel_r_mean", "r2_median", "pixcorr")] == ["0.875", "-", "-"]
    text = " ".join(card.text.split())
    assert "**Leakage.** The corpus has 1 stimulus (s1) in train and test." in text
    assert "Licence of these data: cc-by-4.0, as their card states." in text


def test_the_head_names_what_is_on_the_hub(fresh, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "folder").mkdir(parents=True)
    for name in ("lab/folder", "/lab/vit", "vit", "a/b/c", "", None, fresh):
        assert hub_name(name) is None, name
    training = training_of(fresh / "README.md")
    head = make_card("model", VisionFlowConfig.from_pretrained(fresh), training).data.to_dict()
    assert head["license"] == "unknown" and not {"base_model", "datasets", "language"} & set(head)
    known = {"data_license": "cc-by-4.0", "base_model": hub_name("lab/vit"), "datasets": [hub_name("lab/data")]}
    head = make_card("model", VisionFlowConfig.from_pretrained(fresh), training | known).data.to_dict()
    assert (head["license"], head["base_model"], head["datasets"]) == ("cc-by-4.0", "lab/vit", ["lab/data"])
    assert (head["library_name"], head["pipeline_tag"]) == ("transformers", "image-feature-extraction")


def test_names_of_others_stay_names(fresh, report, tmp_path):
    metrics = json.loads((report / "metrics.json").read_text())
    odd = tmp_path / "a | b\n---\n<img src=x> [c](d)\\"
    odd.mkdir()
    add_result(fresh, result_of(metrics, odd, "") | {"split": "te|st\n"})
    card = ModelCard.load(fresh / "README.md")
    assert {one.dataset_name for one in card.data.eval_results} == {"a | b --- <img src=x> [c](d)\\"}
    assert {one.dataset_type for one in card.data.eval_results} == {"a-b-----img-src-x-c-d-"}
    (heading,) = [line for line in card.text.splitlines() if line.startswith("### ")]
    assert heading == r"### a \| b --- \<img src=x\> \[c\](d)\\, split te\|st"
    training = card.data.to_dict()["visionflow"] | {"unit": "a | b\n| c | d |", "encoder": "<b>"}
    config = VisionFlowConfig.from_pretrained(fresh)
    config.subjects = ['x"|\n', "subj02"]
    text = make_card("lab/digits", config, training).text
    assert r"| unit of the fMRI, input and output | a \| b \| c \| d \| |" in text
    assert r"| image encoder | \<b\> |" in text
    assert r'subject="x\"|\n"' in text and r'| x"\| | 30 voxels |' in text


def test_a_card_that_cannot_be_written_is_left_and_named(fresh, report, tmp_path, monkeypatch, caplog):
    result = result_of(json.loads((report / "metrics.json").read_text()), "lab/data", "")
    caplog.set_level("INFO")
    add_result("lab/digits", result)
    assert "lab/digits is on the Hub: its card was not changed" in caplog.text
    before = (fresh / "README.md").read_bytes()

    def read_only(*args):
        raise OSError(30, os.strerror(30))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", read_only)
        add_result(fresh, result)
    assert "README.md was not changed (Read-only file system): the results are in the report only" in caplog.text
    assert (fresh / "README.md").read_bytes() == before and list(fresh.glob(".*")) == []
    (fresh / "README.md").write_text("---\nkey: [\n---\nmine\n")
    add_result(fresh, result)
    assert "was not written by `visionflow train`: it was not changed" in caplog.text
    assert (fresh / "README.md").read_text().endswith("mine\n")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_results_change_nothing_else_of_an_edited_card(fresh, report, tmp_path, newline):
    file = fresh / "README.md"
    text = file.read_text()
    for found, mine in (
        ("---\nlibrary_name", "---\n# mine: keep\nlibrary_name"),
        ("\nlicense: unknown\n", "\nlicense:   mit  # spaces, too\n"),
        ("visionflow:\n", "visionflow:\n  # of the training\n"),
        ("\n---\n\n#", "\n\n# last words\ndatasets: [a/b,   c/d]\nlanguage:\n- en # here\n---\n\n#"),
        ("\n## Results\n", "\nMy   own *notes*.\t \n\n## My results\n\n| by | hand |\n|---|---|\n| r | .5 |\n"),
        ("<!-- end results -->\n", "<!-- end results -->\nFigures by hand: pixcorr .1 \n"),
        ("## Limits", "## Limits that I know"),
    ):
        assert text.count(found) == 1, found
        text = text.replace(found, mine)
    text = text.replace("\n", newline)
    file.write_bytes(text.encode())
    end_of_training = text.index("\n", text.index("  model_id:"))  # the last entry of `visionflow`
    end_of_head = text.index(f"{newline}---{newline}", 4)
    begin = text.index("evaluate` rewrites")
    begin = text.index("-->" + newline, begin) + len("-->" + newline)
    end = text.index(f"{newline}<!-- end results -->")
    kept = [text[:end_of_training].rstrip("\r"), text[end_of_training:end_of_head].lstrip("\r\n")]
    kept += [text[end_of_head:begin], text[end:]]
    pattern = re.compile("(.*?)".join(map(re.escape, kept)), re.DOTALL)
    assert pattern.fullmatch(text)
    metrics = json.loads((report / "metrics.json").read_text())
    for pixcorr in (0.123, 0.456):  # added, then replaced
        metrics["decoding"]["model"]["pixcorr"] = pixcorr
        add_result(fresh, result_of(metrics, "lab/data", ""))
        written = file.read_bytes().decode()
        changed = pattern.fullmatch(written)
        assert changed, written
        assert (
            all("\r\n" in part and "\n" not in part.replace("\r\n", "") for part in changed.groups()) or newline == "\n"
        )
        card = ModelCard(written)
        assert in_head(card, "lab/data")["fmri-to-image", "pixcorr"] == pixcorr
        assert [row[2] for row in cells(card, "pixcorr")] == [f"{pixcorr:.3f}"]
        data = card.data.to_dict()
        assert (data["license"], data["datasets"], data["language"]) == ("mit", ["a/b", "c/d"], ["en"])
        assert len(data["visionflow"]["results"]) == 1 and data["visionflow"]["model_id"] == str(fresh)


def test_results_that_somebody_else_added_to_the_metadata_stay(fresh, report):
    file = fresh / "README.md"
    mine = "model-index:\n- name: My model\n  results:\n  - task: {type: text-generation}\n"
    mine += "    dataset: {type: a, name: a}\n    metrics: [{type: bleu, value: 1.5}]\n"
    file.write_text(file.read_text().replace("---\n", f"---\n{mine}", 1))
    for _ in range(2):
        add_result(fresh, result_of(json.loads((report / "metrics.json").read_text()), "lab/data", ""))
    (index,) = ModelCard.load(file).data.to_dict()["model-index"]
    assert index["name"] == "My model"
    assert [one["task"]["type"] for one in index["results"]].count("text-generation") == 1
    assert [one["task"]["type"] for one in index["results"]].count("latent-alignment") == 1


@pytest.mark.parametrize(
    ("found", "mine", "said"),
    [
        ("<!-- end results -->", "", "no lines `<!-- begin results -->` and `<!-- end results -->`"),
        ("visionflow:\n", "visionflow: {a: 1}\nother:\n", "no metadata for visionflow.results"),
    ],
)
def test_a_card_without_a_place_for_results_stays_as_it_is(fresh, report, caplog, found, mine, said):
    file = fresh / "README.md"
    text = file.read_text().replace(found, mine)
    file.write_text(text)
    add_result(fresh, result_of(json.loads((report / "metrics.json").read_text()), "lab/data", ""))
    assert said in caplog.text and file.read_text() == text


def test_figures_under_leakage_reach_no_leaderboard(fresh, report, caplog):
    result = result_of(json.loads((report / "metrics.json").read_text()), "lab/data", "")
    leaking = result | {"leakage": "1 stimulus (s1) in both train and test"}
    add_result(fresh, leaking)
    card = ModelCard.load(fresh / "README.md")
    assert "model-index" not in card.data.to_dict() and "**Leakage.** The corpus has 1 stimulus (s1)" in card.text
    assert not (fresh / ".eval_results").exists()
    assert "not in model-index and .eval_results, which leaderboards read: 1 stimulus (s1)" in caplog.text
    other = result | {"dataset": "lab/other"}
    for one in (result, other):
        add_result(fresh, one)
    assert len(list((fresh / ".eval_results").iterdir())) == 2
    add_result(fresh, leaking)
    card = ModelCard.load(fresh / "README.md")
    assert not in_head(card, "lab/data") and in_head(card, "lab/other")
    assert [file.name for file in (fresh / ".eval_results").iterdir()] == ["lab_other.yaml"]


def test_pushed_under_another_name_an_edited_card_keeps_the_rest(fresh, report):
    file = fresh / "README.md"
    add_result(fresh, result_of(json.loads((report / "metrics.json").read_text()), "lab/data", ""))
    text = file.read_text().replace("## Limits", f"I trained it in {fresh} and call it model.\n\n## Limits")
    pushed = named(text, "lab/digits", training_of(file))
    before, after = text.splitlines(), pushed.splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert [b for _, b in changed] == [
        "  model_id: lab/digits",
        "- name: digits",
        'name, revision = "lab/digits", "main"',
        'encode = pipeline("image-to-fmri", model="lab/digits", revision="main", trust_remote_code=True)',
        'decode = pipeline("fmri-to-image", model="lab/digits", revision="main", trust_remote_code=True)',
        '  note = "Model lab/digits"',
    ]


@pytest.mark.nightly  # five commands, each in a process of its own
def test_push_carries_the_figures_and_the_corpus_its_licence(fresh, corpus, tmp_path):
    with LoopbackHub() as hub:
        env = environment(hub, tmp_path / "home", HF_HUB_OFFLINE="0")
        pushed = visionflow("push-corpus", corpus, "lab/data", "--license", "cc-by-4.0", env=env)
        assert pushed.returncode == 0, pushed.stderr
        result = visionflow("evaluate", fresh, "lab/data", tmp_path / "report", env=env)
        assert result.returncode == 0, result.stderr[-2000:]
        assert visionflow("push", fresh, "lab/digits", env=env).returncode == 0
        card = ModelCard(hub.files("lab/digits")["README.md"].decode())
        metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
        assert in_head(card, "lab/data") == measured(metrics)
        assert card.data.model_name == "digits" and {one.dataset_type for one in card.data.eval_results} == {"lab/data"}
        assert "Licence of these data: cc-by-4.0, as their card states." in " ".join(card.text.split())
        assert str(tmp_path) not in card.content
        result = visionflow("evaluate", "lab/digits", "lab/data", tmp_path / "by name", env=env)
        assert "lab/digits is on the Hub: its card was not changed" in result.stderr
        assert not (tmp_path / "lab").exists()


def saved_by_trainer(model, processor, corpus, folder) -> ModelCard:
    arguments = TrainingArguments(str(folder), remove_unused_columns=False, report_to="none", seed=7)
    rows = load_from_disk(corpus)["train"]
    trainer = VisionFlowTrainer(model, arguments, VisionFlowCollator(processor), rows, processing_class=processor)
    trainer.save_model()
    trainer.create_model_card(model_name="none", tags=["none"])
    return ModelCard.load(folder / "README.md")


def test_the_trainer_continues_the_card_with_its_edits_and_without_its_results(fresh, corpus, tmp_path):
    evaluate(fresh, corpus, tmp_path / "report")
    edited = (fresh / "README.md").read_text().replace("## Limits\n", "## Limits\n\nOnly for horses.\n")
    (fresh / "README.md").write_text(edited)
    assert "voxel_r_mean" in edited
    folder = tmp_path / "tuned"
    card = saved_by_trainer(*load_model(fresh), corpus, folder)
    assert "Only for horses." in card.text and f"Made from `{fresh.name}`, by more" in card.text
    assert "voxel_r_mean" not in card.content and card.data.eval_results is None
    assert card.data.to_dict()["visionflow"]["model_id"] == str(folder) and f'model="{folder}"' in card.text
    metrics = evaluate(folder, corpus, tmp_path / "again")
    assert in_head(ModelCard.load(folder / "README.md"), "simulated") == measured(metrics)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nAnd for cows.\n")
    kept = saved_by_trainer(*load_model(folder), corpus, folder)
    assert "And for cows." in kept.text and in_head(kept, "simulated") == measured(metrics)


def test_results_stay_with_the_weights_that_gave_them(fresh, report):
    metrics = json.loads((report / "metrics.json").read_text()) | {"leakage": ""}
    add_result(fresh, result_of(metrics, "lab/data", ""))
    file, board = fresh / "README.md", fresh / ".eval_results" / "lab_data.yaml"
    file.write_text(file.read_text().replace("## Limits\n", "## Limits\n\nOnly for horses.\n"))
    before = file.read_bytes()
    model, _ = load_model(fresh)
    model.save_pretrained(fresh)
    assert file.read_bytes() == before and board.is_file()
    model.linear_logvar.data += 1
    model.save_pretrained(fresh)
    card = ModelCard.load(file)
    assert "voxel_r_mean" not in card.content and card.data.eval_results is None and not board.exists()
    assert "Only for horses." in card.text and "Not evaluated yet" in card.text
    add_result(fresh, result_of(metrics, "lab/data", ""))
    model.save_pretrained(fresh)
    assert in_head(ModelCard.load(file), "lab/data") == measured(metrics) and board.is_file()


def test_the_trainer_gives_new_weights_a_new_card(run, corpus, tmp_path):
    model, processor = load_model(run)
    config = VisionFlowConfig.from_dict(model.config.to_dict())
    config._name_or_path = ""
    card = saved_by_trainer(VisionFlowModel(config), processor, corpus, tmp_path / "new")
    assert "36 distinct stimuli in 72 trials" in card.text and "seed 7" in card.text and "Not evaluated" in card.text


def test_a_folder_keeps_the_card_that_it_has(fresh, tmp_path):
    model, _ = load_model(fresh)
    for text, kept in (
        ("# Mine\n", True),
        (
            "This model card has been generated automatically according to the information the Trainer had access to.",
            False,
        ),
    ):
        (tmp_path / "README.md").write_text(text)
        model.save_pretrained(tmp_path)
        assert ((tmp_path / "README.md").read_text() == text) == kept
