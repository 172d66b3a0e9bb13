"""Arrays that stay on disk."""

import numpy as np

from visionflow_hf import metrics
from visionflow_hf.evaluation.rows import Rows, of_rows, one_above_the_other, save_arrays, write_rows


def test_rows_are_written_in_batches_and_read_as_an_array_is(tmp_path):
    values = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
    kept = write_rows(tmp_path / "a.npy", (values[start : start + 4] for start in (0, 4, 8)), 10)
    assert np.array_equal(np.load(tmp_path / "a.npy"), values)
    assert (kept.shape, kept.ndim, kept.size, len(kept), kept.dtype) == ((10, 3, 2), 3, 60, 10, np.float32)
    for rows in (3, np.int64(9), slice(2, 7), [5, 5, 0], np.array([9, 1]), np.arange(10) > 6):
        assert np.array_equal(kept[rows], values[rows])
    assert np.array_equal(np.asarray(kept), values)
    some = of_rows(kept, np.array([7, 2]))
    assert isinstance(some, Rows) and np.array_equal(some[1], values[2])


def test_arrays_one_above_the_other_stay_on_disk(tmp_path):
    first, second = np.ones((3, 2), np.uint8), np.full((2, 2), 7, np.uint8)
    parts = [write_rows(tmp_path / f"{n}.npy", [values], len(values)) for n, values in enumerate((first, second))]
    both = one_above_the_other([parts[0], parts[1].of(np.array([1, 1]))])
    assert isinstance(both, Rows) and np.array_equal(both[1:4], [[1, 1], [1, 1], [7, 7]])
    assert isinstance(one_above_the_other([parts[0], second]), np.ndarray)


def test_the_file_is_what_numpy_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("visionflow_hf.evaluation.rows.BLOCK_BYTES", 16)
    values = np.arange(24, dtype=np.int16).reshape(6, 4)
    kept = write_rows(tmp_path / "a.npy", [values], 6).of(np.array([5, 0, 0]))
    arrays = {"kept/s": kept, "names": np.array(["a", "bcd"]), "none": np.zeros((0, 3))}
    save_arrays(tmp_path / "all.npz", arrays)
    with np.load(tmp_path / "all.npz") as found:
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            assert np.array_equal(found[name], np.asarray(array)) and found[name].dtype == array.dtype


def test_rows_that_come_again_are_correlated_once(tmp_path, monkeypatch):
    values = np.random.default_rng(0).random((4, 6, 5)).astype(np.float32)
    kept = write_rows(tmp_path / "a.npy", [values], 4)
    again = np.array([2, 0, 2, 1, 0])
    read = []
    monkeypatch.setattr(
        metrics, "_unit_rows", lambda some, unit=metrics._unit_rows: read.append(len(some)) or unit(some)
    )
    found = metrics.cross_correlation(kept, kept.of(again))
    assert sum(read) == 4 + 3
    np.testing.assert_allclose(found, np.corrcoef(values.reshape(4, -1))[:, again], atol=1e-6)
