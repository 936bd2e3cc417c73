"""Batches of a site's records: those that must be read are read while the one before is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.stored import StoredBatch

AHEAD = 2
"""Batches that are read, or being read, beside the one in use."""

SMALL = 1 << 22
"""Bytes of images that are read faster than a thread pays for itself."""


def batches(records: MultimodalBatch, order: Tensor, size: int) -> Iterator[MultimodalBatch]:
    """Yield the records in an order, at most `size` at a time; an empty order is one batch.

    Parameters
    ----------
    records : MultimodalBatch
        A `StoredBatch` of more than `SMALL` is read ahead by a thread, which ends with the iteration, however
        that ends.
    order : Tensor
        Int64, on the CPU.
    size : int
        At least 1.
    """
    if isinstance(records, StoredBatch):
        ahead = len(order) * records.bytes_each > SMALL
        indices = torch.split(order, size)
        yield from _read_ahead(records, indices) if ahead else map(records.select, indices)
        return
    yield from map(records.select, torch.split(order.to(records.labels.device), size))


def _read_ahead(records: StoredBatch, indices: Iterable[Tensor]) -> Iterator[MultimodalBatch]:
    reader = _Reader(records)
    pool = ThreadPoolExecutor(1, "fedfair-reader")
    pending: deque[Future[_Read]] = deque()
    try:
        for index in indices:
            pending.append(pool.submit(reader.read, index))
            if len(pending) > AHEAD:
                yield reader.take(pending.popleft().result())
        while pending:
            yield reader.take(pending.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)


class _Read(NamedTuple):
    """A batch and, on a GPU, the event after which it is there."""

    batch: MultimodalBatch
    done: torch.cuda.Event | None


class _Reader:
    """Reads batches, on a GPU in a stream of its own, so that copies run beside the computation."""

    def __init__(self, records: StoredBatch) -> None:
        self.records, self.device = records, records.labels.device
        self.stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            # The labels themselves may still be on their way.
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def read(self, index: Tensor) -> _Read:
        """Return a batch; called in the thread."""
        if self.stream is None:
            return _Read(self.records.select(index), None)
        with torch.cuda.stream(self.stream):
            return _Read(self.records.select(index), self.stream.record_event())

    def take(self, read: _Read) -> MultimodalBatch:
        """Return the batch for use in the caller's stream, which waits for it; the caller does not."""
        if read.done is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(read.done)
            for tensor in read.batch.tensors():
                # Or its memory could be given to the next batch while this one is computed.
                tensor.record_stream(stream)
        return read.batch
