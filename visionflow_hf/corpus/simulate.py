"""A synthetic visual cortex whose noise ceiling is known: handwritten digits seen through noisy Gabor-energy voxels.

A voxel v pools a small population of complex cells that share its receptive field (a Gaussian in the visual field)
and differ in preferred orientation. With g_k the quadrature pair of Gabor filters of cell k,

    signal_v(image) = sum_k w_vk sqrt(<g_k_even, image>^2 + <g_k_odd, image>^2)

standardised over the stimuli; and a trial adds Gaussian noise so that the signal holds the share `noise_ceiling` of the
variance of one trial. Energy model after Adelson & Bergen 1985, as used for voxels by Kay et al. 2008.
"""

import os
from collections.abc import Iterator

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

from visionflow_hf.corpus.schema import voxel_table, write_corpus
from visionflow_hf.corpus.splits import split_stimuli
from visionflow_hf.errors import UserError

UNIT = "simulated response, 1 = one standard deviation of the noise-free signal over the stimuli"
ROI_SIZES = {"V1": 0.08, "V2": 0.11, "V3": 0.15}  # receptive-field size (sigma) as a share of the image's width
CEILING_RANGE = (0.05, 0.5)  # single-trial share of signal variance; NSD's visual voxels lie in this range
CELLS_PER_VOXEL = 3


def simulate(
    out: str | os.PathLike,
    stimuli: int = 600,
    subjects: int = 2,
    voxels: int = 400,
    image_size: int = 32,
    repeats: int = 1,
    test_repeats: int = 3,
    test_fraction: float = 0.1,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a simulated corpus to `out`; every subject sees every stimulus.

    Args:
        stimuli: distinct images, train and test together.
        voxels: voxels of each subject.
        image_size: height and width of a stimulus in px.
        repeats, test_repeats: trials of each train and each test stimulus.
    """
    for name, value, least in (
        ("stimuli", stimuli, 2),
        ("subjects", subjects, 1),
        ("voxels", voxels, 1),
        ("image size", image_size, 8),
        ("repeats", repeats, 1),
        ("test repeats", test_repeats, 1),
    ):
        if value < least:
            raise UserError(f"{name} is {value}: at least {least} is needed")
    rng = np.random.default_rng(seed)
    images = digit_images(stimuli, image_size, rng)
    ids = [f"digit-{index:05d}" for index in range(stimuli)]
    test = split_stimuli(ids, test_fraction, seed)
    signal, noise_std, tables = {}, {}, []
    for index in range(subjects):
        subject = f"subj{index + 1:02d}"
        signal[subject], roi = cortex(images, voxels, rng)
        ceiling = rng.uniform(*CEILING_RANGE, voxels)
        noise_std[subject] = np.sqrt((1 - ceiling) / ceiling)
        tables.append(voxel_table(subject, voxels, roi=[[name] for name in roi], noise_ceiling=ceiling))

    def rows(split: str) -> Iterator[dict]:
        noise = np.random.default_rng([seed, split == "test"])
        for subject in signal:
            for index, stimulus_id in enumerate(ids):
                if (stimulus_id in test) != (split == "test"):
                    continue
                for repeat in range(test_repeats if split == "test" else repeats):
                    fmri = signal[subject][index] + noise_std[subject] * noise.standard_normal(voxels)
                    yield {
                        "image": Image.fromarray(images[index]),
                        "fmri": fmri.astype(np.float32),
                        "subject": subject,
                        "stimulus_id": stimulus_id,
                        "repeat": repeat,
                    }

    write_corpus(
        out,
        {split: lambda split=split: rows(split) for split in ("train", "test")},
        pd.concat(tables, ignore_index=True),
        unit=UNIT,
        overwrite=overwrite,
    )


def digit_images(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct handwritten digits, uint8 array of shape (count, size, size).

    scikit-learn holds 1,797 of them (UCI, 8 x 8 px); beyond that number they come again, rotated by up to 20 degrees.
    """
    digits = load_digits().images / 16
    order = rng.permutation(len(digits))
    images = np.empty((count, size, size), dtype=np.uint8)
    for index in range(count):
        digit = digits[order[index % len(digits)]]
        large = Image.fromarray((digit * 255).round().astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        images[index] = np.asarray(large)
        if index >= len(digits):
            images[index] = ndimage.rotate(images[index], rng.uniform(-20, 20), reshape=False, order=1)
    return images


def cortex(images: np.ndarray, voxels: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a population of voxels and show it the images.

    Returns:
        The noise-free responses, array of shape (images, voxels), standardised over the images, and the name of the
        area (a key of `ROI_SIZES`) that each voxel lies in.
    """
    size = images.shape[1]
    down, right = np.mgrid[:size, :size] / (size - 1) - 0.5
    pixels = images.reshape(len(images), -1) / 255.0
    roi = rng.choice(list(ROI_SIZES), voxels)
    sigma = np.array([ROI_SIZES[name] for name in roi]) * rng.uniform(0.75, 1.25, voxels)
    x, y = rng.uniform(-0.35, 0.35, (2, voxels))
    signal = np.empty((len(images), voxels))
    for voxel in range(voxels):
        field = np.exp(-((right - x[voxel]) ** 2 + (-down - y[voxel]) ** 2) / (2 * sigma[voxel] ** 2))
        field /= np.linalg.norm(field)
        response = np.zeros(len(images))
        for _ in range(CELLS_PER_VOXEL):
            angle, cycles = rng.uniform(0, np.pi), rng.uniform(0.25, 0.5) / sigma[voxel]
            phase = 2 * np.pi * cycles * ((right - x[voxel]) * np.cos(angle) + (-down - y[voxel]) * np.sin(angle))
            even = field * (np.cos(phase) - np.sum(field * np.cos(phase)) / field.sum())  # no response to a blank
            odd = field * np.sin(phase)
            energy = np.hypot(pixels @ even.ravel(), pixels @ odd.ravel())
            response += rng.uniform(0, 1) * energy
        signal[:, voxel] = response
    std = signal.std(0)
    return (signal - signal.mean(0)) / np.where(std > 0, std, 1), roi
