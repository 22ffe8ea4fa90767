"""What an index holds, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Of an encoder of each kind: what it takes of an item, and how wide what it makes is.
_TAKES = {"image": "images", "text": "texts", "terms": "words (BM25)", "patches": "patches"}
_WIDTHS = {"image": "{} numbers", "text": "{} numbers", "patches": "{} numbers a patch"}


def info_lines(info: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a reader.

    Args:
        info: See `Index.info`.
    """
    yield f"index: {info['path']}"
    yield f"engine: {_engine(info['engine'])}"
    yield f"items: {info['items']:,}"
    yield f"kinds of files: {', '.join(info['kinds']) or 'nothing was synced'}"
    yield from (f"synced: {root}" for root in info["roots"])
    yield from (f"encoder {name}: {_encoder(entry)}" for name, entry in info["encoders"].items())


def _engine(location: str) -> str:
    """A place in the index's own folder says little alone."""
    from vlmkit_retrieval.engines import engine_kind

    words = {"directory": "embedded, in the folder {}", "local": "{} (local mode of qdrant-client)"}
    return words.get(engine_kind(location), "{}").format(location)


def _encoder(entry: Mapping[str, Any]) -> str:
    kind, items = entry["kind"], entry["items"]
    parts = [f"{_TAKES[kind]} of {items:,} item{'' if items == 1 else 's'}"]
    parts += [_WIDTHS[kind].format(entry["dim"])] if kind in _WIDTHS else []
    parts += [f"searched by {_asked(entry)}", _place(entry), f"fingerprint {entry['fingerprint'][:12]}"]
    return ", ".join(parts)


def _asked(entry: Mapping[str, Any]) -> str:
    if entry["kind"] in ("text", "terms"):
        return "text"
    return "text and image" if entry["text"] else "image"


def _place(entry: Mapping[str, Any]) -> str:
    if not entry["reference"]:
        return "how to load it is not stored"
    return f"{'in' if entry['kind'] == 'terms' else 'from'} {entry['reference']}"
