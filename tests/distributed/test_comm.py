"""Collectives: a group of one without initialisation, and two processes."""

import torch
from processes import run_in_processes

from vissl_like.distributed import comm


def test_a_group_of_one_needs_nothing():
    x = torch.tensor([1.0, 2.0])
    assert comm.rank() == 0 and comm.world_size() == 1 and comm.is_main() and not comm.active()
    assert comm.all_reduce(x) is x and comm.all_gather(x) is x and comm.all_reduce_with_gradient(x) is x
    assert comm.all_gather_object("a") == ["a"] and comm.broadcast_object("b") == "b"
    comm.barrier()


def _collect(rank, world_size):
    x = torch.tensor([1.0, 5.0]) * (rank + 1)
    before = x.clone()
    summed, highest, lowest = comm.all_reduce(x), comm.all_reduce(x, "max"), comm.all_reduce(x, "min")
    leaf = torch.tensor([2.0 + rank], requires_grad=True)
    (comm.all_reduce_with_gradient(leaf) * (rank + 1)).sum().backward()
    return {
        "untouched": torch.equal(x, before),
        "sum": summed,
        "max": highest,
        "min": lowest,
        "gathered": comm.all_gather(torch.tensor([[rank, rank]])),
        "gradient": leaf.grad,
        "objects": comm.all_gather_object({"rank": rank}),
        "broadcast": comm.broadcast_object(f"from {rank}"),
    }


def test_two_processes():
    for rank, found in enumerate(run_in_processes(_collect, 2)):
        assert found["untouched"], rank
        assert found["sum"].tolist() == [3, 15]
        assert found["max"].tolist() == [2, 10] and found["min"].tolist() == [1, 5]
        assert found["gathered"].tolist() == [[0, 0], [1, 1]]
        # Each process's loss weighs the sum by 1 and 2: gradients are summed over processes.
        assert found["gradient"].tolist() == [3]
        assert found["objects"] == [{"rank": 0}, {"rank": 1}] and found["broadcast"] == "from 0"
