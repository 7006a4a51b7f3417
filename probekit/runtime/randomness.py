"""Counter-based random numbers that do not depend on batch, order, process or device.

Every word is a hash of (name, index, position) rather than the next state of a generator. Therefore,
a single image can be corrupted again, and resampling works on streams. The name contains the seed and
the purpose of the numbers. The generator is SplitMix64 (Steele, Lea & Flood 2014): each index has its
own stream, which starts at a hash of name and index. Integers have 64 bits and wrap around, which is
exact on every device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB
_FIRST = -0x40A7B892E31B1A47
_SECOND = -0x6B2FB644ECCEEE15
_ROUNDS = 8
_FIELD = 2**40  # positions between two fields of a stream, more than any field uses


class RandomStreams:
    """One random stream for each index: those of samples in their data set.

    The `name` is the purpose of the numbers, including the seed; other names give independent streams.
    """

    def __init__(
        self, name: str, index: Sequence[int] | Tensor, device: torch.device | str = "cpu"
    ) -> None:
        self._keys = keyed(name, torch.as_tensor(index, dtype=torch.int64).to(device))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, part: slice) -> RandomStreams:
        """The streams of a slice of the indices."""
        streams = object.__new__(RandomStreams)
        streams._keys = self._keys[part]
        return streams

    def words(self, count: int, *, field: int = 0) -> Tensor:
        """Random 64-bit words, int64 (streams, count); other fields give independent ones."""
        position = torch.arange(1, count + 1, device=self._keys.device) + field * _FIELD
        return mix(self._keys[:, None] + position * _GOLDEN)

    def uniform(self, *shape: int, field: int = 0) -> Tensor:
        """Uniform numbers in [0, 1), multiples of 2⁻²⁴, float32 (streams, *shape)."""
        return self._integers24(shape, field).mul_(2.0**-24).add_(0.5)

    def normal(self, *shape: int, field: int = 0) -> Tensor:
        """Standard normal numbers, by inverting the distribution function, float32 (streams, *shape)."""
        centered = self._integers24(shape, field).mul_(2).add_(1).mul_(2.0**-24)  # in (-1, 1)
        return centered.erfinv_().mul_(math.sqrt(2))

    def integers(self, bound: Tensor | int, *shape: int, field: int = 0) -> Tensor:
        """Uniform integers from 0 up to, not including, a bound below 2²⁴, int64 (streams, *shape)."""
        return (self.uniform(*shape, field=field) * bound).long()

    def _integers24(self, shape: tuple[int, ...], field: int) -> Tensor:
        """Uniform integers from -2²³ to 2²³ - 1, as float32, which holds them exactly."""
        count = math.prod(shape)
        halves = self.words((count + 1) // 2, field=field).view(torch.int32)[:, :count]
        return (halves >> 8).float().view(len(self), *shape)


def key(name: str) -> int:
    """A 64-bit key from a name, such as `"poisson 0"`; other names give independent streams."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def keyed(name: str, index: Tensor) -> Tensor:
    """A random 64-bit word for each index, int64 of the same shape."""
    return mix(index.long() * _GOLDEN + key(name))


def mix(counters: Tensor) -> Tensor:
    """The finalizer of SplitMix64, a bijection: all bits depend on all bits of the counter (int64)."""
    state = _shifted(counters, 30).bitwise_xor_(counters).mul_(_FIRST)
    state = _shifted(state, 27).bitwise_xor_(state).mul_(_SECOND)
    return _shifted(state, 31).bitwise_xor_(state)


def _shifted(words: Tensor, by: int) -> Tensor:
    """`words >>> by`: torch shifts the sign in, so it is masked."""
    return (words >> by).bitwise_and_((1 << (64 - by)) - 1)


def words(name: str, replicates: int, index: Tensor) -> Tensor:
    """Random 64-bit words for resampling, int64 (replicates, samples), from the samples' indices."""
    return RandomStreams(name, index, index.device).words(replicates).T.contiguous()


def uniform(words: Tensor) -> Tensor:
    """Converts words to uniform numbers in [0, 1), multiples of 2⁻⁵³, float64 if supported, else float32."""
    dtype = torch.float32 if words.device.type == "mps" else torch.float64
    return _shifted(words, 11).to(dtype) * 2.0**-53


def coins(words: Tensor) -> Tensor:
    """Converts words to fair coin flips, bool."""
    return words < 0


_POISSON_CUMULATIVE = [
    sum(math.exp(-1) / math.factorial(k) for k in range(most + 1)) for most in range(19)
]


def poisson(words: Tensor) -> Tensor:
    """Converts words to Poisson numbers of mean 1, int64, by inverting the distribution function."""
    uniforms = uniform(words)
    steps = torch.tensor(_POISSON_CUMULATIVE, dtype=uniforms.dtype, device=words.device)
    return torch.bucketize(uniforms, steps, right=True)


def shuffled(name: str, count: int) -> Tensor:
    """The integers 0 ... count - 1 in random order, int64 (count,)."""
    return keyed(name, torch.arange(count)).argsort()


def permuted(name: str, replicates: int, ranks: Tensor, size: int) -> Tensor:
    """Random permutations of 0 ... size - 1, evaluated at some positions without storing them.

    A keyed Feistel network is a bijection of the next power of two. It is applied again to values
    outside the range until they are inside, which makes it a bijection of the range (cycle walking,
    Black & Rogaway 2002). `ranks` (samples,) are positions from 0 to size - 1; the result is the image
    of each position under each permutation, int64 (replicates, samples).
    """
    keys = keyed(f"permuted {name}", torch.arange(replicates, device=ranks.device))
    keys = keys.repeat_interleave(len(ranks))
    # A network of very few bits has too few distinct bijections.
    bits = max(6, (size - 1).bit_length())
    found = _feistel(ranks.long().repeat(replicates), keys, bits)
    outside = (found >= size).nonzero()[:, 0]
    while len(outside):
        walked = _feistel(found[outside], keys[outside], bits)
        found[outside] = walked
        outside = outside[walked >= size]
    return found.view(replicates, -1)


def _feistel(positions: Tensor, keys: Tensor, bits: int) -> Tensor:
    """An unbalanced Feistel network, whose halves alternately modify each other."""
    low = bits // 2
    lower, upper = (1 << low) - 1, (1 << (bits - low)) - 1
    left, right = positions >> low, positions & lower
    for turn in range(_ROUNDS):
        if turn % 2:
            right = right ^ (mix(left * _GOLDEN + keys + turn) & lower)
        else:
            left = left ^ (mix(right * _GOLDEN + keys + turn) & upper)
    return (left << low) | right
