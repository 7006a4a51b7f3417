"""Random fields for a batch in which every image has a stream of its own.

The numbers come from a counter, not from a generator with a state: the word at position p of image i
is a hash of (seed, corruption, severity, i) and p. So it is the same in any batch, order, process
and on any device. An image has a 64-bit key (`probekit.runtime.randomness`); from there on integers
have 32 bits with wrap-around, which vectorizes on every device and is exact on all of them. The hash
of a position is Prospecting-for-hash-functions' ``lowbias32``
(https://github.com/skeeto/hash-prospector), and one more round joins it with the key.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from probekit.runtime.randomness import keyed

__all__ = ["RandomStreams"]

_MULTIPLIER_A = 0x7FEB352D
_MULTIPLIER_B = 0x846CA68B - 2**32  # as a signed 32-bit number
_GOLDEN = 0x9E3779B97F4A7C15


class RandomStreams:
    """One random stream for each image of a batch.

    Args:
        name: what the streams are for; different names give independent streams.
        index: the images' indices, one stream each.
        device: where the numbers are made.

    >>> streams = RandomStreams("seed 0, fog, 3", [7, 8])
    >>> alone = RandomStreams("seed 0, fog, 3", [8])
    >>> bool((streams.uniform(5)[1] == alone.uniform(5)[0]).all())
    True
    """

    def __init__(self, name: str, index: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._keys = _image_keys(name, index).to(self.device)

    def __len__(self) -> int:
        return len(self._keys)

    def part(self, start: int, stop: int) -> RandomStreams:
        """The streams of images start to stop."""
        part = object.__new__(RandomStreams)
        part.device = self.device
        part._keys = self._keys[start:stop]
        return part

    def words(self, count: int, *, field: int = 0, scratch: Tensor | None = None) -> Tensor:
        """Uniform 32-bit words, int32 (images, count); another field gives independent ones.

        Memory of that form may be lent for what is reckoned on the way.
        """
        mask, multiplier = self._keys[:, :1], self._keys[:, 1:]
        words = torch.bitwise_xor(_position_hash(count, field, self.device), mask)
        words.mul_(multiplier)
        scratch = torch.empty_like(words) if scratch is None else scratch
        return _xor_shifted(words, 15, scratch).mul_(_MULTIPLIER_B)

    def uniform(self, *shape: int, field: int = 0) -> Tensor:
        """Uniform in [0, 1) on a lattice of 2⁻²⁴, float32 (images, *shape)."""
        words = self.words(math.prod(shape), field=field)
        words.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
        return words.to(torch.float32).mul_(2.0**-24).view(len(self), *shape)

    def normal(self, *shape: int, field: int = 0, out: Tensor | None = None) -> Tensor:
        """Standard normal, float32 (images, *shape), in the memory of ``out`` if it is given.

        Box and Muller's method (Annals of Mathematical Statistics 29, 1958), two values for each
        word. Its low 23 bits give the radius, which therefore ends at 5.6; all of it gives the
        angle, so that each radius goes with 512 evenly spaced ones, which has the moments of a
        full circle up to the 511th. Sine and cosine come from the tangent t of half the angle, as
        2t/(1 + t²) and 2/(1 + t²) − 1.
        """
        count = math.prod(shape)
        if count % 2:
            values = self.normal(count + 1, field=field)[:, :count].reshape(len(self), *shape)
            return values if out is None else out.copy_(values)
        if out is None:
            out = torch.empty(len(self), *shape, dtype=torch.float32, device=self.device)
        cosines, sines = out.view(len(self), 2, count // 2).unbind(1)
        words = self.words(count // 2, field=field, scratch=cosines.view(torch.int32))
        tangents = sines.copy_(words).mul_(math.pi * 2.0**-32).tan_()
        half = torch.full((), 0.5, dtype=torch.float32, device=self.device)
        torch.addcmul(half, tangents, tangents, value=0.5, out=cosines).reciprocal_()
        # The low bits as the fraction of a float in [1, 2), which saves the conversion.
        words.bitwise_and_(0x7FFFFF).bitwise_or_(0x3F800000)
        radius = words.view(torch.float32)
        torch.sub(1, radius, out=radius).log1p_().mul_(-2).sqrt_()
        cosines.mul_(radius)
        sines.mul_(cosines)
        cosines.sub_(radius)
        return out

    def below(self, bound: Tensor | int, *shape: int, field: int = 0) -> Tensor:
        """Uniform whole numbers from 0 up to, not including, bound; int64 on
        the CPU, (images, *shape)."""
        return (self.uniform(*shape, field=field).cpu().double() * bound).long()


def _image_keys(name: str, index: Sequence[int]) -> Tensor:
    """A mask and an odd multiplier for each image, int32 (images, 2): halves of its 64-bit key."""
    words = keyed(name, torch.as_tensor(index))
    return torch.stack([words >> 32, words << 32 >> 32 | 1], 1).int()


@functools.lru_cache(maxsize=32)
def _position_hash(count: int, field: int, device: torch.device) -> Tensor:
    """A mixed 32-bit word for each position of a field, (count,)."""
    words = torch.arange(1, count + 1, dtype=torch.int32, device=device)
    scratch = torch.empty_like(words)
    words.add_(field * 0x3C6EF372)
    _xor_shifted(words, 16, scratch).mul_(_MULTIPLIER_A)
    _xor_shifted(words, 15, scratch).mul_(_MULTIPLIER_B)
    return _xor_shifted(words, 16, scratch)


def _xor_shifted(words: Tensor, shift: int, scratch: Tensor) -> Tensor:
    """``words ^= words >>> shift`` in place; torch shifts arithmetically, hence the mask."""
    torch.bitwise_right_shift(words, shift, out=scratch)
    scratch.bitwise_and_((1 << (32 - shift)) - 1)
    return words.bitwise_xor_(scratch)
