"""Random numbers that depend on (seed, replicate, sample) alone, so that resampling can stream.

Every word is a hash of a counter and not the next state of a generator: the weight of sample 17 in
replicate 3 is the same in any batch, order and process. The hash is the finalizer of splitmix64
(Steele, Lea & Flood 2014), in 64-bit integers with wrap-around, which are exact on every device.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

__all__ = ["coins", "key", "keyed", "mix", "permuted", "poisson", "uniform", "words"]

_GOLDEN = -0x61C8864680B583EB
_FIRST = -0x40A7B892E31B1A47
_SECOND = -0x6B2FB644ECCEEE15
_ROUNDS = 8


def key(name: str) -> int:
    """A 64-bit key from a name, such as `"poisson 0"`; other names give independent streams.

    >>> key("poisson 0") == key("poisson 1")
    False
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def mix(counters: Tensor) -> Tensor:
    """The finalizer of splitmix64, a bijection of 64-bit words.

    Args:
        counters: int64, any shape.

    Returns:
        int64 of the same shape, whose bits all depend on all bits of the counter.
    """
    state = (counters ^ _shifted(counters, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(words: Tensor, by: int) -> Tensor:
    """`words >>> by`: torch shifts the sign in, hence the mask."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def words(name: str, replicates: int, index: Tensor) -> Tensor:
    """Random 64-bit words.

    Args:
        name: What they are for, seed included.
        replicates: How many for each sample.
        index: The samples' indices (samples,).

    Returns:
        int64 (replicates, samples), on the device of the indices.

    >>> words("a", 2, torch.tensor([5, 7]))[:, 1].equal(words("a", 2, torch.tensor([7]))[:, 0])
    True
    """
    sample = keyed(name, index)
    return mix(sample[None, :] + _replicate_keys(name, replicates, index.device)[:, None])


def keyed(name: str, index: Tensor) -> Tensor:
    """A random 64-bit word for each index, int64 of the same shape."""
    return mix(index.long() * _GOLDEN + key(name))


def _replicate_keys(name: str, replicates: int, device: torch.device) -> Tensor:
    return keyed(f"{name} replicate", torch.arange(1, replicates + 1, device=device))


def uniform(words: Tensor) -> Tensor:
    """Words as uniform numbers in [0, 1) on a lattice of 2⁻⁵³, float64 (float32 where none is)."""
    dtype = torch.float32 if words.device.type == "mps" else torch.float64
    return _shifted(words, 11).to(dtype) * 2.0**-53


def coins(words: Tensor) -> Tensor:
    """Words as fair coins, bool."""
    return words < 0


_POISSON_CUMULATIVE = [
    sum(math.exp(-1) / math.factorial(k) for k in range(most + 1)) for most in range(19)
]


def poisson(words: Tensor) -> Tensor:
    """Words as Poisson numbers of mean 1, int64, by inversion of the distribution function."""
    uniforms = uniform(words)
    steps = torch.tensor(_POISSON_CUMULATIVE, dtype=uniforms.dtype, device=words.device)
    return torch.bucketize(uniforms, steps, right=True)


def permuted(name: str, replicates: int, ranks: Tensor, size: int) -> Tensor:
    """Random permutations of 0 ... size - 1, at some places only and without storing them.

    A keyed Feistel network is a bijection of the next power of two; places that leave the range are
    sent through it again until they are back, which keeps it a bijection of the range (cycle
    walking, Black & Rogaway 2002).

    Args:
        name: What they are for, seed included.
        replicates: How many permutations.
        ranks: Places (samples,), from 0 to size - 1.
        size: How many places there are.

    Returns:
        int64 (replicates, samples): where each permutation sends each place.

    >>> permuted("a", 1, torch.arange(5), 5).sort().values.tolist()
    [[0, 1, 2, 3, 4]]
    """
    keys = _replicate_keys(name, replicates, ranks.device).repeat_interleave(len(ranks))
    # A network of very few bits has too few different bijections.
    bits = max(6, (size - 1).bit_length())
    found = _feistel(ranks.long().repeat(replicates), keys, bits)
    outside = (found >= size).nonzero()[:, 0]
    while len(outside):
        walked = _feistel(found[outside], keys[outside], bits)
        found[outside] = walked
        outside = outside[walked >= size]
    return found.view(replicates, -1)


def _feistel(places: Tensor, keys: Tensor, bits: int) -> Tensor:
    """An unbalanced Feistel network whose halves change each other by turns."""
    low = bits // 2
    lower, upper = (1 << low) - 1, (1 << (bits - low)) - 1
    left, right = places >> low, places & lower
    for turn in range(_ROUNDS):
        if turn % 2:
            right = right ^ (mix(left * _GOLDEN + keys + turn) & lower)
        else:
            left = left ^ (mix(right * _GOLDEN + keys + turn) & upper)
    return (left << low) | right
