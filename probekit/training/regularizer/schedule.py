"""The weight of the regularizer over the epochs of a training run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from probekit.checks import non_negative_int, number, positive_int
from probekit.errors import OptionError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SEGMENT = re.compile(rf"(?P<first>{_NUMBER})(?:>(?P<last>{_NUMBER}))?(?:\*(?P<epochs>\d{{1,9}}))?")


@dataclass(frozen=True)
class Segment:
    """A sequence of consecutive epochs.

    `last` is the value that alpha approaches in equal steps from `first`, and reaches just after the last
    epoch; `epochs` is None for a segment without an end.
    """

    first: float
    last: float
    epochs: int | None

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            object.__setattr__(self, name, number("alpha", getattr(self, name)))
        if not math.isfinite(self.last - self.first):
            raise OptionError(
                f"alpha cannot go from {self.first:g} to {self.last:g}: it is too far"
            )
        if self.epochs is not None:
            positive_int("epochs of a segment", self.epochs)
        elif self.first != self.last:
            raise OptionError(
                f"alpha from {written(self.first)} to {written(self.last)} needs a number of "
                "epochs, such as '0>-1*5'"
            )

    def __str__(self) -> str:
        goal = "" if self.first == self.last else f">{written(self.last)}"
        length = "" if self.epochs is None else f"*{self.epochs}"
        return written(self.first) + goal + length


@dataclass(frozen=True)
class AlphaSchedule:
    """Alpha as a function of the epoch: consecutive segments, then the last value.

    Args:
        segments: The segments in order. Only the last one may have no end.

    Raises:
        OptionError: There is no segment, a segment follows one without an end, or a number is invalid.

    Source:
        The step notation follows Ranadive et al. 2023, "0 for 5 epochs, then -20 for 15".

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
        for segment in self.segments:
            if not isinstance(segment, Segment):
                raise OptionError(
                    f"an alpha schedule is made by parse('0*5 -20*15'), not of {segment!r}"
                )
        for segment in self.segments[:-1]:
            if segment.epochs is None:
                raise OptionError(
                    f"alpha {segment} has no number of epochs, so later segments would never be "
                    f"reached; write for example '{segment}*5'"
                )

    @classmethod
    def constant(cls, alpha: float) -> AlphaSchedule:
        """The same alpha in every epoch."""
        return cls((Segment(alpha, alpha, None),))

    @classmethod
    def warm_up(cls, alpha: float, epochs: int) -> AlphaSchedule:
        """Rises from 0 in equal steps over `epochs` epochs; the following epoch is the first at alpha."""
        return cls((Segment(0.0, alpha, epochs), Segment(alpha, alpha, None)))

    @classmethod
    def parse(cls, text: str) -> AlphaSchedule:
        """Parses a schedule.

        Args:
            text: Segments separated by spaces: `-20*15` is -20 for 15 epochs, `0>-1*5` moves from 0
                towards -1 in 5 epochs, and `-1` at the end is -1 for all remaining epochs.

        Raises:
            OptionError: The text is not of this form; the message names the invalid part.
        """
        if not isinstance(text, str):
            raise OptionError(f"an alpha schedule must be text such as '0*5 -20*15', not {text!r}")
        segments = []
        for part in text.split():
            found = _SEGMENT.fullmatch(part)
            if found is None:
                raise OptionError(
                    f"{part!r} in the alpha schedule {text!r} is not ALPHA, ALPHA*EPOCHS or "
                    "ALPHA>ALPHA*EPOCHS, as in '0*5 -20*15'"
                )
            epochs = None if found["epochs"] is None else int(found["epochs"])
            last = found["last"] or found["first"]
            segments.append(Segment(float(found["first"]), float(last), epochs))
        return cls(tuple(segments))

    def alpha(self, epoch: int) -> float:
        """The alpha of an epoch.

        Args:
            epoch: The epoch, counted from 0.

        Raises:
            OptionError: The epoch is not a non-negative integer.
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


def written(number: float) -> str:
    return repr(float(number) + 0.0).removesuffix(".0")
