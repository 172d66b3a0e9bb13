"""Baselines: ridge regression between voxels and pixels, from an encoder's layer to voxels, and the nearest stimulus.

They are fitted for one subject on the trials of train, at the model's image size, and predict the rows that they are
asked for. Their fMRI is in the unit of the corpus. Memory holds the responses, two tables of `(samples, samples)`,
and blocks of pixels, of the encoder's features and of predictions.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from visionflow_hf.corpus.responses import Responses
from visionflow_hf.metrics import cross_correlation
from visionflow_hf.modeling import VisionFlowProcessor
from visionflow_hf.modeling.ridge import RidgePath, add_products, cholesky, choose_penalty, deciding, eigh, evenly
from visionflow_hf.stimuli import Stimuli

LEAST_SCALE = 1e-4  # of a feature
NUMBERS = 2**24  # of a block, 64 MiB in float32
ROWS = 1000  # that are predicted or compared at once

Blocks = Iterator[tuple[torch.Tensor, torch.Tensor]]  # columns of the features: of train, and of what is asked for


class SharesRidge:
    """predicted = shares targets        shares = 1/n + A X' (X X' + penalty)^-1

    X being the features of the n train samples `(samples, features)` and A those of the asked samples, both centred by
    train. It is ridge regression with one penalty for all targets, so that each prediction is a weighted mean of the
    train targets: neither features, nor weights, nor targets need to lie in memory as a whole. Where there are fewer
    features than samples, A X' (X X' + penalty)^-1 is computed as A (X'X + penalty)^-1 X'.

    Args:
        blocks: columns of the features, of train `(samples, some)` and of the asked samples `(asked, some)`.
        width: how many columns there are in all.
        stimulus_ids: the stimulus of each train sample; its repeats are held out together.
        judged: gives some targets `(rows, targets)` of these rows of train, by which the penalty is chosen as in
            `fit_ridge`; of many samples those of `deciding`.

    Attributes:
        shares (`torch.Tensor` of shape `(asked, samples)`)
        error (`float`): mean squared error on held-out stimuli of train.
    """

    def __init__(
        self,
        blocks: Blocks,
        width: int,
        stimulus_ids: Sequence[str],
        judged: Callable[[Sequence[int]], torch.Tensor],
    ):
        rows = deciding(stimulus_ids)
        if width <= len(stimulus_ids):
            train, asked = (torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True))
            train, asked = train - train.mean(0), asked - train.mean(0)
            products = train.T @ train
            path = RidgePath(train[rows], train[rows, :0])
            scores, values = path.scores(train[rows]), path.values
            del path
        else:
            train, products, asked = None, *products_of(blocks, len(stimulus_ids))
            scores, values = scores_of_products(products[rows][:, rows])
        self.penalty, errors = choose_penalty(scores, values, judged(rows), [stimulus_ids[row] for row in rows])
        self.error = float(errors.mean())
        del scores, values
        self.penalty, factor = cholesky(products, self.penalty)
        shares = torch.cholesky_solve(asked.T.to(factor.device), factor).T.to(asked.device)
        self.shares = (shares if train is None else shares @ train.T) + 1 / len(stimulus_ids)


def products_of(blocks: Blocks, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """X X' `(samples, samples)` and A X' `(asked, samples)`, centred by train."""
    products = across = None
    for train, asked in blocks:
        centre = train.mean(0)
        train, asked = train - centre, asked - centre
        if products is None:
            products, across = train.new_zeros(samples, samples), train.new_zeros(len(asked), samples)
        add_products(products, train)
        across.addmm_(asked, train.T)
    return products, across


def scores_of_products(products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Principal component scores T of samples `(samples, components)`, and the diagonal of T'T, from their X X'."""
    products = products - products.mean(0)
    products -= products.mean(1, keepdim=True)
    values, vectors = eigh(products)
    first = int((values <= torch.finfo(values.dtype).eps * values[-1]).sum())  # below are rounding errors
    values, vectors = values[first:], vectors[:, first:]
    return vectors * values.sqrt(), values


class Known:
    """What the baselines of one subject are fitted on: its train trials, and the pixels and features of their stimuli.

    Args:
        seen: the responses of train.
        stimuli: pixels and features of the stimuli of train and of what is asked for.
        device: where to fit and predict.
    """

    def __init__(
        self,
        seen: Responses,
        stimuli: Stimuli,
        processor: VisionFlowProcessor,
        subject: str,
        device: torch.device | str = "cpu",
    ):
        self.seen, self.stimuli, self.device = seen, stimuli, device
        self.mean, self.std = processor.fmri_mean[subject], processor.fmri_std[subject]

    def standardised(self, fmri: np.ndarray, voxels: slice = slice(None)) -> np.ndarray:
        return ((fmri[:, voxels] - self.mean[voxels]) / self.std[voxels]).astype(np.float32)

    def fmri(self, fmri: np.ndarray, voxels: slice = slice(None)) -> torch.Tensor:
        """Standardised responses, `(rows, voxels)`."""
        return torch.from_numpy(self.standardised(fmri, voxels)).to(self.device)

    def average_repeats(self) -> None:
        """From now on `seen` has one row a stimulus."""
        self.seen, _ = self.seen.averaged()

    def judged(self, rows: Sequence[int]) -> torch.Tensor:
        """The standardised responses of some trials by which a penalty is chosen, `(rows, some voxels)`."""
        return self.fmri(self.seen.fmri[rows], slice(None, None, evenly(len(self.mean))))

    def pixels(self, stimulus_ids: Sequence[str], lines: slice = slice(None)) -> torch.Tensor:
        """`(stimuli, pixels)` of some lines of the images, on a 0..1 scale."""
        values = self.stimuli.uint8_pixels(stimulus_ids, lines)
        return torch.from_numpy(values.reshape(len(values), -1)).to(self.device).float() / 255

    def predict_fmri(self, ridge: SharesRidge) -> np.ndarray:
        """Responses (asked, voxels) by a ridge whose samples are the trials."""
        predicted = np.empty((len(ridge.shares), len(self.mean)), dtype=np.float32)
        for voxels in slices(len(self.mean), NUMBERS // len(self.seen.fmri)):
            values = (ridge.shares @ self.fmri(self.seen.fmri, voxels)).cpu().numpy()
            predicted[:, voxels] = values * self.std[voxels] + self.mean[voxels]
        return predicted


def ridge_to_pixels(known: Known, measured: Sequence[np.ndarray]) -> Iterator[Iterator[np.ndarray]]:
    """Reconstructions of each array of responses (rows, voxels), in batches (some, height, width, channels), uint8."""
    seen = known.seen

    def blocks() -> Blocks:
        for voxels in slices(seen.fmri.shape[1], NUMBERS // len(seen.fmri)):
            asked = torch.cat([known.fmri(fmri, voxels) for fmri in measured])
            yield known.fmri(seen.fmri, voxels), asked

    def judged(rows: Sequence[int]) -> torch.Tensor:
        names = [seen.stimulus_ids[row] for row in rows]
        step = evenly(int(np.prod(known.stimuli.pixels.shape)))
        return torch.cat([known.pixels(names[some])[:, ::step].clone() for some in slices(len(names), ROWS)])

    ridge = SharesRidge(blocks(), seen.fmri.shape[1], seen.stimulus_ids, judged)
    for shares in ridge.shares.split([len(fmri) for fmri in measured]):
        yield _reconstruct(known, shares)


def _reconstruct(known: Known, shares: torch.Tensor) -> Iterator[np.ndarray]:
    names, shape = known.seen.stimulus_ids, known.stimuli.pixels.shape
    for some in shares.split(ROWS):
        images = np.empty((len(some), *shape), dtype=np.uint8)
        for lines in slices(shape[0], NUMBERS // (len(names) * shape[1] * shape[2])):
            values = (some @ known.pixels(names, lines)).clamp(0, 1) * 255
            images[:, lines] = values.round().byte().cpu().numpy().reshape(images[:, lines].shape)
        yield images


def ridge_to_fmri(known: Known, stimulus_ids: Sequence[str]) -> np.ndarray:
    """Responses (stimuli, voxels) from the pixels of these stimuli."""
    seen, shape = known.seen, known.stimuli.pixels.shape

    def blocks() -> Blocks:
        for lines in slices(shape[0], NUMBERS // (len(seen.fmri) * shape[1] * shape[2])):
            yield known.pixels(seen.stimulus_ids, lines), known.pixels(stimulus_ids, lines)

    ridge = SharesRidge(blocks(), int(np.prod(shape)), seen.stimulus_ids, known.judged)
    return known.predict_fmri(ridge)


def feature_ridge_to_fmri(known: Known, stimulus_ids: Sequence[str], widths: Sequence[int]) -> np.ndarray:
    """Responses (stimuli, voxels) from the best single layer of the model's encoder, over 7 x 7 cells.

    Each feature is divided by its standard deviation. Layer and penalty are those with the least squared error on
    held-out stimuli of train.

    Args:
        widths: the number of features of each layer.
    """
    names, best, start = known.seen.stimulus_ids, None, 0
    for width in widths:

        def blocks(first: int = start, beyond: int = start + width) -> Blocks:
            for some in slices(beyond - first, NUMBERS // len(names)):
                columns = slice(first + some.start, first + some.stop)
                train, asked = (
                    known.stimuli.linear_features(which, columns).to(known.device) for which in (names, stimulus_ids)
                )
                scale = train.std(0, correction=0).clamp(min=LEAST_SCALE)
                yield train / scale, asked / scale

        ridge = SharesRidge(blocks(), width, names, known.judged)
        if best is None or ridge.error < best.error:
            best = ridge
        start += width
    return known.predict_fmri(best)


def nearest_stimuli(known: Known, fmri: np.ndarray) -> np.ndarray:
    """The place in train of the response with the highest Pearson r over voxels with each of `fmri`, (rows,)."""
    asked = known.standardised(fmri)
    parts = [
        cross_correlation(known.standardised(known.seen.fmri[rows]), asked)
        for rows in slices(len(known.seen.fmri), ROWS)
    ]
    return np.concatenate(parts).argmax(0)


def nearest_images(known: Known, stimulus_ids: Sequence[str]) -> np.ndarray:
    """The place in train of the image with the highest Pearson r over pixels with each of the stimuli, (stimuli,)."""
    names, asked = known.seen.stimulus_ids, known.stimuli.uint8_pixels(stimulus_ids)
    parts = [cross_correlation(known.stimuli.uint8_pixels(names[rows]), asked) for rows in slices(len(names), ROWS)]
    return np.concatenate(parts).argmax(0)


def mean_image(known: Known) -> np.ndarray:
    """The mean of the train stimuli, uint8 array of shape (height, width, channels)."""
    names = known.seen.stimulus_ids
    parts = (known.stimuli.uint8_pixels(names[rows]) for rows in slices(len(names), ROWS))
    sums = sum(part.sum(0, dtype=np.int64) for part in parts)
    return np.rint(sums / len(names)).astype(np.uint8)


def slices(length: int, step: int) -> Iterator[slice]:
    """The numbers below `length`, at most so many at a time and at least one."""
    step = max(step, 1)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
