"""report.html, opened in a browser: every section, no console error, no request, a phone's width, names that bite."""

import json
import re
import sys
from html import unescape

import numpy as np
import pytest
from browser import Browser

from visionflow_hf.evaluation.brain import on_surface
from visionflow_hf.evaluation.page import page
from visionflow_hf.evaluation.pictures import draw_losses
from visionflow_hf.evaluation.quality import VoxelScores, pixel_correlations
from visionflow_hf.evaluation.report import print_table
from visionflow_hf.evaluation.scores import score

PHONE, DESKTOP = 360, 1200
BITE = "<script>window.bitten = 1</script>"
SECTIONS = {
    "reconstructions": "Reconstructions",
    "figures": "Figures",
    "voxels": "Voxels",
    "regions": "Regions",
    "brain": "Brain maps",
    "subjects": "Subjects",
    "single-trials": "Single trials",
    "neighbours": "Latent neighbours",
    "training": "Training",
    "made": "About this report",
}
HISTORY = [
    {"step": 10 * step, "loss_image": 1 / step, "loss_kl": 2 / step, "loss_fmri": 0.5, "eval_loss_image": 1.2 / step}
    | ({"loss_alignment": 3 / step} if step > 3 else {})
    for step in range(1, 9)
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def arrays(subjects=("subj01", "subj02"), stimuli=14, voxels=60, repeats=3, ceiling=0.4, seed=0):
    """Predictions of responses whose signal is half of them, with every array that a report draws."""
    rng = np.random.default_rng(seed)
    shape = (stimuli, 12, 12)
    parts = {name: [] for name in ("stimulus_id", "subject", "trials", "latent/image", "latent/fmri")}
    made = {"image": "", "reconstruction": 40, "round_trip/reconstruction": 50, "ridge/reconstruction": 60}
    parts |= {name: [] for name in (*made, "mean_image/reconstruction", "nearest/reconstruction")}
    result, trial_rows = {}, []
    images, latents = rng.integers(0, 256, shape, dtype=np.uint8), rng.normal(size=(stimuli, 5))
    for number, subject in enumerate(subjects):
        signal = rng.normal(size=(stimuli, voxels))
        parts["stimulus_id"] += [f"s{index}" for index in range(stimuli)]
        parts["subject"] += [subject] * stimuli
        parts["trials"] += [repeats] * stimuli
        for name, noise in made.items():
            noisy = images + (rng.normal(0, noise, shape) * np.linspace(0.2, 3, stimuli)[:, None, None] if noise else 0)
            parts[name].append(noisy.clip(0, 255).astype(np.uint8))
        parts["mean_image/reconstruction"].append(np.full(shape, 128, np.uint8))
        parts["nearest/reconstruction"].append(images[rng.permutation(stimuli)])
        parts["latent/image"].append(latents)
        parts["latent/fmri"].append(latents + rng.normal(0, 0.5, latents.shape))
        result[f"fmri/{subject}"] = signal + rng.normal(size=signal.shape)
        for prefix, noise in (("", 0.3), ("ridge/", 1), ("nearest/", 3)):
            result[f"{prefix}fmri_predicted/{subject}"] = signal + rng.normal(0, noise, signal.shape)
        result[f"noise_ceiling/{subject}"] = np.full(voxels, ceiling)
        if repeats > 1:
            trial_rows += [number * stimuli + index for index in range(stimuli) for _ in range(repeats)]
            result[f"single_trial/fmri/{subject}"] = np.repeat(result[f"fmri/{subject}"], repeats, 0)
    result |= {
        name: np.array(values) if name in ("stimulus_id", "subject", "trials") else np.concatenate(values)
        for name, values in parts.items()
    }
    if trial_rows:
        result["single_trial/row"] = np.array(trial_rows)
        for name in ("reconstruction", "ridge/reconstruction", "nearest/reconstruction", "latent/fmri"):
            result[f"single_trial/{name}"] = result[name][trial_rows]
    return result


def placed(predictions, names=("V1", "V2"), vertices=True):
    """The same with regions, and the voxels' places on the surface or in space."""
    rng = np.random.default_rng(5)
    for subject in dict.fromkeys(predictions["subject"].tolist()):
        voxels = predictions[f"fmri/{subject}"].shape[1]
        sides = np.where(np.arange(voxels) % 2, "lh", "rh")
        regions = [f"{side},{names[voxel * len(names) // voxels]}" for voxel, side in enumerate(sides)]
        predictions[f"roi/{subject}"] = np.array(regions)
        if vertices:
            predictions[f"vertex/{subject}"] = np.arange(voxels) * 100
        else:
            predictions[f"xyz/{subject}"] = rng.uniform(-60, 60, (voxels, 3)).astype(np.float32)
    return predictions


def region_blocks(names=("V1", "V2"), r=0.4):
    return {
        name: {
            "n_voxels": 30,
            "model": {"voxel_r_mean": r},
            "ridge": {"voxel_r_mean": r / 2},
            "noise_ceiling": {"voxel_r_mean": 0.7},
            "intervals": {"model.voxel_r_mean": [r - 0.1, r + 0.1]},
        }
        for name in names
    }


def write(folder, predictions, metrics, histories=(HISTORY,)):
    """The page alone, of figures that the test names itself."""
    file = folder / "report.html"
    voxels, quality = VoxelScores.of(predictions), pixel_correlations(predictions)
    file.write_text(page(predictions, metrics, list(histories), quality, voxels), encoding="utf-8")
    return file


def figures(predictions, **more):
    """A small metrics.json for `predictions`, with one figure a direction."""
    decoding = {name: {"pixcorr": value} for name, value in (("model", 0.81), ("ridge", 0.72), ("nearest", 0.63))}
    encoding = {"model": {"voxel_r_mean": 0.54}, "ridge": {"voxel_r_mean": 0.45}}
    encoding["noise_ceiling"] = {"voxel_r_mean": 0.87}
    block = {"decoding": decoding, "encoding": encoding, "latent": {"cosine": 0.36}}
    return {
        "split": "test",
        "n_stimuli": len(set(predictions["stimulus_id"].tolist())),
        "n_trials": int(predictions["trials"].sum()),
        **block,
        "single_trial": block,
        "intervals": {"decoding.model.pixcorr": [0.789, 0.832]},
        "p_values": {"decoding.model.pixcorr": 0.0123},
        "subjects": {
            subject: block | {"single_trial": block, "rois": region_blocks()}
            for subject in dict.fromkeys(predictions["subject"].tolist())
        },
        **more,
    }


def sections(browser) -> dict[str, str]:
    return dict(browser.evaluate("[...document.querySelectorAll('section')].map(s => [s.id, s.innerText])"))


def test_the_browser_sees_what_is_wrong(browser, tmp_path):
    (tmp_path / "broken.html").write_text(
        "<!doctype html><body style='width: 2000px'><script>console.error('said'); absent()</script>"
        "<img src='http://127.0.0.1:9/picture.png'><link rel=stylesheet href=absent.css>"
    )
    browser.open(tmp_path / "broken.html", DESKTOP)
    seen = " ".join(browser.errors)
    assert "said" in seen and "absent is not defined" in seen and "ERR_" in seen
    assert {address.rpartition("/")[2] for address in browser.requests} == {"picture.png", "absent.css"}
    assert browser.evaluate("document.documentElement.scrollWidth") >= 2000


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_every_section_at_every_width(browser, tmp_path, width):
    predictions = placed(arrays())
    browser.open(write(tmp_path, predictions, figures(predictions)), width)
    assert browser.errors == [] and browser.requests == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    shown = sections(browser)
    assert list(shown) == list(SECTIONS)
    for name, title in SECTIONS.items():
        assert shown[name].startswith(title), name
    links = browser.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    assert links == [f"#{name}" for name in SECTIONS]
    for text in ("0.810", "0.720", "0.630", "0.789 to 0.832", "0.012", "0.540", "0.870"):
        assert text in shown["figures"], text
    # every picture is there and has words; every figure has a caption
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    assert browser.evaluate("document.images.length") > 100
    drawn = "[...document.querySelectorAll('svg[role=img]')]"
    assert browser.evaluate(f"{drawn}.length") == 7
    named = f"{drawn}.every(s => document.getElementById(s.getAttribute('aria-labelledby')).innerText.length > 5)"
    assert browser.evaluate(named)
    assert browser.evaluate(f"{drawn}.every(s => s.getBoundingClientRect().height > 80)")
    texts = browser.evaluate("[...document.querySelectorAll('#regions svg text')].map(t => t.textContent)")
    assert {"V1 (30)", "V2 (30)", "model", "ridge", "noise ceiling"} <= set(texts) and "intervals" not in texts
    assert browser.evaluate("[...document.querySelectorAll('th')].every(th => th.scope)")
    heads = browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName)")
    assert heads[0] == "H1" and heads.count("H1") == 1 and heads[1] == "H2"
    ids = browser.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_best_median_and_worst_are_what_they_are_called(browser, tmp_path):
    predictions = arrays()
    quality = pixel_correlations(predictions)
    browser.open(write(tmp_path, predictions, figures(predictions)), DESKTOP)
    groups = browser.evaluate(
        "[...document.querySelectorAll('.groups > div')].map(g => [g.querySelector('h3').innerText,"
        " [...g.querySelectorAll('thead th')].map(t => [t.title, t.innerText])])"
    )
    names = [
        f"{stimulus}, {subject}"
        for stimulus, subject in zip(predictions["stimulus_id"], predictions["subject"], strict=True)
    ]
    order = np.argsort(-quality)
    expected = {"Best": order[:4], "Median": order[12:16], "Worst": order[-4:]}
    assert [name for name, _ in groups] == list(expected)
    for name, columns in groups:
        assert columns == [[names[row], f"{quality[row]:.2f}"] for row in expected[name]]
    lines = browser.evaluate(
        "[...document.querySelector('.pictures').querySelectorAll('th[scope=row]')].map(t => t.innerText)"
    )
    assert lines == [
        "stimulus",
        "from measured fMRI",
        "from predicted fMRI",
        "ridge",
        "nearest neighbour",
        "mean image",
    ]


