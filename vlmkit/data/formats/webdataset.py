"""WebDataset shards: tars in which the files of a sample have the same name up to the first dot."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.data.formats.files import Row, check_any, check_limit, matching
from vlmkit.data.formats.hf_rows import Columns, read_sample
from vlmkit.data.formats.image_captions import SUFFIXES
from vlmkit.data.formats.lazy import LazySamples
from vlmkit.data.formats.tar_index import ShardIndex, shard_index
from vlmkit.data.sample import FileSlice, Sample
from vlmkit.errors import UsageError, VlmkitError

TEXT_FIELDS = ("messages", "conversations", "texts")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def webdataset(
    shards: str | list[str],
    text: str | None = None,
    images: list[str] | None = None,
    limit: int | None = None,
    check: bool = True,
) -> Sequence[Sample]:
    """WebDataset tars: images with a `.json` (a conversation) or a `.txt` (a caption) of the same key.

    Images of a key are members with the suffix of one (`.jpg`) or with a number before it (`.0.jpg`,
    `.1.jpg`); several are shown in the order of the tar. An image with another word there (`.seg.png`) is an
    error, unless `images` says what to read. The `.json` is a list of turns, or an object with one under
    `messages`, `conversations` or `texts`; what else is in it is not read. A `.txt` is a caption, and the
    answer where there is no such conversation. Other members are left alone.

    Samples are read in any order: one pass over the headers of a shard finds every member, and what it found
    is kept under `~/.cache/vlmkit/tar` (`$VLMKIT_CACHE`). Nothing is unpacked, no file is kept open, and
    images are read when a batch needs them.

    Args:
        shards: A path, a pattern (`data/*.tar`), or braces (`data/{000..127}.tar`, `{a,b}.tar`); or a list of
            them. Local files, not packed.
        text: Field of the conversation in the `.json`, if it is none of those above.
        images: Suffixes of the images that are shown (`[jpg]`, `[seg.png]`), with or without a number; others
            are left alone.
        limit: Use the first so many samples.
        check: Refuse a sample without text, an image of unknown use, or a malformed first one, at the start;
            else when it is reached.

    Raises:
        UsageError: No such file, or one named twice.
        VlmkitError: A shard is damaged or cut off, or a sample has no text; names shard and member.
    """
    check_limit(limit)
    paths = shard_paths([shards] if isinstance(shards, str) else shards)
    rule = ImageRule(frozenset(suffix.lower().lstrip(".") for suffix in images or ()))
    indexes: list[ShardIndex] = []
    found = 0
    for path in paths:
        indexes.append(shard_index(path))
        if check:
            _check_text(path, indexes[-1])
            _check_images(path, indexes[-1], rule)
        found += len(indexes[-1].first_S1) - 1
        if limit is not None and found >= limit:
            break
    used = found if limit is None else min(found, limit)
    samples = TarSamples(paths[: len(indexes)], indexes, text, rule, used)
    check_any(range(len(samples)), ", ".join(map(str, paths[:3])))
    if check:
        _ = samples[0]
    return samples


class TarSamples(LazySamples):
    """Samples of several shards, one shard after the other.

    Args:
        paths: The shards.
        indexes: Of each one.
        text: Field of the conversation; None for `TEXT_FIELDS`.
        rule: Which members are images.
        used: How many samples are used.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        indexes: Sequence[ShardIndex],
        text: str | None,
        rule: ImageRule,
        used: int,
    ) -> None:
        self.paths, self.indexes, self.text, self.used = list(paths), list(indexes), text, used
        self.rule = rule
        self.suffixes = [index.suffix_names for index in indexes]
        self.stamps = [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in self.paths)]
        self.ends_H = np.array(list(accumulate(len(index.first_S1) - 1 for index in indexes)))

    def __len__(self) -> int:
        return self.used

    def read(self, number: int) -> Sample:
        """A sample with its images as parts of the tar."""
        shard, own_number = self._place(number)
        key, members = self._members(shard, own_number)
        images = [m for suffix, m in members if self.rule.takes(suffix, m)]
        own = dict(members)
        caption = _text(own["txt"]).strip() if "txt" in own else ""
        said = self._conversation(own["json"]) if "json" in own else None
        place = f"{self.paths[shard]}/{key}"
        if said is None and not (caption and images):
            lacks = "no image for its caption" if caption else "neither a conversation nor a caption"
            raise VlmkitError(f"{place} has {lacks}; add it, or remove the sample")
        talk = said if said is not None else [{"user": "", "assistant": caption}]
        sample = read_sample({"json": talk, "images": images}, place, Columns("json", "images", None))
        return replace(sample, captions=(caption,) if caption else ())

    def name(self, number: int) -> str:
        """Shard and key, the id that it would have."""
        shard, own_number = self._place(number)
        return f"{self.paths[shard]}/{self.indexes[shard].key(own_number)}"

    def _place(self, number: int) -> tuple[int, int]:
        """Which shard, and which of its samples."""
        shard = int(np.searchsorted(self.ends_H, number, side="right"))
        return shard, number - (int(self.ends_H[shard - 1]) if shard else 0)

    def _members(self, shard: int, sample: int) -> tuple[str, list[tuple[str, FileSlice]]]:
        index, path = self.indexes[shard], self.paths[shard]
        key, suffixes = index.key(sample), self.suffixes[shard]
        found: list[tuple[str, FileSlice]] = []
        for m in range(int(index.first_S1[sample]), int(index.first_S1[sample + 1])):
            suffix = suffixes[index.kind_M[m]]
            place = int(index.offset_M[m]), int(index.size_M[m])
            where = FileSlice(path, *place, f"{key}.{suffix}", self.stamps[shard])
            found.append((suffix, where))
        return key, found

    def _conversation(self, member: FileSlice) -> Any:
        """The turns in a `.json`; None where it has none."""
        try:
            content: Row | list[Any] = json.loads(member.read())
        except ValueError as error:
            if isinstance(error, VlmkitError):
                raise
            raise VlmkitError(f"{member} is not JSON ({error}); repair it") from None
        if isinstance(content, list):
            return content
        if not isinstance(content, dict):
            raise VlmkitError(f"{member}: an object or a list is needed, found {type(content).__name__}")
        fields = TEXT_FIELDS if self.text is None else (self.text,)
        found = [field for field in fields if content.get(field) is not None]
        if len(found) > 1:
            raise VlmkitError(f"{member} has {' and '.join(found)}; name the one to read with text: FIELD")
        return content[found[0]] if found else None


