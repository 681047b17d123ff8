"""The handshake: who came, who did not, and who says so."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vissl_like.distributed.meeting import by_host, meet, ranges
from vissl_like.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def meet_in_threads(ranks, world_size, patience):
    """Hosts that each rank heard of, or the text of its error."""
    port, results, stores = free_port(), {}, []

    def go(rank):
        try:
            store, results[rank] = meet(rank, world_size, "127.0.0.1", port, patience)
            stores.append(store)  # it goes when its last user goes
        except UserError as error:
            results[rank] = str(error)

    threads = [threading.Thread(target=go, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_all_there():
    here = socket.gethostname()
    assert meet_in_threads([0, 1, 2], 3, 20) == {rank: [here] * 3 for rank in range(3)}


def test_each_says_who_is_missing():
    results = meet_in_threads([0, 2], 5, 1.0)
    for text in results.values():
        assert "wanted 5 processes, found 2" in text and "Missing: 1, 3-4" in text
        assert f"Here: 0, 2 on {socket.gethostname()}" in text
    assert results[2].startswith("process 2 met the main process")


def test_no_main_process():
    port = free_port()
    with pytest.raises(UserError, match=f"no main process at 127.0.0.1:{port} within 1 s"):
        meet(1, 2, "127.0.0.1", port, 1.0)


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"cannot listen at 127.0.0.1:\d+.*DISTRIBUTED.port"):
            meet(0, 2, "127.0.0.1", taken.getsockname()[1], 1.0)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([5, 0, 2, 1, 7, 8], "0-2, 5, 7-8")]
)
def test_ranges(numbers, text):
    assert ranges(numbers) == text


def test_by_host():
    assert by_host(enumerate(["a", "a", "b", "a", "b"])) == "0-1, 3 on a, 2, 4 on b"


@pytest.mark.slow
def test_a_run_whose_other_process_never_starts(tmp_path):
    port = str(free_port())
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "tools/run_distributed_engines.py", "config=quick/synthetic"]
    more = [f"config.OUTPUT_DIR={tmp_path}", "config.DISTRIBUTED.handshake_minutes=0.02"]
    done = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "Missing: 1" in done.stderr and "Traceback" not in done.stderr
