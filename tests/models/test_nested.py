from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from probekit.models.nested import all_tensors, named_parts

ONE, TWO = torch.zeros(1), torch.ones(2)
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Output:
    logits: torch.Tensor
    hidden: object


@pytest.mark.parametrize(
    ("nested", "names"),
    [
        ({"a": ONE, 2: TWO}, ["a", "2"]),
        (OrderedDict(b=ONE, a=TWO), ["b", "a"]),
        (Pair(ONE, TWO), ["first", "second"]),
        ([ONE, TWO], ["0", "1"]),
        (Output(ONE, TWO), ["logits", "hidden"]),
        (Output, []),
        ("ab", []),
        (None, []),
    ],
)
def test_parts_are_named_by_key_field_or_position(nested, names):
    assert [name for name, _ in named_parts(nested)] == names
    assert [id(part) for part in all_tensors(nested)] == [
        id(one) for one in (ONE, TWO)[: len(names)]
    ]


def test_tensors_are_found_at_any_depth_in_order():
    found = all_tensors(Output(TWO, {"a": [ONE, (None, 3)], "b": Pair(TWO, "x")}))
    assert [id(one) for one in found] == [id(TWO), id(ONE), id(TWO)]
