"""Wavelet maps of stimuli, in a file without a name: those of many would fill memory."""

import tempfile
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from visionflow_hf.errors import UserError
from visionflow_hf.modeling.gabor_wavelets import GRID, wavelet_channels, wavelet_maps
from visionflow_hf.training.stimuli import BATCH, Stimuli


class StimulusMaps:
    """The maps of each stimulus, in half precision, whose rounding is far below the noise of any response.

    Attributes:
        values: float16 array of shape (channels, stimuli, GRID * GRID), one channel after the other on disk.

    Args:
        stimuli: their pixels, of `num_channels` channels.
        device: computes the maps.

    Raises:
        UserError: the folder of temporary files has no room for them.
    """

    def __init__(
        self, stimuli: Stimuli, stimulus_ids: Sequence[str], num_channels: int, device: torch.device | str = "cpu"
    ):
        shape = (wavelet_channels(num_channels), len(stimulus_ids), GRID**2)
        with tempfile.TemporaryFile(prefix="visionflow-maps-") as file:
            try:
                for _ in range(shape[0]):  # takes its room now: on a full disk, writing to the map ends the process
                    file.write(bytes(2 * shape[1] * shape[2]))
                file.flush()
            except OSError as error:
                raise UserError(
                    f"{tempfile.gettempdir()} has no room for {2e-6 * np.prod(shape):,.0f} MB of wavelet maps "
                    f"({error.strerror}): make room, or name another folder by the variable TMPDIR"
                ) from error
            self.values = np.memmap(file, np.float16, "r+", shape=shape)
        for start in range(0, len(stimulus_ids), BATCH):
            pixels = stimuli.pixel_values(stimulus_ids[start : start + BATCH])
            maps = wavelet_maps(pixels.to(device)).flatten(2).transpose(0, 1)
            self.values[:, start : start + BATCH] = maps.cpu().numpy()

    @cached_property
    def products(self) -> np.ndarray:
        """Scalar products of each two stimuli's maps, float32 array of shape (stimuli, stimuli)."""
        total = np.zeros((self.values.shape[1],) * 2, dtype=np.float32)
        for channel in map(np.float32, self.values):
            total += channel @ channel.T
        return total

    def predict(self, weights: np.ndarray, rows: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """What a linear map with weights (channels, GRID * GRID, outputs) makes of some stimuli, `(rows, outputs)`."""
        total = np.zeros((len(self.values[0, rows]), weights.shape[2]), dtype=np.float32)
        for channel, part in zip(self.values, weights, strict=True):
            total += np.float32(channel[rows]) @ part
        return total
