"""What a reader of the evaluation's code found: each test failed once."""

import re
from pathlib import Path

import numpy as np
import pytest
from test_report import arrays

import visionflow_hf
from visionflow_hf.cli import main
from visionflow_hf.crossvalidate import in_colour
from visionflow_hf.evaluation.page import single_trial
from visionflow_hf.evaluation.quality import VoxelScores
from visionflow_hf.evaluation.rows import write_rows
from visionflow_hf.evaluation.scores import _mean_of_subjects, interval, score


@pytest.mark.parametrize(("counts", "least"), [((30, 30), 0.91), ((30, 5), 0.91), ((30, 2), 0.83)])
def test_the_interval_of_a_mean_over_subjects_holds_where_one_has_few_stimuli(counts, least):
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        figures = []
        for n in counts:
            values = rng.normal(size=n)
            drawn = rng.multinomial(n, np.full(n, 1 / n), size=200) @ values / n
            figures.append((np.concatenate([[values.mean()], drawn]), n))
        low, high = interval("pixcorr", *_mean_of_subjects(figures, sum(counts)))
        held.append(low <= 0 <= min(high, 1))
    assert np.mean(held) > least  # .71 for 30 and 2 by the number of all stimuli


def test_a_mean_over_subjects_has_no_interval_where_one_has_a_single_stimulus():
    both = arrays(repeats=1)
    only = np.flatnonzero(both["subject"] == "subj02")[1:]
    some = {}
    for name, values in both.items():
        if len(values) == len(both["subject"]):
            some[name] = np.delete(values, only, axis=0)
        else:
            some[name] = values[:1] if name.endswith("/subj02") and values.ndim == 2 else values
    metrics = score(some, draws=50)
    assert "encoding.model.pattern_r" not in metrics["intervals"]
    assert "encoding.model.pattern_r" in metrics["subjects"]["subj01"]["intervals"]


def test_noise_ceilings_leave_out_the_voxels_that_the_figures_leave_out():
    plain = arrays(subjects=("subj01",))
    of_voxels = [name for name in plain if name.endswith("/subj01") and plain[name].shape[-1] == 60]
    half = plain | {name: plain[name][..., :30] for name in of_voxels}
    constant = plain | {name: plain[name].copy() for name in of_voxels if name.endswith("fmri/subj01")}
    for name in of_voxels:
        if name.endswith("fmri/subj01"):
            constant[name][..., 30:] = 0
    one, other = (score(these, draws=2)["encoding"]["noise_ceiling"] for these in (half, constant))
    assert other == one
    assert np.isnan(VoxelScores.of(constant).ceiling["subj01"][30:]).all()


def test_single_trials_stand_beside_the_averages_of_the_same_subjects():
    one = {"decoding": {"model": {"pixcorr": 0.8, "two_way": None}}}
    other = {"decoding": {"model": {"pixcorr": 0.2, "two_way": None}}}
    alone = {"decoding": {"model": {"pixcorr": 0.5, "two_way": None}}}
    metrics = {"decoding": {"model": {"pixcorr": 0.5, "two_way": None}}, "single_trial": alone}
    metrics["subjects"] = {"ann": one | {"single_trial": alone}, "bob": other}
    empty = {"encoding": {}, "latent": {}}
    metrics |= empty
    metrics["single_trial"] |= empty
    for block in metrics["subjects"].values():
        block |= empty
    lines = {line["row"].name: line for line in single_trial(metrics, {})}
    assert lines["pixcorr"]["averaged"]["model"] == 0.8 and lines["pixcorr"]["alone"]["model"] == 0.5


def test_images_of_a_grey_fold_are_joined_from_disk(tmp_path):
    grey = write_rows(tmp_path / "grey.npy", [np.ones((2, 4, 5), np.uint8)], 2)
    parts = in_colour([{"image": grey}, {"image": np.zeros((1, 4, 5, 3), np.uint8)}])
    assert [part["image"].shape for part in parts] == [(2, 4, 5, 3), (1, 4, 5, 3)]


def test_an_output_that_cannot_be_written_is_told_before_any_fold_is_trained(corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["crossvalidate", str(corpus), str(tmp_path / "file" / "out"), "--folds", "2"]) == 2
    told = capsys.readouterr()
    assert "cannot be written: Not a directory" in told.err and "fold 1" not in told.out


def test_text_is_read_in_utf_8_on_every_system():
    for file in Path(visionflow_hf.__file__).parent.rglob("*.py"):
        assert not re.search(r"\.read_text\(\)", file.read_text(encoding="utf-8")), file