def test_neighbours_are_of_the_same_subject_and_fold(browser, tmp_path):
    predictions = arrays()
    predictions["fold"] = np.arange(28) % 4
    browser.open(write(tmp_path, predictions, figures(predictions)), DESKTOP)
    lines = browser.evaluate(
        "[...document.querySelectorAll('#neighbours tbody tr')].map(tr =>"
        " [...tr.querySelectorAll('td')].map(td => [td.querySelector('img').alt, td.className, td.innerText]))"
    )
    assert len(lines) == 6
    place = {
        f"{stimulus}, {subject}": row
        for row, (stimulus, subject) in enumerate(zip(predictions["stimulus_id"], predictions["subject"], strict=True))
    }
    for (seen, _, rank), *nearest in lines:
        row = place[seen.removeprefix("stimulus: ")]
        near = [place[alt] for alt, _, _ in nearest]
        assert (predictions["fold"][near] == predictions["fold"][row]).all()
        assert (predictions["subject"][near] == predictions["subject"][row]).all()
        asked, there = predictions["latent/fmri"][row], predictions["latent/image"][near]
        cosines = there @ asked / np.linalg.norm(there, axis=1) / np.linalg.norm(asked)
        assert [f"{value:.2f}" for value in cosines] == [re.match(r"\s*(-?[.\d]+)", text)[1] for *_, text in nearest]
        assert (np.diff(cosines) <= 0).all()
        own = [alt for alt, name, _ in nearest if name == "own"]
        assert own == ([seen.removeprefix("stimulus: ")] if row in near else [])
        assert not own or int(rank.split()[0]) == near.index(row) + 1


