"""Which files beside an image hold its caption: by names alone, so that a scan can tell without opening one.

Two ways, as people have them: a file beside the image with its name and `.txt`, `.caption` or `.json` (the
layout of img2dataset and clip-retrieval), and one file a folder, `metadata.jsonl` (Hugging Face's
imagefolder), `captions.jsonl` or `captions.json`, for the images of its folder and of the folders below.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from vlmkit_retrieval.images import SUFFIXES

SIDECARS = (".txt", ".caption", ".json")
METADATA = ("metadata.jsonl", "captions.jsonl", "captions.json")


def metadata(names: Iterable[str]) -> list[str]:
    """Those names of a folder that hold captions of many images, sorted."""
    return sorted(name for name in names if name.lower() in METADATA)


def pair(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The sidecar files of each image of a folder that has any.

    Names fit when they are equal up to the suffix; where that leaves a sidecar without an image, case is not
    looked at (`IMG_1.JPG`, `img_1.txt`). Several images may share a sidecar (`a.png`, `a.jpg`).
    """
    images: dict[str, list[str]] = defaultdict(list)
    sidecars: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        stem, suffix = PurePath(name).stem, PurePath(name).suffix.lower()
        if suffix in SUFFIXES:
            images[stem].append(name)
        elif suffix in SIDECARS and name.lower() not in METADATA:
            sidecars[stem].append(name)
    orphans = _by_folded_name({stem: found for stem, found in sidecars.items() if stem not in images})
    fitting = {stem: sidecars.get(stem, []) + orphans.get(stem.casefold(), []) for stem in images}
    return {name: tuple(fitting[stem]) for stem, found in images.items() for name in found if fitting[stem]}


def _by_folded_name(files: Mapping[str, list[str]]) -> dict[str, list[str]]:
    folded: dict[str, list[str]] = defaultdict(list)
    for stem, names in files.items():
        folded[stem.casefold()] += names
    return folded
