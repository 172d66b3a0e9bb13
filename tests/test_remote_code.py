"""A stranger's process: the model folder alone, without this package, without network."""

import os
import subprocess
import sys

import numpy as np
import torch
from conftest import ROOT
from stranger import STRANGER

from visionflow_hf.hub import load_model

# Runs in the stranger's process, where -I leaves the current folder and PYTHONPATH out.
SCRIPT = """
from transformers import AutoConfig, AutoModel, AutoProcessor

folder, data, output = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
for thing in (config, model, processor):
    assert type(thing).__module__.startswith("transformers_modules."), type(thing)
assert not any(name.split(".")[0] == "visionflow_hf" for name in sys.modules)

arrays = np.load(data)
predicted = model.predict_fmri(**processor(images=list(arrays["images"]), subject="subj02"))
reconstruction = model.reconstruct_image(**processor(fmri=arrays["fmri"], subject="subj02"))
with torch.no_grad():
    both = model(**processor(images=list(arrays["images"]), fmri=arrays["fmri"], subject="subj02"))
np.savez(output, predicted=predicted, reconstruction=reconstruction, loss=both.loss)

from datasets import Dataset, Image

rows = {"image": list(arrays["images"]) * 2, "fmri": list(arrays["fmri"]) * 2, "stimulus_id": list("abc") * 2}
rows = Dataset.from_dict({**rows, "subject": ["subj01"] * 3 + ["subj02"] * 3}).cast_column("image", Image())
sys.modules[type(model.refit_callback()).__module__].STEPS = 5
fitted = AutoModel.from_pretrained(folder, trust_remote_code=True).refit(rows)
again = fitted.predict_fmri(**processor(images=list(arrays["images"]), subject="subj02"))
assert again.isfinite().all() and not torch.equal(again, predicted)
regions = model.roi_voxels("subj02")
by_region = model.predict_fmri(**processor(images=list(arrays["images"]), subject="subj02"), rois=list(regions))
for name, voxels in regions.items():
    assert torch.equal(by_region[name], predicted[:, voxels])

model.save_pretrained(output + ".again")  # the code travels on with what a stranger saves
processor.save_pretrained(output + ".again")
again = AutoModel.from_pretrained(output + ".again", trust_remote_code=True)
assert torch.equal(again.predict_fmri(**processor(images=list(arrays["images"]), subject="subj02")), predicted)
assert list(again.roi_voxels("subj02")) == list(regions)
"""


def test_a_model_folder_needs_nothing_of_ours(run, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 16), dtype=np.uint8)
    fmri = rng.normal(size=(3, 30)).astype(np.float32)
    np.savez(tmp_path / "data.npz", images=images, fmri=fmri)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", STRANGER + SCRIPT, run, tmp_path / "data.npz", tmp_path / "out.npz"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    model, processor = load_model(run)
    with np.load(tmp_path / "out.npz") as theirs:
        ours = model.predict_fmri(**processor(images=list(images), subject="subj02"))
        np.testing.assert_allclose(theirs["predicted"], ours, atol=1e-6, rtol=0)
        ours = model.reconstruct_image(**processor(fmri=fmri, subject="subj02"))
        np.testing.assert_allclose(theirs["reconstruction"], ours, atol=1e-6, rtol=0)
        with torch.no_grad():
            ours = model(**processor(images=list(images), fmri=fmri, subject="subj02")).loss
        np.testing.assert_allclose(theirs["loss"], ours, atol=1e-6, rtol=0)


REMOTE = sorted(path for path in (ROOT / "modeling").glob("*.py") if path.name != "__init__.py")


def test_exactly_the_files_of_modeling_travel(run):
    assert sorted(path.name for path in run.glob("*.py")) == [path.name for path in REMOTE]
    for path in REMOTE:
        assert (run / path.name).read_bytes() == path.read_bytes()


def test_the_card_tells_what_was_trained(run):
    card = (run / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: transformers" in card
    for told in (
        "2 subjects",
        "16 x 16 px",
        "| subj01 | 30 voxels |",
        "36 distinct stimuli in 72 trials",
        "20 steps",
        "| vit, trained from scratch |",
    ):
        assert told in card
    assert "{{" not in card and "{%" not in card