def test_all_reconstructions_are_there_on_request(browser, tmp_path):
    predictions = arrays()
    browser.open(write(tmp_path, predictions, figures(predictions)), PHONE)
    listed = "[...document.querySelectorAll('details.all li')]"
    assert browser.evaluate(f"{listed}.some(li => li.checkVisibility())") is False
    browser.evaluate("document.querySelector('details.all summary').click()")
    assert browser.evaluate(f"{listed}.every(li => li.checkVisibility())")
    shown = browser.evaluate(f"{listed}.map(li => [li.title, li.innerText.trim(), li.querySelectorAll('img').length])")
    quality = pixel_correlations(predictions)
    order = np.argsort(-quality)
    names = [f"{predictions['stimulus_id'][row]}, {predictions['subject'][row]}" for row in order]
    assert shown == [[name, f"{quality[row]:.2f}", 2] for name, row in zip(names, order, strict=True)]
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE


@pytest.mark.parametrize("width", [320, PHONE, DESKTOP])
def test_no_table_is_cut_off(browser, tmp_path, width):
    predictions = placed(arrays())
    browser.open(write(tmp_path, predictions, figures(predictions)), width)
    assert browser.evaluate("[...document.querySelectorAll('.wide')].every(e => e.scrollWidth <= e.clientWidth)")


def test_the_page_says_what_it_is_about(tmp_path):
    predictions = arrays(subjects=("subj01",))
    about = {"corpus": "digits", "model": "small", "training steps": 750, "seed": 3}
    tests = {"against_ridge": {"decoding.pixcorr": {"difference": 0.0312, "wins": 12, "n": 14, "p": 0.0004}}}
    above = {"voxels_above_chance": {"subj01": {"are": 60, "model": 41, "ridge": 30}}}
    text = text_of(write(tmp_path, predictions, figures(predictions, about=about, **tests, **above)))
    assert "Corpus: digits; Model: small; Training steps: 750; Seed: 3." in text
    assert "Pixel correlation: +0.031 on average; the model is better for 12 of 14 stimuli, p < .001." in text
    assert "subj01: 41 of 60, by ridge 30." in text


