"""Data formats: name to a function of plain keyword arguments that gives samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlmkit.data.formats.easy_vqa import easy_vqa, question_type
from vlmkit.data.formats.hf_dataset import hf_dataset
from vlmkit.data.formats.image_captions import image_captions
from vlmkit.data.formats.llava_json import llava_json
from vlmkit.data.formats.mixture import mixture
from vlmkit.data.formats.table import table
from vlmkit.data.formats.webdataset import webdataset
from vlmkit.data.sample import Sample

DATA_FORMATS: dict[str, Callable[..., Sequence[Sample]]] = {
    "easy_vqa": easy_vqa,
    "hf_dataset": hf_dataset,
    "image_captions": image_captions,
    "llava_json": llava_json,
    "mixture": mixture,
    "table": table,
    "webdataset": webdataset,
}


def with_check(
    make: Callable[..., Sequence[Sample]], options: Mapping[str, Any], check: bool
) -> dict[str, Any]:
    """The options of a format; where `check` is off it is so in the formats that have it."""
    if check or "check" not in inspect.signature(make).parameters:
        return dict(options)
    return {**options, "check": False}


# What kind of question a reference answer belongs to; scores are given for each kind on its own.
ANSWER_KINDS: dict[str, Callable[[str], str]] = {"easy_vqa": question_type}
