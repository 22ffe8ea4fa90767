"""A JSON file that is replaced in one step: who reads it, also after a kill, sees the old or the new one."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write beside the file and rename; the name beside it is this call's own.

    A kill leaves what it had begun to write: see `clear_unfinished`.

    Args:
        path: The file; its folder is there.
        content: JSON values.
    """
    # Not by `tempfile`: its files are their owner's alone, and others may read an index.
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with new.open("x", encoding="utf-8") as file:
            json.dump(content, file, indent=2, ensure_ascii=False, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def clear_unfinished(path: Path) -> None:
    """Remove what killed writers of a file left beside it; only who keeps all others from writing may."""
    for new in [path.with_name(f".{path.name}.new"), *path.parent.glob(f".{escape(path.name)}.*.new")]:
        new.unlink(missing_ok=True)