@dataclass(frozen=True)
class ImageRule:
    """Which members are the images of a sample.

    Attributes:
        wanted: Suffixes, in small letters and without a dot in front; empty for all suffixes of images.
    """

    wanted: frozenset[str]

    def takes(self, suffix: str, member: object) -> bool:
        """Whether a member is one: `.jpg`, or numbered as `.0.jpg`.

        Raises:
            VlmkitError: It may be an image of another use, as `.seg.png`; nobody can tell whether to show it.
        """
        before, dot, last = suffix.rpartition(".")
        plain = not dot or before.isdecimal()
        if self.wanted:
            return suffix in self.wanted or (plain and last in self.wanted)
        if f".{last}" not in SUFFIXES or plain:
            return f".{last}" in SUFFIXES
        raise VlmkitError(
            f"{member}: what is shown is named .{last}, or with a number .0.{last}; this may be for "
            f"another use. Say which to read, as images: [{last}] or images: [{suffix}]"
        )


def _text(member: FileSlice) -> str:
    try:
        return member.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise VlmkitError(f"{member} is not UTF-8 text ({error}); convert it") from None


def _check_text(path: Path, index: ShardIndex) -> None:
    """Refuse samples without text."""
    texts = np.array([suffix in ("json", "txt") for suffix in index.suffix_names])
    if not len(index.kind_M):
        return
    has_S = np.add.reduceat(texts[index.kind_M], index.first_S1[:-1])
    if not has_S.all():
        missing = np.flatnonzero(has_S == 0)
        raise VlmkitError(
            f"{path}: {len(missing)} of {len(has_S)} samples have neither a .json nor a .txt, the first is "
            f"{index.key(int(missing[0]))!r}; add them, or remove these samples"
        )


def _check_images(path: Path, index: ShardIndex, rule: ImageRule) -> None:
    """Refuse images of unknown use, which are found by their suffix alone."""
    for kind, suffix in enumerate(index.suffix_names):
        first = np.flatnonzero(index.kind_M == kind)[:1]
        if len(first):
            sample = int(np.searchsorted(index.first_S1, first[0], side="right")) - 1
            rule.takes(suffix, f"{path}, member {index.key(sample)}.{suffix}")


def shard_paths(patterns: Sequence[str]) -> list[Path]:
    """The files that patterns name, in their order; those of one `*` sorted.

    Raises:
        UsageError: A pattern names no file, a URL or a pipe, or a file comes twice.
    """
    paths: list[Path] = []
    for pattern in patterns:
        if "://" in pattern or pattern.startswith("pipe:"):
            raise UsageError(f"shards: {pattern!r}: shards are local files; download them first")
        for expanded in expand_braces(pattern):
            paths += matching(expanded)
    twice = {str(path) for path in paths if paths.count(path) > 1} if len(set(paths)) < len(paths) else set()
    if twice:
        raise UsageError(f"shards: {', '.join(sorted(twice))} is named twice; name it once")
    return paths


def expand_braces(pattern: str) -> list[str]:
    """`{08..10}` and `{a,b}` written out, from left to right; a range keeps its zeros in front."""
    pieces = _BRACES.split(pattern)
    choices = [[piece] if i % 2 == 0 else _choices(piece) for i, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    if match := _RANGE.fullmatch(inside):
        first, last = match.groups()
        return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return inside.split(",")