def test_names_that_bite_are_text(browser, tmp_path):
    subject, region = f"{BITE}$a_b$", f'$\\no_$"><img src=x onerror="window.bitten = 1">{BITE}\x01'
    predictions = placed(arrays(subjects=(subject, "b & b")), names=(region, "V2"), vertices=False)
    predictions["stimulus_id"] = np.array([f"{name}{BITE}" for name in predictions["stimulus_id"]])
    metrics = figures(predictions, split=BITE, leakage=f"1 stimulus ({BITE}) is in train and test")
    for block in metrics["subjects"].values():
        block["rois"] = region_blocks((region, "V2"))
    browser.open(write(tmp_path, predictions, metrics), PHONE)
    assert browser.errors == [] and browser.requests == []
    assert browser.evaluate("window.bitten === undefined && document.scripts.length === 0")
    assert browser.evaluate("[...document.images].every(i => i.src.startsWith('data:') && !i.onerror)")
    assert browser.evaluate("document.title").endswith(BITE)
    shown = sections(browser)
    assert subject in shown["made"] and subject in shown["brain"]
    heads = browser.evaluate("document.querySelector('#subjects thead').textContent")
    assert subject in heads and "b & b" in heads
    assert region[:10] in browser.evaluate("document.querySelector('#regions svg').textContent")
    assert BITE in browser.evaluate("document.querySelector('.warn').innerText")
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE


def test_voxels_lie_where_the_corpus_says():
    predictions = placed(arrays(voxels=120))
    voxels = VoxelScores.of(predictions)
    values, subjects = on_surface(predictions, voxels)
    assert subjects == ["subj01", "subj02"]
    expected = np.full((2, 10242), np.nan)
    for voxel in range(103):  # vertex 100 * voxel; those beyond 10242 are not in fsaverage5
        r = [
            np.corrcoef(predictions[f"fmri/{subject}"][:, voxel], predictions[f"fmri_predicted/{subject}"][:, voxel])
            for subject in subjects
        ]
        expected[0 if voxel % 2 else 1, 100 * voxel] = np.mean(r, 0)[0, 1]
    np.testing.assert_allclose(values, expected, atol=1e-9)


@pytest.mark.parametrize(("shift", "said"), [(0, "outline is that of the MNI template"), (70, "no outline is drawn")])
def test_an_outline_is_drawn_only_where_it_can_be_right(browser, tmp_path, shift, said):
    predictions = placed(arrays(subjects=("subj01",)), vertices=False)
    predictions["xyz/subj01"] += shift  # voxel indices have no negative x
    browser.open(write(tmp_path, predictions, figures(predictions)), DESKTOP)
    assert browser.errors == [] and said in sections(browser)["brain"]


def test_what_has_no_data_is_named_with_the_reason(browser, tmp_path, monkeypatch):
    predictions = placed(arrays(subjects=("subj01",), stimuli=3, repeats=1, ceiling=np.nan))
    metrics = figures(predictions, single_trial=None, n_folds=3)
    metrics["subjects"]["subj01"]["rois"] = {}
    monkeypatch.setitem(sys.modules, "nilearn", None)
    monkeypatch.setattr("visionflow_hf.evaluation.page.find_spec", lambda name: None)
    browser.open(write(tmp_path, predictions, metrics, histories=[]), PHONE)
    assert browser.errors == []
    shown = sections(browser)
    assert list(shown) == ["reconstructions", "figures", "voxels", "neighbours", "made"]
    for line in (
        "Brain maps: they need nilearn: pip install 'visionflow-hf[brain]'.",
        "Regions: the corpus has no regions of interest.",
        "Single trials: no stimulus has repeats.",
        "Training: the model folder has no trainer_state.json.",
        "Voxel r against the noise ceiling: the corpus has no noise ceilings, which need repeats.",
    ):
        assert line in shown["made"], line
    assert "mean and standard deviation of the train rows of each fold" in shown["made"]
    assert "Rank 1 to 3" in shown["reconstructions"]  # too few for best, median and worst: all of them


def text_of(file) -> str:
    """The text of a page without a browser."""
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", " ", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(unescape(body).split())


