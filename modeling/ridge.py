# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Ridge regression on torch tensors, on the device and in the dtype of its inputs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers.utils import logging

PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(-10, 5))  # 1e-5 to 100
FOLDS = 5
MOST_JUDGED = 2000  # targets by which the penalty is chosen
MOST_DECIDING = 3000  # samples by which it is chosen, and eigenvectors that are found
LEAST_FREE = 0.01  # 1 - trace(H) / n of a ridge whose errors are judged; below it they are rounding
BLOCK = 2000  # targets that are worked on at once, which bounds the memory
MOST_NUMBERS = 2**25  # of the groups that are held out at once, 128 MiB in float32

# Of the ridges from small groups of features in `likely_mean`:
GROUP_PENALTIES = (0.03, 0.3, 3.0, 30.0)  # times the mean variance of a feature and the number of samples
LEAST_LIKELIHOOD = 0.02  # against the best
LEAST_VARIANCE = 1e-6  # of a feature; what varies less is the blank border of images


@dataclass
class Ridge:
    """targets ~ features weights + intercept.

    Attributes:
        weights (`torch.Tensor` of shape `(features, targets)`)
        intercept (`torch.Tensor` of shape `(targets,)`)
        penalty (`float`): in units of the squared features.
        held_out_error (`torch.Tensor` of shape `(targets,)`, *optional*):
            Mean squared error on held-out groups, of the targets by which the penalty was chosen.
    """

    weights: torch.Tensor
    intercept: torch.Tensor
    penalty: float
    held_out_error: torch.Tensor | None = None

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """`(samples, features)` to `(samples, targets)`."""
        return features @ self.weights + self.intercept


def fit_ridge(features: torch.Tensor, targets: torch.Tensor, groups: Sequence) -> Ridge:
    """weights = argmin |targets - features weights - intercept|^2 + penalty |weights|^2, one penalty for all targets.

    The penalty is that of `PENALTIES`, times the mean squared norm of a centred row of features, with the least
    squared error on groups that are held out one by one; of more than 2,000 targets, an even choice of 2,000 decides.
    Solved by an eigendecomposition of the features' or, where there are more features than samples, of the samples'
    products; of more than 3,000 samples and features as in `fit_large_ridges`.

    Args:
        features (`torch.Tensor` of shape `(samples, features)`)
        targets (`torch.Tensor` of shape `(samples, targets)`)
        groups: the stimulus of each sample; its repeats are held out together.

    Raises:
        ValueError: fewer than two groups, of which none can be held out.
    """
    return fit_ridges(features, [targets], groups)[0]


def fit_ridges(features: torch.Tensor, targets: Sequence[torch.Tensor], groups: Sequence) -> list[Ridge]:
    """`fit_ridge` of several sets of targets, each with its own penalty; eigenvectors are found once for all."""
    if min(features.shape) > MOST_DECIDING:
        return fit_large_ridges(features, targets, groups)
    ridges, eigen, scores = [], None, None
    for own in targets:
        path = RidgePath(features, own, eigen)
        eigen = path.eigen
        scores = path.scores(features) if scores is None else scores
        penalty, error = choose_penalty(scores, path.values, own[:, :: evenly(own.shape[1])], groups)
        ridge = path.solve(penalty)
        ridge.held_out_error = error
        ridges.append(ridge)
    return ridges


