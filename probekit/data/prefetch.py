"""Prefetches samples, in a thread of this process or in worker processes."""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from probekit.data.images import Fetched
from probekit.errors import DataError, first_line

_AHEAD = 2
Fetch = Callable[[Sequence[int]], Fetched]


def fetched(
    fetch: Fetch,
    chunks: Sequence[Sequence[int]],
    workers: int,
    options: Mapping[str, Any],
) -> Iterator[Fetched]:
    """Yields the samples of each chunk of indices, in order, with prefetching.

    Without worker processes, a thread of this process reads. Data that can be read only in the thread
    that created it is read in the calling thread. `options` are those of the `DataLoader` of the workers.
    """
    if workers:
        return _in_processes(fetch, chunks, workers, options)
    return _in_thread(fetch, chunks)


def _in_thread(fetch: Fetch, chunks: Sequence[Sequence[int]]) -> Iterator[Fetched]:
    """Reads in a thread; after the first chunk that fails there, in the thread of the caller."""

    def read(chunk: Sequence[int]) -> Fetched:
        images, labels, index = fetch(chunk)
        return images.pin_memory() if torch.cuda.is_available() else images, labels, index

    context = contextvars.copy_context()
    pool = ThreadPoolExecutor(1, "probekit-read-ahead")
    waiting = deque(pool.submit(context.run, read, chunk) for chunk in chunks[: _AHEAD + 1])
    try:
        for place in range(len(chunks)):
            try:
                parts = waiting.popleft().result()
            except Exception:
                pool.shutdown(cancel_futures=True)
                yield from map(fetch, chunks[place:])
                return
            for chunk in chunks[place + _AHEAD + 1 : place + _AHEAD + 2]:
                waiting.append(pool.submit(context.run, read, chunk))
            yield parts
    finally:
        pool.shutdown(cancel_futures=True)


class _Chunks(Dataset[Any]):
    """A data set whose items are chunks of samples, for the worker processes of torch.

    An error of the data is returned, as torch would add the traceback of the process to its message.
    """

    def __init__(self, fetch: Fetch, chunks: Sequence[Sequence[int]]) -> None:
        self.fetch, self.chunks = fetch, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Fetched | DataError:
        try:
            return self.fetch(self.chunks[number])
        except DataError as error:
            return error


def _identity(parts: object) -> Any:
    return parts


def _in_processes(
    fetch: Fetch, chunks: Sequence[Sequence[int]], workers: int, options: Mapping[str, Any]
) -> Iterator[Fetched]:
    loader = DataLoader(
        _Chunks(fetch, chunks),
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=torch.cuda.is_available(),
        **options,
    )
    try:
        for parts in loader:
            if isinstance(parts, DataError):
                raise parts
            yield parts
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{workers} reading processes cannot be used ({first_line(error)}); put what a script does "
            'under `if __name__ == "__main__":`, give the data set no lambda or open file, or read in '
            "this process with workers=0"
        ) from error
