"""Every epoch in its own random order, computed place by place: a billion images cost no memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vissl_like.data.samplers.base import BatchSampler
from vissl_like.registry import SAMPLERS
from vissl_like.utils.kinds import Count

LARGEST = 2**48
_ROUNDS, _ROUNDS_SMALL, _SMALL = 8, 24, 2**16
_AT_ONCE = 2**14  # places worked on together: their arrays stay in the processor's cache
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))
_HALF = np.uint64(32)
_Step = Callable[[np.ndarray, "np.ndarray | None"], np.ndarray]


class KeyedPermutation:
    """A permutation of 0 .. size-1 that is a function of a key, computed for any places without storing it.

    A generalised Feistel network (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002): a number is
    a pair (left, right) in Z_a x Z_b, a being the square root of ``size`` rounded up and b the smallest for which
    a * b >= ``size``; the halves take turns in being shifted, modulo a or b, by a hash of the other and a key of the
    round. Every round can be undone, so all of them are a bijection. A result that is not below ``size`` (fewer than
    one in sqrt(size)) goes through again until it is: walking along its cycle keeps the bijection.

    8 rounds; 24 for fewer than 65,536 numbers, where a round mixes less. It is made for shuffling, not for secrecy.

    Args:
        size: 1 .. 2**48.
        key: numbers >= 0; any change of one gives an unrelated permutation.
    """

    def __init__(self, size: int, *key: int):
        assert 1 <= size <= LARGEST
        self.size = size
        rows = math.isqrt(size - 1) + 1 if size > 1 else 1
        self._rows, self._columns = np.uint64(rows), np.uint64(-(-size // rows))
        rounds = _ROUNDS if size >= _SMALL else _ROUNDS_SMALL
        self._keys = np.random.SeedSequence(list(key)).generate_state(rounds, np.uint64)

    def __call__(self, places: np.ndarray, variant: np.ndarray | None = None) -> np.ndarray:
        """What stands at some places.

        Args:
            places: ``[n]`` whole numbers in 0 .. size-1.
            variant: ``[n]`` uint64; each value gives a permutation of its own. None for all zero.

        Returns:
            ``[n]`` int64.
        """
        return self._in_pieces(self._forward, places, variant)

    def inverse(self, values: np.ndarray, variant: np.ndarray | None = None) -> np.ndarray:
        """The places at which some values stand; arguments and result as in a call."""
        return self._in_pieces(self._backward, values, variant)

    def _in_pieces(self, step: _Step, numbers: np.ndarray, variant: np.ndarray | None) -> np.ndarray:
        result = np.empty(len(numbers), np.int64)
        for begin in range(0, len(numbers), _AT_ONCE):
            piece = slice(begin, begin + _AT_ONCE)
            tweak = None if variant is None else variant[piece]
            values = step(numbers[piece].astype(np.uint64), tweak)
            outside = np.flatnonzero(values >= self.size)
            while len(outside):
                values[outside] = step(values[outside], None if tweak is None else tweak[outside])
                outside = outside[values[outside] >= self.size]
            result[piece] = values
        return result

    def _forward(self, numbers: np.ndarray, tweak: np.ndarray | None) -> np.ndarray:
        left, right = np.divmod(numbers, self._columns)
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                left += _hash_below(right, key, tweak, self._rows)
                left -= self._rows * (left >= self._rows)
            else:
                right += _hash_below(left, key, tweak, self._columns)
                right -= self._columns * (right >= self._columns)
        return left * self._columns + right

    def _backward(self, numbers: np.ndarray, tweak: np.ndarray | None) -> np.ndarray:
        left, right = np.divmod(numbers, self._columns)
        for number, key in reversed(list(enumerate(self._keys))):
            if number % 2 == 0:
                left += self._rows - _hash_below(right, key, tweak, self._rows)
                left -= self._rows * (left >= self._rows)
            else:
                right += self._columns - _hash_below(left, key, tweak, self._columns)
                right -= self._columns * (right >= self._columns)
        return left * self._columns + right


class BlockwiseOrder:
    """An order of 0 .. size-1 that reads only a few blocks of consecutive numbers at a time; a bijection as well.

    Blocks come in random order (a short last one among them), and within every ``mixed`` blocks' worth of places the
    numbers are shuffled: what a shuffle buffer of ``block * mixed`` images does, without the buffer.

    Args:
        size: numbers to order.
        block: consecutive numbers in a block.
        mixed: blocks that are shuffled together.
        key: as in ``KeyedPermutation``.
    """

    def __init__(self, size: int, block: int, mixed: int, *key: int):
        self.size, self.block, self.window = size, block, block * mixed
        self._num_blocks = -(-size // block)
        self._blocks = KeyedPermutation(self._num_blocks, *key, 1)
        self._within = KeyedPermutation(min(self.window, size), *key, 2)
        self._rest = size % self.window
        self._within_rest = KeyedPermutation(max(1, self._rest), *key, 3)
        self._short_by = self._num_blocks * block - size
        last_block = int(self._blocks.inverse(np.array([self._num_blocks - 1]))[0])
        self._after_short = (last_block + 1) * block - self._short_by

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """``[n]`` int64 numbers at ``[n]`` places."""
        window, place = np.divmod(places, self.window)
        full = (window + 1) * self.window <= self.size
        place[full] = self._within(place[full], _hash(window[full].astype(np.uint64)))
        place[~full] = self._within_rest(place[~full])
        place += window * self.window
        # Places as they would be if the last block were as long as the others.
        place += self._short_by * (place >= self._after_short)
        block, offset = np.divmod(place, self.block)
        return self._blocks(block) * self.block + offset


class EpochOrder:
    """The order of one epoch, as a view: slices of it are computed when asked for.

    Args:
        numbers: the permutation.
    """

    def __init__(self, numbers: KeyedPermutation | BlockwiseOrder):
        self._numbers = numbers

    def __len__(self) -> int:
        return self._numbers.size

    def __getitem__(self, part: slice) -> np.ndarray:
        begin, end, step = part.indices(len(self))
        return self._numbers(np.arange(begin, end, step, dtype=np.int64))


@SAMPLERS.register("permutation")
class PermutationSampler(BatchSampler):
    """Every epoch in a random order of its own that is computed, never stored: for sets of up to 2**48 images.

    The order is a keyed permutation (see ``KeyedPermutation``), a function of seed and epoch alone; ``shuffled`` needs
    8 bytes per image in every process and seconds per epoch for it.

    Options:
        block: images that lie together (as those of one archive) and are to be read together: blocks come in random
            order, and images are shuffled among ``mixed`` blocks at a time; null to shuffle all images freely.
        mixed: blocks that are shuffled together; only with ``block``.
    """

    def __init__(
        self,
        dataset_size: int,
        per_rank_batch: int,
        accumulation: int,
        rank: int,
        world_size: int,
        seed: int,
        *,
        block: Count | None = None,
        mixed: Count = 64,
    ):
        super().__init__(dataset_size, per_rank_batch, accumulation, rank, world_size, seed)
        self.block, self.mixed = block, mixed

    def order(self, epoch: int) -> EpochOrder:
        if self.block is None:
            return EpochOrder(KeyedPermutation(self.dataset_size, self.seed, epoch))
        return EpochOrder(BlockwiseOrder(self.dataset_size, self.block, self.mixed, self.seed, epoch))


def _hash(values: np.ndarray) -> np.ndarray:
    """``[n]`` uint64 well mixed: multiply, fold, multiply."""
    mixed = values * _MULTIPLIERS[0]
    mixed ^= mixed >> _HALF
    mixed *= _MULTIPLIERS[1]
    return mixed


def _hash_below(values: np.ndarray, key: np.uint64, tweak: np.ndarray | None, limit: np.uint64) -> np.ndarray:
    """A hash in 0 .. limit-1 of each value under a key: the upper half of the mixed bits, scaled."""
    keyed = values + key
    if tweak is not None:
        keyed ^= tweak
    mixed = _hash(keyed)
    mixed >>= _HALF
    mixed *= limit
    mixed >>= _HALF
    return mixed