def fit_large_ridges(features: torch.Tensor, targets: Sequence[torch.Tensor], groups: Sequence) -> list[Ridge]:
    """`fit_ridges` where features and samples are more than 3,000: eigenvectors of all would take most of a training.

    The penalty is chosen on 3,000 samples at most, see `deciding`. Then

        weights = X' (X X' + penalty)^-1 Y  =  (X'X + penalty)^-1 X' Y

    by the Cholesky factor of the smaller matrix, and errors on held-out groups as in `held_out_errors`, with

        H = 1/n + 1 - penalty (X X' + penalty)^-1  =  1/n + X (X'X + penalty)^-1 X'
    """
    some, members = deciding(groups), alike_groups(groups)
    path = RidgePath(features[some], features[some, :0])
    scores, values, names = path.scores(features[some]), path.values, [groups[row] for row in some]
    del path
    centre = features.mean(0)
    features = features - centre
    wide, ridges = features.shape[1] > len(features), []
    rows = features if wide else features.T
    products = features.new_zeros(len(rows), len(rows))
    add_products(products, rows)
    for own in targets:
        step, level = evenly(own.shape[1]), own.mean(0)
        penalty, _ = choose_penalty(scores, values, own[some, ::step], names)
        penalty, factor = cholesky(products, penalty)
        inverse, centred = torch.cholesky_inverse(factor).to(own.device), own - level
        del factor
        weights = features.T @ (inverse @ centred) if wide else inverse @ (features.T @ centred)
        missed = centred[:, ::step] - features @ weights[:, ::step]
        errors = missed.new_zeros(missed.shape[1])
        for alike in members:
            size = alike.shape[1]
            for one in alike.to(own.device).split(max(1, MOST_NUMBERS // (size * features.shape[1]))):
                if wide:
                    free = penalty * inverse[one[:, :, None], one[:, None]]
                else:
                    free = torch.eye(size, device=own.device, dtype=own.dtype)
                    free = free - features[one] @ inverse @ features[one].mT
                held_out, _ = torch.linalg.solve_ex(free - 1 / len(own), missed[one])
                errors += held_out.square().sum((0, 1))
        ridges.append(Ridge(weights, level - centre @ weights, penalty, errors / len(own)))
    return ridges


def deciding(groups: Sequence) -> list[int]:
    """The samples of an even choice of groups, about 3,000 at most, by which a penalty is chosen.

    It does not grow with the number of samples: it is the variance of the noise over that of the weights.
    """
    distinct = list(dict.fromkeys(groups))
    step = min(-(-len(groups) // MOST_DECIDING), len(distinct) // 2)  # two are left at least
    kept = set(distinct[:: max(1, step)])
    return [row for row, group in enumerate(groups) if group in kept]


def add_products(products: torch.Tensor, rows: torch.Tensor) -> None:
    """products += rows rows', above the diagonal copied from below, which saves three eighths of the work."""
    step = -(-len(rows) // 4)
    for start in range(0, len(rows), step):
        own = slice(start, start + step)
        products[own, : own.stop].addmm_(rows[own], rows[: own.stop].T)
        products[:start, own] = products[own, :start].T


def cholesky(products: torch.Tensor, penalty: float) -> tuple[float, torch.Tensor]:
    """The penalty, and the factor of products + penalty. A penalty that is lost in rounding is raised until it is not.

    The factor is on the CPU for MPS, which lacks what is done with it.

    Args:
        products (`torch.Tensor` of shape `(size, size)`): symmetric.
    """
    products = products.cpu() if products.device.type == "mps" else products
    diagonal = products.diagonal().clone()
    while True:
        products.diagonal().copy_(diagonal + penalty)
        factor, failed = torch.linalg.cholesky_ex(products)
        if not failed or penalty > torch.finfo(products.dtype).max:
            products.diagonal().copy_(diagonal)
            return penalty, factor
        penalty *= 10**0.5


def choose_penalty(
    scores: torch.Tensor, values: torch.Tensor, targets: torch.Tensor, groups: Sequence
) -> tuple[float, torch.Tensor]:
    """The penalty of `fit_ridge`, and its mean squared error on held-out groups for each target.

    Args:
        scores, values: as in `held_out_errors`.
        targets (`torch.Tensor` of shape `(samples, targets)`): that decide.
    """
    penalties = penalties_of(values, len(scores))
    penalties = penalties[free_share(values, penalties, len(scores)) >= LEAST_FREE]
    errors = targets.new_zeros(len(penalties), targets.shape[1])
    for _, missed in held_out_errors(scores, values, targets, groups, penalties):
        errors += missed.square().sum((1, 2))
    best = int(errors.sum(1).nan_to_num(torch.inf).argmin())
    return float(penalties[best]), errors[best] / len(scores)


def squared_norm(values: torch.Tensor, samples: int) -> float:
    """Mean squared norm of a centred row of features, from the eigenvalues of their products."""
    return max(float(values.sum()) / samples, 1e-12)


def penalties_of(values: torch.Tensor, samples: int) -> torch.Tensor:
    """PENALTIES in units of the squared features, `(penalties,)`."""
    return values.new_tensor(PENALTIES) * squared_norm(values, samples)


def free_share(values: torch.Tensor, penalties: torch.Tensor, samples: int) -> torch.Tensor:
    """1 - trace(H) / n of the ridge of each penalty: what it does not fit of the n samples, `(..., penalties)`."""
    fitted = (values[..., None, :] / (values[..., None, :] + penalties[..., None])).sum(-1)
    return 1 - (1 + fitted) / samples  # 1 is the intercept's


def held_out_errors(
    scores: torch.Tensor, values: torch.Tensor, targets: torch.Tensor, groups: Sequence, penalties: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """targets of a group - what a ridge predicts of it that is fitted to all other groups, without fitting it.

        errors_g = (I - H_gg)^-1 (Y - H Y)_g        H = 1/n + T (T'T + penalty)^-1 T'

    Args:
        scores (`torch.Tensor` of shape `(samples, components)`): T, the centred features times their eigenvectors.
        values (`torch.Tensor` of shape `(components,)`): the diagonal of T'T.
        targets (`torch.Tensor` of shape `(samples, targets)`)
        groups: of each sample.
        penalties (`torch.Tensor` of shape `(penalties,)`)

    Yields:
        The samples of some groups of one size, `(groups, size)`, and their errors `(penalties, groups, size, targets)`:
        not finite where a group has a direction to itself, and the penalty is so small that rounding makes I - H_gg
        singular.

    Raises:
        ValueError: fewer than two groups.

    Source: Cook & Weisberg 1982, Residuals and Influence in Regression, section 3.7, for the ordinary regression.
    """
    targets = targets - targets.mean(0)
    along = scores.T @ targets
    for samples in alike_groups(groups):
        at_once = max(1, MOST_NUMBERS // (samples.shape[1] * (len(values) + len(penalties) * targets.shape[1])))
        for some in samples.to(scores.device).split(at_once):
            own, left, size = scores[some], targets[some], some.shape[1]
            errors = targets.new_empty(len(penalties), *left.shape)
            for number, penalty in enumerate(penalties):
                shrunk = own / (values + penalty)
                free = torch.eye(size, device=own.device, dtype=own.dtype) - 1 / len(scores) - shrunk @ own.mT
                errors[number], _ = torch.linalg.solve_ex(free, left - shrunk @ along)
            yield some, errors


def evenly(targets: int) -> int:
    """The step of an even choice of at most 2,000 of so many targets."""
    return max(1, -(-targets // MOST_JUDGED))


def held_out_predictions(
    penalty: float,
    features: torch.Tensor,
    targets: torch.Tensor,
    groups: Sequence,
    eigen: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """`(samples, targets)`: what ridges of one penalty predict of each group that they are fitted without.

    Args:
        eigen: as in `RidgePath`.
    """
    path, predicted = RidgePath(features, targets[:, :0], eigen), torch.empty_like(targets)
    scores, penalties = path.scores(features), targets.new_tensor([penalty])
    for start in range(0, targets.shape[1], BLOCK):
        own = slice(start, start + BLOCK)
        for rows, missed in held_out_errors(scores, path.values, targets[:, own], groups, penalties):
            predicted[rows, own] = targets[rows, own] - missed[0]
    return predicted


class RidgePath:
    """The ridges of all penalties from one eigendecomposition.

    With eigenvectors U and eigenvalues s of the centred features' products X'X, weights = U (U' X'Y) / (s + penalty);
    with those of X X', where it is the smaller matrix, weights = X' U (U' Y) / (s + penalty).

    Args:
        features (`torch.Tensor` of shape `(..., samples, features)`): leading dimensions are as many regressions.
        targets (`torch.Tensor` of shape `(samples, targets)`)
        eigen: eigenvalues and eigenvectors, as another path of the same features has them.
    """

    def __init__(
        self, features: torch.Tensor, targets: torch.Tensor, eigen: tuple[torch.Tensor, torch.Tensor] | None = None
    ):
        self.centre, self.level = features.mean(-2, keepdim=True), targets.mean(0)
        centred, targets = features - self.centre, targets - self.level
        wide = features.shape[-1] > features.shape[-2]
        self.eigen = eigh(centred @ centred.mT if wide else centred.mT @ centred) if eigen is None else eigen
        values, self.vectors = self.eigen
        self.values = values.clamp(min=0)
        self.along = self.vectors.mT @ (targets if wide else centred.mT @ targets)
        self.rows = centred if wide else None  # of which the weights are sums
        self.scale = self.values if wide else torch.ones_like(self.values)  # times along^2: the squares of X'Y
        self.variance = targets.square().mean(0)
        self.samples = len(targets)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Those of the samples that it was made of, `(samples, components)`: centred features times eigenvectors."""
        return (features - self.centre) @ self.vectors if self.rows is None else self.vectors * self.values.sqrt()

    def solve(self, penalty: float) -> Ridge:
        """The ridge of one penalty."""
        weights = self._weights(self.along / self._shrunk(penalty)[..., None])
        return Ridge(weights, self.level - (self.centre @ weights).squeeze(-2), penalty)

    def cross_validated(self, penalties: list[torch.Tensor]) -> torch.Tensor:
        """For each penalty the squared error on held-out samples by generalised cross-validation.

            (1 / n) |Y - H Y|^2 / (1 - trace(H) / n)^2        H Y being the ridge's predictions of its own n samples

        Returns:
            `(..., penalties, targets)`

        Source: Golub, Heath & Wahba 1979, Generalized cross-validation as a method for choosing a good ridge parameter.
        """
        shrunk = self.values[..., None, :] + torch.stack(penalties, dim=-1)[..., None]  # (..., penalties, features)
        explained = self.scale[..., None, :] * (2 - self.values[..., None, :] / shrunk) / shrunk
        missed = self.variance - explained @ self.along.square() / self.samples
        free = free_share(self.values, torch.stack(penalties, dim=-1), self.samples)
        return missed.clamp(min=0) / free[..., None].square()

    def best_penalty(self) -> float:
        """That of `PENALTIES`, times the mean squared norm of a centred row of features, with the least error by
        `cross_validated`, summed over the targets.

        Only for samples without repeats, where it is `choose_penalty` at less cost.
        """
        penalties = penalties_of(self.values, self.samples)
        errors = self.cross_validated(list(penalties)).sum(-1)
        errors[free_share(self.values, penalties, self.samples) < LEAST_FREE] = torch.inf
        return float(penalties[int(errors.argmin())])

    def mean(self, penalties: list[torch.Tensor], shares: torch.Tensor) -> Ridge:
        """The sum of the ridges of some penalties, times the shares `(..., penalties, targets)` of these."""
        shrunk = self.values[..., None] + torch.stack(penalties, dim=-1)[..., None, :]  # (..., features, penalties)
        weights = self._weights(self.along * (1 / shrunk @ shares))
        return Ridge(weights, shares.sum(-2) * self.level - (self.centre @ weights).squeeze(-2), 0.0)

    def _weights(self, along: torch.Tensor) -> torch.Tensor:
        """Of the features, from those of the eigenvectors."""
        weights = self.vectors @ along
        return weights if self.rows is None else self.rows.mT @ weights

    def _shrunk(self, penalty: float | torch.Tensor) -> torch.Tensor:
        if isinstance(penalty, torch.Tensor):
            penalty = penalty[..., None]
        return self.values + penalty


class Groups:
    """Small groups of features, made whenever they are needed; their eigenvectors are kept for all targets.

    Args:
        make: gives the features, `(groups, samples, features)`.
    """

    def __init__(self, make: Callable[[], torch.Tensor]):
        self.make, self.eigen, self.penalties = make, None, None

    def path(self, targets: torch.Tensor) -> RidgePath:
        """The ridges of each group to targets `(samples, targets)`."""
        features = self.make()
        if self.penalties is None:
            self.penalties = group_penalties(features)
        path = RidgePath(features, targets, self.eigen)
        self.eigen = path.eigen
        return path


def likely_mean(candidates: list[Groups], targets: torch.Tensor) -> Iterator[Ridge | None]:
    """For each target the mean of ridges from many small groups of features, weighted by their likelihood.

        share_k ~ exp(-(n / 2) (error_k - least error) / least error)

    over groups and penalties, with the cross-validated error of n samples.

    Args:
        targets (`torch.Tensor` of shape `(samples, targets)`)

    Yields:
        For each candidate the ridges of its groups, times their shares: weights `(groups, features, targets)`; None
        where all shares are 0.
    """
    bar = logging.tqdm(candidates, desc="candidate features", unit="part", leave=False, disable=None)
    paths = [candidate.path(targets) for candidate in bar]
    errors = [path.cross_validated(one.penalties) for path, one in zip(paths, candidates, strict=True)]
    share = likelihoods(torch.cat(errors), len(targets))
    for candidate, own in zip(candidates, share.split([len(one) for one in errors]), strict=True):
        path = paths.pop(0)  # whose memory is free afterwards
        yield path.mean(candidate.penalties, own) if own.any() else None


def group_penalties(features: torch.Tensor) -> list[torch.Tensor]:
    """Each of GROUP_PENALTIES in units of the features of each group, `(groups,)`."""
    scale = features.var(1, correction=0).mean(1).clamp(min=LEAST_VARIANCE) * features.shape[1]
    return [penalty * scale for penalty in GROUP_PENALTIES]


def likelihoods(errors: torch.Tensor, samples: int) -> torch.Tensor:
    """Normalised for each target, of groups with squared errors `(groups, penalties, targets)`."""
    least = errors.amin((0, 1))
    likelihood = torch.exp(-samples / 2 * (errors - least) / least.clamp(min=1e-12))
    likelihood[likelihood < LEAST_LIKELIHOOD] = 0
    return likelihood / likelihood.sum((0, 1))


def eigh(products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues and eigenvectors of symmetric matrices, scaled by a power of two: LAPACK makes NaN of tiny ones.

    In float64 where float32 fails, as it does for many rows of zeros. On the CPU for MPS, which does not compute them.
    """
    found = products.cpu() if products.device.type == "mps" else products
    total = found.abs().sum((-2, -1), keepdim=True)
    size = torch.where(total > 0, total, 1).log2().round().exp2()
    try:
        values, vectors = torch.linalg.eigh(found / size)
        failed = not (values.isfinite().all() and vectors.isfinite().all())
    except torch.linalg.LinAlgError:
        failed = True
    if failed:
        values, vectors = (part.to(found.dtype) for part in torch.linalg.eigh((found / size).double()))
    return (values * size.squeeze(-1)).to(products.device), vectors.to(products.device)


def stack(predictions: list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """t = argmin |targets - sum_k t_k predictions_k|^2 + s^2 |t - 1/K|^2 with every t_k >= 0, `(K,)`.

    s^2 is the mean square of the targets: the last term weighs as much as one of them, so that predictions that are
    next to zero get no huge weights.

    Args:
        predictions: of held-out stimuli by each model, tensors of the shape of `targets`, without their mean.
    """
    columns = torch.stack([one.flatten() for one in predictions], dim=1).cpu().double()  # MPS has no float64
    targets, models = targets.flatten().cpu().double(), len(predictions)
    square = targets.square().mean()
    products = columns.T @ columns + square * torch.eye(models, dtype=torch.float64)
    return nnls(products, columns.T @ targets + square / models).float()


def nnls(products: torch.Tensor, with_targets: torch.Tensor) -> torch.Tensor:
    """t = argmin |y - X t|^2 with every t_k >= 0, from X'X `(columns, columns)` and X'y `(columns,)`.

    Source: Lawson & Hanson 1974, Solving Least Squares Problems, chapter 23.
    """
    t, free = torch.zeros_like(with_targets), torch.zeros_like(with_targets, dtype=torch.bool)
    least = 1e-10 * float(with_targets.abs().max())
    for _ in range(10 * len(t)):
        slope = (with_targets - products @ t).masked_fill(free, -torch.inf)
        if float(slope.max()) <= least:
            break
        free[slope.argmax()] = True
        while True:
            best = torch.zeros_like(t)
            best[free] = torch.linalg.lstsq(products[free][:, free], with_targets[free, None]).solution[:, 0]
            beyond = free & (best <= 0)
            if not beyond.any():
                break
            steps = t[beyond] / (t[beyond] - best[beyond]).clamp(min=1e-300)  # 0 / 0 where both are 0
            t = t + steps.min() * (best - t)  # as far as all are positive
            free &= t > 1e-12 * t.max()
            t[~free] = 0
        t = best
    return t


def alike_groups(groups: Sequence) -> list[torch.Tensor]:
    """The samples of the groups of each size, `(groups, size)`."""
    members: dict = {}
    for sample, group in enumerate(groups):
        members.setdefault(group, []).append(sample)
    if len(members) < 2:
        raise ValueError(f"{len(members)} distinct stimulus: at least 2 are needed to hold some out")
    sizes: dict[int, list] = {}
    for own in members.values():
        sizes.setdefault(len(own), []).append(own)
    return [torch.tensor(alike) for alike in sizes.values()]


def group_folds(groups: Sequence, folds: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Train and held-out rows of each fold, groups dealt out at random; fewer folds where there are fewer groups."""
    places: dict = {}
    rows = torch.tensor([places.setdefault(group, len(places)) for group in groups])
    if len(places) < 2:
        raise ValueError(f"{len(places)} distinct stimulus: at least 2 are needed to hold some out")
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    fold_of_group = torch.empty(len(places), dtype=torch.long)
    fold_of_group[order] = torch.arange(len(places)) % min(folds, len(places))
    fold = fold_of_group[rows]
    return [
        (torch.nonzero(fold != n).squeeze(1), torch.nonzero(fold == n).squeeze(1)) for n in range(int(fold.max()) + 1)
    ]
