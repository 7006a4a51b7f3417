"""The weight of the regularizer over the epochs of a training run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from probekit.checks import non_negative_int, number, positive_int
from probekit.errors import OptionError

__all__ = ["AlphaSchedule", "Segment"]

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SEGMENT = re.compile(rf"(?P<first>{_NUMBER})(?:>(?P<last>{_NUMBER}))?(?:\*(?P<epochs>\d{{1,9}}))?")


@dataclass(frozen=True)
class Segment:
    """A stretch of epochs.

    Attributes:
        first: Alpha in its first epoch.
        last: Where alpha goes in equal steps, to arrive when the segment is over.
        epochs: Number of epochs; None has no end.
    """

    first: float
    last: float
    epochs: int | None

    def __post_init__(self) -> None:
        for value in (self.first, self.last):
            number("alpha", value)
        if not math.isfinite(self.last - self.first):
            raise OptionError(
                f"alpha cannot go from {self.first:g} to {self.last:g}: it is too far"
            )
        if self.epochs is None:
            if self.first != self.last:
                raise OptionError(
                    f"alpha from {_written(self.first)} to {_written(self.last)} needs a number of "
                    "epochs, such as '0>-1*5'"
                )
        else:
            positive_int("epochs of a segment", self.epochs)

    def __str__(self) -> str:
        goal = "" if self.first == self.last else f">{_written(self.last)}"
        length = "" if self.epochs is None else f"*{self.epochs}"
        return _written(self.first) + goal + length


@dataclass(frozen=True)
class AlphaSchedule:
    """Alpha by epoch: consecutive phases; the last value holds afterwards.

    Args:
        segments: The phases in order. Only the last may have no end.

    Raises:
        OptionError: No segment, a segment after one without an end, or an invalid number.

    Source:
        The step strings are those of Ranadive et al. 2023, "0 for 5 epochs, then -20 for 15".

    Example:
        >>> schedule = AlphaSchedule.parse("0*5 -20*15")
        >>> [schedule.alpha(epoch) for epoch in (0, 4, 5, 19, 20)]
        [0.0, 0.0, -20.0, -20.0, -20.0]
        >>> [AlphaSchedule.warm_up(-1.0, epochs=4).alpha(epoch) for epoch in range(6)]
        [0.0, -0.25, -0.5, -0.75, -1.0, -1.0]
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments:
            raise OptionError("an alpha schedule needs at least one segment, such as '-1'")
        for segment in self.segments[:-1]:
            if segment.epochs is None:
                raise OptionError(
                    f"alpha {segment} has no number of epochs, so that nothing after it would be "
                    f"reached; write '{segment}*5', say"
                )

    @classmethod
    def constant(cls, alpha: float) -> AlphaSchedule:
        """The same alpha in every epoch."""
        return cls((Segment(alpha, alpha, None),))

    @classmethod
    def warm_up(cls, alpha: float, epochs: int) -> AlphaSchedule:
        """From 0 in equal steps to alpha, which the epoch after `epochs` epochs is the first to have."""
        return cls((Segment(0.0, alpha, epochs), Segment(alpha, alpha, None)))

    @classmethod
    def parse(cls, text: str) -> AlphaSchedule:
        """Reads a schedule.

        Args:
            text: Segments with spaces between: `-20*15` is -20 for 15 epochs, `0>-1*5` goes from 0
                towards -1 in 5 epochs, and `-1` at the end is -1 from then on.

        Raises:
            OptionError: The text is not of that form; the part that is not is named.
        """
        if not isinstance(text, str):
            raise OptionError(f"an alpha schedule is text such as '0*5 -20*15', not {text!r}")
        segments = []
        for part in text.split():
            found = _SEGMENT.fullmatch(part)
            if found is None:
                raise OptionError(
                    f"{part!r} in the alpha schedule {text!r} is not ALPHA, ALPHA*EPOCHS or "
                    "ALPHA>ALPHA*EPOCHS, as in '0*5 -20*15'"
                )
            first = float(found["first"])
            last = first if found["last"] is None else float(found["last"])
            epochs = None if found["epochs"] is None else int(found["epochs"])
            segments.append(Segment(first, last, epochs))
        return cls(tuple(segments))

    def alpha(self, epoch: int) -> float:
        """The alpha of an epoch.

        Args:
            epoch: From 0.

        Raises:
            OptionError: It is not a non-negative integer.
        """
        non_negative_int("epoch", epoch)
        for segment in self.segments:
            if segment.epochs is None or epoch < segment.epochs:
                share = epoch / segment.epochs if segment.epochs else 0.0
                return segment.first + (segment.last - segment.first) * share
            epoch -= segment.epochs
        return self.segments[-1].last

    def __str__(self) -> str:
        """The text that `parse` reads as this schedule."""
        return " ".join(map(str, self.segments))


def _written(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
