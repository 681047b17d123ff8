"""faiss, lazily. Do not call it in forked workers: after faiss has used threads, a forked child that calls it hangs."""

from __future__ import annotations

import importlib
from typing import Any

from vissl_like.utils.errors import UserError


def get_faiss() -> Any:
    """The ``faiss`` module, running on as many threads as torch does.

    Raises:
        UserError: faiss is not installed, or its libraries do not load here.
    """
    # torch first: both libraries bring an OpenMP runtime, and only in this order do they agree on the threads.
    import torch

    try:
        faiss = importlib.import_module("faiss")
    except ImportError as error:
        raise UserError(
            f"faiss cannot be imported ({error}). Install it with `pip install faiss-gpu` (Linux) or "
            "`pip install faiss-cpu` (macOS, Windows)."
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
