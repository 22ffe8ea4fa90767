"""How the ids of qrels name the items of an index, whose own ids are absolute paths.

An id names an item if it is the item's id; or else if it is the item's path relative to one of these folders:
those that were given; or where none were, the folder of the qrels and the folders that the index was synced
from. With a corpus whose entry of this id has an image, that image's path is looked up in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.eval.beir import Document
from vlmkit_retrieval.eval.metrics import Qrels
from vlmkit_retrieval.scan import root_id


class Names:
    """Ids of qrels and ids of items, one to one.

    Args:
        names: The ids that qrels use.
        items: The ids of the index.
        folders: Where relative paths begin.
        corpus: Entries by id; those with an image stand for its file.

    Attributes:
        item_of: Item by name, for the names that are in the index.
        name_of: Name by item.

    Raises:
        RetrievalError: A name fits several items, or an item has several names.
    """

    def __init__(
        self,
        names: Iterable[str],
        items: Iterable[str],
        folders: Sequence[str | os.PathLike[str]],
        corpus: Mapping[str, Document] | None = None,
    ) -> None:
        self._items = set(items)
        self._folders = [root_id(folder) for folder in folders]
        self.item_of: dict[str, str] = {}
        self.name_of: dict[str, str] = {}
        for name in dict.fromkeys(names):
            entry = (corpus or {}).get(name)
            self._add(name, self._find(str(entry.image.absolute()) if entry and entry.image else name))

    def _find(self, name: str) -> list[str]:
        """The items that a name fits: at most one, if all is well."""
        if name in self._items:
            return [name]
        places = (Path(os.path.normpath(Path(folder, name))).as_posix() for folder in self._folders)
        return sorted({place for place in places if place in self._items})

    def _add(self, name: str, found: list[str]) -> None:
        if len(found) > 1:
            raise RetrievalError(
                f"{name!r} of the qrels is {' and '.join(found)}; say which with --root FOLDER"
            )
        for item in found:
            if item in self.name_of:
                raise RetrievalError(
                    f"{name!r} and {self.name_of[item]!r} of the qrels are one item, {item}; name it one way"
                )
            self.item_of[name], self.name_of[item] = item, name

    def rename(self, run: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """A run by the names of the qrels; an item without judgement keeps its id.

        Raises:
            RetrievalError: A query has an item twice, by its name and by its id.
        """
        return {query: self._renamed(query, scores) for query, scores in run.items()}

    def _renamed(self, query: str, scores: Mapping[str, float]) -> dict[str, float]:
        renamed = {self.name_of.get(item, item): score for item, score in scores.items()}
        if len(renamed) < len(scores):
            twice = next(item for item in scores if self.name_of.get(item, item) in scores.keys() - {item})
            raise RetrievalError(
                f"query {query!r} of the run has {twice!r} and {self.name_of[twice]!r}, which are one item; "
                "name it one way"
            )
        return renamed


def relevant_names(qrels: Qrels) -> set[str]:
    """Every name that is relevant to some query."""
    return {name for grades in qrels.values() for name, grade in grades.items() if grade > 0}


def judged_names(qrels: Qrels) -> list[str]:
    """Every name with a judgement, in order of the file."""
    return list(dict.fromkeys(name for grades in qrels.values() for name in grades))
