"""The same work on many numbers in worker processes, in order, without holding more than a few results.

By torch's data loader, as in training: workers end with the parent, also when it is interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]


class _Chunks(Dataset[Result], Generic[Result]):
    """Chunk number to what the work makes of its numbers."""

    def __init__(self, work: Callable[[Sequence[int]], Result], numbers: Sequence[int], size: int) -> None:
        self.work, self.numbers, self.size = work, numbers, size

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.size)

    def __getitem__(self, chunk: int) -> Result:
        return self.work(self.numbers[chunk * self.size : (chunk + 1) * self.size])


def in_chunks(
    work: Callable[[Sequence[int]], Result],
    numbers: Sequence[int],
    workers: int,
    told: Callable[[int], object],
    size: int = 64,
) -> Iterator[Result]:
    """Results of the work on pieces of `numbers`, in order.

    Args:
        work: A function of some numbers; it is forked or pickled into the workers.
        numbers: All.
        workers: Processes; 0 works in this one.
        told: Called with how many are done.
        size: Numbers a piece.
    """
    chunks = _Chunks(work, numbers, size)
    if not len(chunks):
        return
    loader = DataLoader(
        chunks, None, num_workers=min(workers, len(chunks)) if len(chunks) > 1 else 0, collate_fn=_as_it_is
    )
    for done, result in enumerate(loader, 1):
        told(min(done * size, len(numbers)))
        yield result


def _as_it_is(result: Result) -> Result:
    return result