def test_losses_that_were_not_logged_are_left_out(tmp_path):
    history = [{"step": 10 * step, "loss_image": 1 / step, "loss_kl": 2 / step} for step in range(1, 9)]
    predictions = arrays(subjects=("subj01",))
    text = text_of(write(tmp_path, predictions, figures(predictions), [history]))
    assert re.findall(r"Loss: (\w+)\.", text) == ["image", "kl"]
    assert len(draw_losses([history]).axes) == 2
    text = text_of(write(tmp_path, predictions, figures(predictions), [[{"step": 1}]]))
    assert "Training: no losses were logged." in text and "Loss:" not in text


def test_simulated_responses_are_said_to_be_simulated(tmp_path, capsys):
    predictions = arrays(subjects=("subj01",))
    for unit, said in (("simulated response, 1 = one standard deviation", True), ("percent signal change", False)):
        metrics = figures(predictions, unit=unit)
        text = text_of(write(tmp_path, predictions, metrics))
        assert ("voxels of the simulator are Gabor energies" in text) == said and unit in text
        print_table(metrics)
        assert ("voxels of the simulator are Gabor energies" in " ".join(capsys.readouterr().out.split())) == said


def test_voxels_without_a_measurable_ceiling_are_counted(tmp_path):
    predictions = arrays(repeats=1)
    for subject in ("subj01", "subj02"):
        predictions[f"noise_ceiling/{subject}"][:15] = 0.04
    text = text_of(write(tmp_path, predictions, figures(predictions)))
    assert "the mean over the 90 of 120 voxels whose noise ceiling is at least 0.05" in text
    block = score(predictions, draws=2)
    assert block["encoding"]["noise_ceiling"]["share_measurable"] == 0.75
    for subject in ("subj01", "subj02"):  # the same voxels of unknown ceiling
        predictions[f"noise_ceiling/{subject}"][:15] = np.nan
    expected = score(predictions, draws=2)["encoding"]["model"]["ceiling_normalised"]
    assert block["encoding"]["model"]["ceiling_normalised"] == pytest.approx(expected)


def test_the_report_that_evaluate_writes(browser, report):
    file = report / "report.html"
    text = file.read_text(encoding="utf-8")
    written = re.sub(r"data:image/(png|jpeg);base64,[\s\w+/=]*", "", text)  # SVG breaks their lines
    assert not re.search(r"https?:|//|<script|@import|url\([^#]|data:(?!;)", written)
    assert len(text) < 500_000
    for width in (PHONE, DESKTOP):
        browser.open(file, width)
        assert browser.errors == [] and browser.requests == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    shown = sections(browser)
    assert list(shown) == [name for name in SECTIONS if name != "brain"]  # a simulated cortex has regions, not places
    metrics = json.loads((report / "metrics.json").read_text())
    for direction in ("decoding", "encoding"):
        for method in ("model", "ridge"):
            for value in metrics[direction][method].values():
                assert value is None or f"{value:.4f}"[: 6 if abs(value) < 0.1 else 4] in shown["figures"]
    for fact in (
        "Split\ntest",
        "Stimuli\n4",
        "Trials\n24",
        "subj01 (30 voxels), subj02 (30 voxels)",
        "visionflow-hf 0",
    ):
        assert fact in shown["made"], fact


def test_a_large_test_set_makes_a_small_page(browser, tmp_path):
    rng = np.random.default_rng(0)
    predictions = arrays(subjects=("subj01",), stimuli=300, voxels=15724, repeats=1)
    predictions["noise_ceiling/subj01"] = rng.uniform(0, 0.8, 15724)
    for name in [name for name in predictions if name.endswith(("image", "reconstruction")) and "latent" not in name]:
        predictions[name] = rng.integers(0, 256, (300, 160, 200, 3), dtype=np.uint8)
    file = write(
        tmp_path, placed(predictions, names=[f"region {number}" for number in range(60)]), figures(predictions)
    )
    assert file.stat().st_size < 4e6
    browser.open(file, PHONE)
    assert browser.errors == [] and browser.evaluate("document.documentElement.scrollWidth") <= PHONE


def test_a_page_is_printed(browser, tmp_path):
    predictions = arrays()
    browser.open(write(tmp_path, predictions, figures(predictions)), DESKTOP)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.evaluate("getComputedStyle(document.querySelector('.wide')).overflowX") == "visible"
    browser.call("Emulation.setEmulatedMedia", media="")
    browser.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_the_terminal_shows_every_baseline_and_the_ceiling(capsys):
    print_table(figures(arrays()))
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "voxel_r_mean" in line]
    assert [cell for cell in re.findall(r"[\d.]+", line) if cell.startswith("0")] == ["0.540", "0.450", "0.870"]
    (line,) = [line for line in printed.splitlines() if "pixcorr" in line]
    assert "0.789 to 0.832" in line and "0.012" in line and "0.630" in line
