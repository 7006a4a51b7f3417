"""What becomes of a CPU's memory between one batch and the next."""

from __future__ import annotations

import functools
import os

import torch

__all__ = ["ask_for_huge_pages", "keep_freed_memory"]

_LARGEST_BLOCK_KEPT = (32 << 20) - (8 << 10)  # in bytes, less what malloc adds


@functools.cache
def keep_freed_memory(device: torch.device) -> None:
    """Let memory that one batch on a CPU has freed serve the next, once for the process.

    glibc hands a freed block back to the system unless it has seen one at least as large freed before
    (mallopt(3), M_MMAP_THRESHOLD), up to 32 MiB. New memory costs a page fault for each 4 KiB, which is
    as much as simple arithmetic on it. So one block of that size is freed, which was never touched;
    after it, up to 64 MiB of what was freed stay with the process.
    """
    if device.type == "cpu":
        torch.empty(_LARGEST_BLOCK_KEPT, dtype=torch.uint8, device=device)


def ask_for_huge_pages() -> None:
    """Let tensors of this process lie in pages of 2 MiB, unless the environment says something else.

    glibc hands blocks above 32 MiB back in any case, and the maps of images of 224 px are larger, so
    that each is paid for with a page fault for each 4 KiB of it. torch asks Linux for huge pages where
    THP_MEM_ALLOC_ENABLE is 1, which it reads when it makes its first tensor. Forward passes of such
    images gain by it; training on small images loses.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
