"""A synthetic visual cortex whose noise ceiling is known: handwritten digits seen through noisy Gabor-energy voxels.

A voxel v pools a small population of complex cells that share its receptive field (a Gaussian in the visual field)
and differ in preferred orientation. With g_k the quadrature pair of Gabor filters of cell k,

    signal_v(image) = sum_k w_vk sqrt(<g_k_even, image>^2 + <g_k_odd, image>^2)

standardised over the stimuli; and a trial adds Gaussian noise so that the signal holds the share `noise_ceiling` of the
variance of one trial. Energy model after Adelson & Bergen 1985, as used for voxels by Kay et al. 2008.

`visionflow_hf.corpus.photographs` has the cortex that sees photographs in place of digits.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

from visionflow_hf.corpus.schema import MARKER, join_tables, voxel_table, write_corpus
from visionflow_hf.corpus.splits import split_stimuli
from visionflow_hf.errors import UserError
from visionflow_hf.folders import refuse_existing

UNIT = "simulated response, 1 = one standard deviation of the noise-free signal over the stimuli"
ROI_SIZES = {"V1": 0.08, "V2": 0.11, "V3": 0.15}  # receptive-field size (sigma) as a share of the image's width
CEILING_RANGE = (0.05, 0.5)  # single-trial share of signal variance; NSD's visual voxels lie in this range
CELLS_PER_VOXEL = 3


@dataclass
class Population:
    """The voxels of one subject.

    Attributes:
        signal: noise-free responses, array of shape (stimuli, voxels), standardised over the stimuli.
        roi: the name of the area that each voxel lies in, array of shape (voxels,).
        noise_ceiling: share of the variance of one trial that the signal has, array of shape (voxels,).
    """

    signal: np.ndarray
    roi: np.ndarray
    noise_ceiling: np.ndarray


def simulate(
    out: str | os.PathLike,
    stimuli: int | None = None,
    subjects: int = 2,
    voxels: int = 400,
    image_size: int | None = None,
    repeats: int = 1,
    test_repeats: int = 3,
    test_fraction: float = 0.1,
    seed: int = 0,
    overwrite: bool = False,
    images: str | os.PathLike | None = None,
    network: str | None = None,
) -> None:
    """Write a simulated corpus to `out`; every subject sees every stimulus.

    Args:
        stimuli: distinct images, train and test together; None for 600 digits, or for all pictures of `images`.
        voxels: voxels of each subject.
        image_size: height and width of a stimulus in px; None for 32, or for 64 with `images`.
        repeats, test_repeats: trials of each train and each test stimulus.
        images: folder of photographs, in place of the digits.
        network: the vision network that stands for V4 and IT of the subjects who see them, a folder or a name on the
            Hub.

    Raises:
        UserError: a number is too small, only one of `images` and `network` is given, or one of them cannot be used.
    """
    if (images is None) != (network is None):
        given, lacking = ("--images", "--network") if network is None else ("--network", "--images")
        raise UserError(
            f"{given} needs {lacking}: responses to photographs are simulated from the layers of a network, so give "
            "both or neither"
        )
    default_size = 32 if images is None else 64
    image_size = default_size if image_size is None else image_size
    for name, value, least in (
        ("stimuli", stimuli, 2),
        ("subjects", subjects, 1),
        ("voxels", voxels, 1),
        ("image size", image_size, 8),
        ("repeats", repeats, 1),
        ("test repeats", test_repeats, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}: at least {least} is needed")
    refuse_existing(out, overwrite, MARKER)
    rng = np.random.default_rng(seed)
    if images is None:
        digits = digit_images(600 if stimuli is None else stimuli, image_size, rng)
        ids, pictures = [f"digit-{index:05d}" for index in range(len(digits))], [Image.fromarray(one) for one in digits]
        test, unit = split_stimuli(ids, test_fraction, seed), UNIT
        populations = [early_cortex(digits, voxels, rng) for _ in range(subjects)]
    else:
        from visionflow_hf.corpus.photographs import Network, Photographs, ventral_cortices  # they wait for torch

        pictures = Photographs(images, stimuli, image_size, rng)
        ids = pictures.ids
        test = split_stimuli(ids, test_fraction, seed)
        seen_by = Network(network, image_size)
        unit = f"{UNIT}; V4 and IT are layers of {seen_by.name}"
        populations = ventral_cortices(pictures, seen_by, subjects, voxels, rng)
    names = [f"subj{index + 1:02d}" for index in range(subjects)]

    def rows(split: str) -> Iterator[dict]:
        noise = np.random.default_rng([seed, split == "test"])
        for subject, one in zip(names, populations, strict=True):
            noise_std = np.sqrt((1 - one.noise_ceiling) / one.noise_ceiling)
            for index, stimulus_id in enumerate(ids):
                if (stimulus_id in test) != (split == "test"):
                    continue
                picture = pictures[index]
                for repeat in range(test_repeats if split == "test" else repeats):
                    fmri = one.signal[index] + noise_std * noise.standard_normal(voxels)
                    yield {
                        "image": picture,
                        "fmri": fmri.astype(np.float32),
                        "subject": subject,
                        "stimulus_id": stimulus_id,
                        "repeat": repeat,
                    }

    tables = [
        voxel_table(subject, voxels, roi=[[name] for name in one.roi], noise_ceiling=one.noise_ceiling)
        for subject, one in zip(names, populations, strict=True)
    ]
    write_corpus(
        out,
        {split: lambda split=split: rows(split) for split in ("train", "test")},
        join_tables(tables),
        unit=unit,
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


def early_cortex(images: np.ndarray, voxels: int, rng: np.random.Generator) -> Population:
    """Draw voxels of V1, V2 and V3, and show them the images, uint8 array of shape (images, side, side)."""
    roi, x, y, sigma = receptive_fields(ROI_SIZES, voxels, rng)
    signal = standardised(gabor_energies(images, x, y, sigma, rng))
    return Population(signal, roi, rng.uniform(*CEILING_RANGE, voxels))


def receptive_fields(
    sizes: dict[str, float], voxels: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw the area of each voxel, a key of `sizes`, and its receptive field: centre x, centre y (upwards) and sigma.

    All are shares of the image's width, from its centre; each array has the shape (voxels,).
    """
    roi = rng.choice(list(sizes), voxels)
    sigma = np.array([sizes[name] for name in roi]) * rng.uniform(0.75, 1.25, voxels)
    x, y = rng.uniform(-0.35, 0.35, (2, voxels))
    return roi, x, y, sigma


def gabor_energies(
    images: np.ndarray, x: np.ndarray, y: np.ndarray, sigma: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw the cells of voxels with these receptive fields, and show them the images.

    Args:
        images: uint8 array of shape (images, side, side).

    Returns:
        Responses, array of shape (images, voxels).
    """
    size = images.shape[1]
    down, right = np.mgrid[:size, :size] / (size - 1) - 0.5
    pixels = images.reshape(len(images), -1) / 255.0
    responses = np.empty((len(images), len(x)))
    for voxel in range(len(x)):
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
        responses[:, voxel] = response
    return responses


def standardised(signal: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 over the images, the first axis; a constant voxel becomes 0."""
    std = signal.std(0)
    return (signal - signal.mean(0)) / np.where(std > 0, std, 1)
