"""Formatting of sizes."""

from __future__ import annotations

import pytest

from probekit.statistics.base import format_bytes


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (1, "1 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (2**40, "1.0 TiB"),
        (2**53, "8192.0 TiB"),
    ],
)
def test_sizes_are_formatted(size: int, words: str) -> None:
    assert format_bytes(size) == words
