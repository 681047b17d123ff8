"""Memory that is kept for the next tensor."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vissl_like.utils import allocator

FAULTS = """
import resource, sys, torch
from vissl_like.utils.allocator import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "keep" else False
torch.empty(1 << 22).fill_(1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(1 << 22).fill_(1.0)
print(int(done), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, **environment: str) -> list[int]:
    """Whether memory is kept, and pages mapped while 20 tensors of 16 MiB came and went."""
    own = {name: value for name, value in os.environ.items() if name not in allocator._OWN}
    command = [sys.executable, "-c", FAULTS, mode]
    done = subprocess.run(command, env={**own, **environment}, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_pages_are_not_mapped_again():
    kept, few = faults("keep")
    _, many = faults("leave", MALLOC_MMAP_THRESHOLD_="1000000")
    assert kept and few < many / 2, (few, many)


@pytest.mark.parametrize("name", allocator._OWN)
def test_what_the_environment_says_holds(monkeypatch, name):
    for other in allocator._OWN:
        monkeypatch.delenv(other, raising=False)
    called = []
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: called.append(1))
    monkeypatch.setenv(name, "1")
    assert not allocator.keep_freed_memory() and not called
