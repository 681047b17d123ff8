"""Random states survive; one run per folder."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from vissl_like.trainer.lock import FolderLock
from vissl_like.trainer.rng import restore_rng_state, rng_state, seed_everything
from vissl_like.utils.errors import UserError


def draws():
    return torch.rand(3).tolist(), np.random.rand(2).tolist(), random.random()


def test_streams_go_on_where_they_were(tmp_path):
    seed_everything(4, 1)
    draws()
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = draws()
    seed_everything(9, 0)
    restore_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draws() == expected


def test_processes_have_their_own_streams():
    seed_everything(0, 0)
    first = draws()
    seed_everything(0, 1)
    assert draws() != first


def test_a_second_run_in_the_folder_is_refused_until_the_first_is_gone(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from vissl_like.trainer.lock import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])):\n  print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"being written by process {holder.pid}"), FolderLock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with FolderLock(tmp_path):
        pass
