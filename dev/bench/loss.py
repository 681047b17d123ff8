#!/usr/bin/env python3
"""The cross-entropy over view pairs and Sinkhorn beside the official code's way: the same numbers, in turn, one thread.

    OMP_NUM_THREADS=1 python dev/bench/loss.py

``loops`` is the double loop over pairs of views of the official SwAV and DINO, differentiated by autograd; ``grouped``
sums the targets of each view first, and leaves the gradient to autograd; ``ours`` makes value and gradient in one pass.
Timed are forward and backward. ``kept`` is what autograd holds in between, beside the scores and the targets.
``listing`` is Sinkhorn as printed in the SwAV paper (a matrix that is divided by sums in every step). ``differs`` is
the largest difference of the results, over their largest value. The ratio is that of the medians of CPU time to the
first side's.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vissl_like.clustering.sinkhorn import sinkhorn
from vissl_like.losses.functional.swapped import swapped_cross_entropy

CASES = {
    "SwAV, 8 views of 64 images, K = 3,000": (8, 64, 3000, 0.1),
    "SwAV, 8 views of 256 images, K = 3,000": (8, 256, 3000, 0.1),
    "DINO, 10 views of 16 images, K = 65,536": (10, 16, 65536, 0.1),
}
Loss = Callable[[Tensor, list[Tensor], int, float], Tensor]


def loops(logits: Tensor, targets: list[Tensor], views: int, temperature: float) -> Tensor:
    """Every pair by itself."""
    parts, total = (logits / temperature).chunk(views), logits.new_zeros(())
    for view, target in enumerate(targets):
        for other in range(views):
            if other != view:
                total = total - (target * torch.log_softmax(parts[other], dim=-1)).sum(dim=-1).mean()
    return total / (len(targets) * (views - 1))


def grouped(logits: Tensor, targets: list[Tensor], views: int, temperature: float) -> Tensor:
    """One log-softmax for all views, and for each the sum of its targets."""
    log_p = torch.log_softmax(logits / temperature, dim=1).view(views, -1, logits.shape[1])
    whole, total = torch.stack(targets).sum(0), logits.new_zeros(())
    for view in range(views):
        total = total - ((whole - targets[view] if view < len(targets) else whole) * log_p[view]).sum()
    return total / (len(targets) * (views - 1) * log_p.shape[1])


def ours(logits: Tensor, targets: list[Tensor], views: int, temperature: float) -> Tensor:
    """This project's."""
    return swapped_cross_entropy(logits, targets, range(len(targets)), views, temperature)


def listing(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Listing 1 of the SwAV paper."""
    mass = torch.exp(scores / epsilon).t()
    prototypes, samples = mass.shape
    mass /= mass.sum()
    for _ in range(iterations):
        mass /= mass.sum(dim=1, keepdim=True)
        mass /= prototypes
        mass /= mass.sum(dim=0, keepdim=True)
        mass /= samples
    return (mass * samples).t()


def kept(loss: Loss, logits: Tensor, targets: list[Tensor], views: int, temperature: float) -> int:
    """Bytes between forward and backward."""
    storages: dict[int, int] = {}
    given = {tensor.untyped_storage().data_ptr() for tensor in (logits, *targets)}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(logits.clone().requires_grad_(), targets, views, temperature)
    assert value.requires_grad
    return sum(size for place, size in storages.items() if place not in given)


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """CPU milliseconds, and the result."""
    begun = time.process_time()
    result = work()
    return 1000 * (time.process_time() - begun), result


def table(title: str, sides: dict[str, Callable[[], Tensor]], runs: int, memory: dict[str, int]) -> str:
    """Every side in turn."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Tensor] = {}
    for _ in range(runs):
        for name, work in sides.items():
            milliseconds, results[name] = timed(work)
            taken[name].append(milliseconds)
    first = next(iter(sides))
    lines = [f"| {title} | CPU ms | ratio | from | to | kept MB | differs |", "|---|" + "---:|" * 6]
    for name, times in taken.items():
        middle, difference = statistics.median(times), (results[name] - results[first]).abs().max()
        cells = [f"{middle:.1f}", f"{statistics.median(taken[first]) / middle:.1f}", f"{min(times):.1f}"]
        cells += [f"{max(times):.1f}", f"{memory[name] / 1e6:.1f}" if name in memory else ""]
        lines.append(f"| {name} | {' | '.join(cells)} | {difference / results[first].abs().max():.0e} |")
    return "\n".join(lines)


def main() -> int:
    """Prints the tables."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--runs", type=int, default=7, help="of every side, in turn (default: %(default)s)")
    options = made.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = cpu[0].partition(":")[2].strip() if cpu else platform.processor()
    print(f"{processor}, torch {torch.__version__}, {datetime.date.today()}; median of {options.runs}\n")
    for title, (views, images, count, temperature) in CASES.items():
        logits = torch.rand(views * images, count, generator=generator) * 2 - 1
        targets = [torch.rand(images, count, generator=generator).mul_(20).softmax(1) for _ in range(2)]

        def both(loss: Loss, x: Tensor = logits, q: list[Tensor] = targets, v: int = views, t: float = temperature):  # type: ignore[no-untyped-def]
            x = x.clone().requires_grad_()
            loss(x, q, v, t).backward()
            return x.grad

        every: dict[str, Loss] = {"loops": loops, "grouped": grouped, "ours": ours}
        memory = {name: kept(loss, logits, targets, views, temperature) for name, loss in every.items()}
        sides = {name: (lambda loss=loss, both=both: both(loss)) for name, loss in every.items()}
        print(table(title, sides, options.runs, memory) + "\n", flush=True)
    for images in (512, 4096):
        scores = torch.rand(images, 3000, generator=generator) * 2 - 1
        sides = {
            "listing": lambda scores=scores: listing(scores, 0.05, 3),
            "ours": lambda scores=scores: sinkhorn(scores, 0.05, 3),
        }
        print(
            table(f"Sinkhorn, {images:,} samples, K = 3,000, 3 iterations", sides, options.runs, {}) + "\n", flush=True
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
