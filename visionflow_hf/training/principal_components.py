"""Principal components of predictions that come in blocks of voxels, and a linear map that gives their scores."""

import numpy as np


class PrincipalComponents:
    """The largest components of predictions that are linear in some features.

        predicted - mean  ~  scores readout        scores  =  (features - mean) head

    The predictions of a block are reduced to their `most` largest components, and these with what was kept so far to
    the `most` largest again. So neither the predictions nor their linear maps stand in memory for all voxels. Where the
    predictions of all voxels have no more components than `most`, nothing is lost.

    Source: Iwen & Ong 2016, A distributed and incremental SVD algorithm for agglomerative data analysis.

    Attributes:
        scores: float32 array of shape (samples, components), their variance that of the predictions.
        head: float32 array of shape (features, components).
        readouts: of each block, orthonormal over all of them, float32 array of shape (components, voxels).
    """

    def __init__(self, samples: int, features: int, most: int):
        self.most = most
        self.scores = np.zeros((samples, 0), dtype=np.float32)
        self.head = np.zeros((features, 0), dtype=np.float32)
        self.readouts: list[np.ndarray] = []

    def add(self, predicted: np.ndarray, linear: np.ndarray) -> None:
        """A further block.

        Args:
            predicted: (samples, voxels); its mean over the samples is left out.
            linear: (features, voxels), the map that predicts them.
        """
        scores, readout = self._largest(predicted - predicted.mean(0))
        kept = self.scores.shape[1]
        self.scores, turn = self._largest(np.concatenate([self.scores, scores], axis=1))
        self.head = self.head @ turn[:, :kept].T + linear @ (turn[:, kept:] @ readout).T
        self.readouts = [turn[:, :kept] @ one for one in self.readouts] + [turn[:, kept:] @ readout]

    def _largest(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, sizes, readout = np.linalg.svd(columns, full_matrices=False)
        return (scores * sizes)[:, : self.most], readout[: self.most]
