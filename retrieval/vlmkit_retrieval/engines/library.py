"""What an engine must get from one library: a few calls, and no use after a fork or after `close`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from vlmkit_retrieval.engines.checks import Row
from vlmkit_retrieval.engines.records import Record, Scored
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.types import PayloadKind, Space, Vector
from vlmkit_retrieval.where import Where


@dataclass(frozen=True)
class Asked:
    """A checked search: the arguments of `Engine.search` without `k`."""

    name: str
    query: Vector
    where: Where | None
    exact: bool
    corpus: Where | None


class Library(ABC):
    """One library's storage: the calls below get checked arguments, and are made while it is usable.

    Attributes:
        location: For messages.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self._pid = os.getpid()
        self._closed = False

    def close(self) -> None:
        """See `Engine.close`."""
        if not self._closed and self._pid == os.getpid():
            self._close()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise RetrievalError(
                f"{self.location} was opened by process {self._pid}, this is its forked child {os.getpid()}, "
                "and the engine does not survive a fork; use the 'spawn' start method, or ask the parent"
            )
        if self._closed:
            raise RetrievalError(f"{self.location} is closed; open it again")

    @abstractmethod
    def _made(self) -> bool:
        """Whether there is anything to read from or to write to: the first space makes it."""

    @abstractmethod
    def _spaces(self) -> Mapping[str, Space]: ...

    @abstractmethod
    def _add_spaces(self, spaces: Mapping[str, Space]) -> None: ...

    @abstractmethod
    def _drop_space(self, name: str) -> None: ...

    @abstractmethod
    def _index_payload(self, path: str, kind: PayloadKind) -> None: ...

    @abstractmethod
    def _put(self, rows: Sequence[Row]) -> None: ...

    @abstractmethod
    def _put_vectors(self, rows: Sequence[Row]) -> None: ...

    @abstractmethod
    def _put_payloads(self, payloads: Mapping[str, Mapping[str, Any]]) -> None: ...

    @abstractmethod
    def _drop(self, uuids: list[str]) -> None: ...

    @abstractmethod
    def _fetch(self, uuids: list[str], with_vectors: bool) -> Sequence[Record]: ...

    @abstractmethod
    def _ids(self, where: Where | None) -> Iterator[Record]:
        """Every such row with the user's id in its payload, in any order."""

    @abstractmethod
    def _nearest(self, asked: Asked, limit: int) -> Sequence[Scored]:
        """The best rows with payload and, but for a sparse space, their vector of it; best first."""

    @abstractmethod
    def _count(self, where: Where | None) -> int: ...

    @abstractmethod
    def _close(self) -> None: ...
