import sys

import numpy as np
import pytest
import torch

from vissl_like.compat import faiss as compat
from vissl_like.utils.errors import UserError


def test_threads_follow_torch():
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            assert compat.get_faiss().omp_get_max_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_inner_product_search_finds_the_nearest_row():
    faiss = compat.get_faiss()
    index = faiss.IndexFlatIP(2)
    index.add(np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32))
    _, found = index.search(np.array([[0.1, 0.9]], dtype=np.float32), 2)
    assert found.tolist() == [[1, 0]]


def test_absence_is_told_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install faiss-gpu.*pip install faiss-cpu"):
        compat.get_faiss()
