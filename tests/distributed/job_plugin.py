"""Engines for jobs: one that says where it runs, one that waits for a signal the first time."""

import json
import os
import time
from pathlib import Path

import torch

from vissl_like.distributed import comm
from vissl_like.registry import ENGINES
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Index


@ENGINES.register("place")
class PlaceEngine:
    """Every process writes its place and what the others sent it.

    Options:
        status: exit status
        mistaken: whether it ends with a message to the user
        wait: whether the first start waits for a signal
    """

    required_settings = ()

    def __init__(self, loaded, *, status: Index = 0, mistaken: bool = False, wait: bool = False):
        self.loaded, self.status, self.mistaken, self.wait = loaded, status, mistaken, wait

    def run(self):
        if self.mistaken:
            raise UserError("the place is taken")
        folder = Path(self.loaded.resolved.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / f"pid_{comm.rank()}"
        if self.wait and not mark.exists():
            mark.with_suffix(".new").write_text(str(os.getpid()))
            mark.with_suffix(".new").rename(mark)
            time.sleep(60)
        words = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        place = {word: os.environ.get(word) for word in words}
        place["sum"] = int(comm.all_reduce(torch.tensor([comm.rank() + 1])))
        place |= {"cwd": os.getcwd(), "seed": self.loaded.resolved.SEED, "threads": torch.get_num_threads()}
        place["code"] = str(Path(comm.__file__).resolve().parents[2])
        (folder / f"place_{comm.rank()}.json").write_text(json.dumps(place))
        return self.status
