import numpy as np
import pytest
import torch

from probekit.statistics import decompositions
from probekit.statistics.decompositions import singular_vectors, symmetric_eigenvalues


def test_eigenvalues_equal_those_of_numpy():
    rows = np.random.default_rng(0).normal(size=(50, 12))
    matrix = rows.T @ rows
    found = symmetric_eigenvalues(torch.tensor(matrix)).numpy()
    np.testing.assert_allclose(found, np.linalg.eigvalsh(matrix), rtol=1e-12)


@pytest.mark.parametrize("shape", [(50, 12), (12, 50)])
def test_singular_vectors_rebuild_the_matrix(shape):
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    left, values, right = singular_vectors(matrix)
    torch.testing.assert_close((left * values) @ right, matrix)
    np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-12)


@pytest.mark.parametrize(("limit", "expected"), [(12, 1), (11, 2)])
def test_few_columns_use_one_thread_and_the_number_is_restored(monkeypatch, limit, expected):
    monkeypatch.setattr(decompositions, "_FEW_COLUMNS", limit)
    used = []

    def fail(matrix):
        used.append(torch.get_num_threads())
        raise RuntimeError

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError):
            symmetric_eigenvalues(torch.eye(12))
        assert used == [expected]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
