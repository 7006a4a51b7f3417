"""Argument checks: valid values are returned, and invalid ones raise a one-sentence error."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from probekit.checks import integer, non_negative_int, number, one_of, positive_int
from probekit.errors import OptionError


@pytest.mark.parametrize("value", [0, 7, np.int64(7), np.uint8(7)])
def test_integers_are_returned_as_python_integers(value):
    found = non_negative_int("seed", value)
    assert found == value
    assert type(found) is int


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None, math.nan, np.float64(1), [1]])
def test_values_other_than_non_negative_integers_are_refused(value):
    expected = re.escape(f"seed must be a non-negative integer, not {value!r}")
    with pytest.raises(OptionError, match=f"^{expected}$"):
        non_negative_int("seed", value)


def test_bounds_of_integers_are_inclusive():
    assert [integer("severity", value, least=1, most=5) for value in (1, 5)] == [1, 5]
    for value in (0, 6):
        with pytest.raises(
            OptionError, match=f"severity must be an integer from 1 to 5, not {value}"
        ):
            integer("severity", value, least=1, most=5)
    with pytest.raises(OptionError, match="steps must be a positive integer, not 0"):
        positive_int("steps", 0)
    with pytest.raises(OptionError, match="top must be an integer of at most 3, not 4"):
        integer("top", 4, most=3)
    assert integer("offset", -3) == -3


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.5), np.int8(1), 1])
def test_numbers_are_returned_as_floats(value):
    found = number("eps", value, least=0)
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, True, "1", None, 1j])
def test_values_other_than_non_negative_numbers_are_refused(value):
    expected = re.escape(f"eps must be a non-negative number, not {value!r}")
    with pytest.raises(OptionError, match=f"^{expected}$"):
        number("eps", value, least=0)


@pytest.mark.parametrize(
    ("bounds", "refused", "kind"),
    [
        ({}, -math.inf, "a finite number"),
        ({"above": 0}, 0, "a positive number"),
        ({"least": 0, "most": 1}, 1.5, "a number from 0 to 1"),
        ({"above": 0, "below": 1}, 1, "a number above 0 and below 1"),
        ({"above": 0, "most": 1}, 0, "a number above 0 and of at most 1"),
        ({"below": 2}, 2.0, "a number below 2"),
    ],
)
def test_bounds_of_numbers(bounds, refused, kind):
    with pytest.raises(OptionError, match=re.escape(f"level must be {kind}, not {refused!r}")):
        number("level", refused, **bounds)
    assert number("level", 0.5, **bounds) == 0.5


def test_an_error_lists_all_of_a_few_choices():
    assert one_of("norm", "l2", ("linf", "l2")) == "l2"
    assert one_of("table", None, (32, None)) is None
    with pytest.raises(OptionError, match=r"^norm must be 'linf' or 'l2', not 'l3'$"):
        one_of("norm", "l3", ("linf", "l2"))
    with pytest.raises(OptionError, match=r"^keep must be 'best', 'last' or 'all', not None$"):
        one_of("keep", None, ("best", "last", "all"))


def test_an_error_names_close_matches_among_many_choices():
    names = [f"gaussian_{number}" for number in range(20)]
    with pytest.raises(
        OptionError, match=r"^there is no noise 'gaussian_'; close matches: gaussian_"
    ):
        one_of("noise", "gaussian_", names)


@pytest.mark.parametrize("value", [[1], np.array([1, 2]), 1.0, "1"])
def test_values_of_another_type_are_refused(value):
    with pytest.raises(OptionError, match="table must be 1 or 2"):
        one_of("table", value, (1, 2))
