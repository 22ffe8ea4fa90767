"""easy-VQA: 5,000 images of one coloured shape with 48,248 questions (github.com/vzhou842/easy-VQA)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from vlmkit.data.formats.files import check_limit
from vlmkit.data.sample import IMAGE, Conversation, Message, Sample
from vlmkit.errors import MissingExtraError, VlmkitError, unknown_name

Facts = dict[str, str]
Pairs = list[tuple[str, str]]

COLOURS: Final = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES: Final = ("circle", "rectangle", "triangle")
# Every tenth training image is held out to choose by; the test images are never chosen by.
SPLITS: Final[dict[str, tuple[str, Callable[[int], bool]]]] = {
    "train": ("train", lambda image_id: image_id % 10 != 0),
    "val": ("train", lambda image_id: image_id % 10 == 0),
    "train+val": ("train", lambda image_id: True),
    "test": ("test", lambda image_id: True),
}
_COLOUR, _SHAPE = f"(?P<colour>{'|'.join(COLOURS)})", f"(?P<shape>{'|'.join(SHAPES)})"
_THING = f"(?:{_COLOUR} shape|{_SHAPE})"
_ASKS_SHAPE = re.compile(
    rf"what shape (?:is in the image|is present|does the image contain)|what is the {_COLOUR} shape"
)
_ASKS_COLOUR = re.compile(rf"what (?:color is|is the color of) the (?:shape|{_SHAPE})")
_ASKS_WHETHER = re.compile(
    rf"(?:does the image (?P<not1>not )?contain a|is there (?P<not2>not )?a|is (?:a|(?P<not3>no))) {_THING}"
    r"(?: in the image| present)?"
)


def easy_vqa(split: str = "train", limit: int | None = None) -> Sequence[Sample]:
    """One sample an image, with all its questions as conversations of their own.

    Captions say what the image's own questions and answers tell about it: colour and shape, one of them, or
    nothing.

    Args:
        split: `train` (3,600 images), `val` (400: the training images whose number is a multiple of 10),
            `train+val`, or `test` (1,000).
        limit: Use the first so many images.

    Raises:
        UsageError: No such split.
        MissingExtraError: The package easy-vqa is not installed.
    """
    if split not in SPLITS:
        raise unknown_name("split of easy_vqa", split, SPLITS)
    check_limit(limit)
    source, chosen = SPLITS[split]
    paths, pairs = _load(source)
    image_ids = [i for i in sorted(pairs) if chosen(i)][:limit]
    return [_sample(f"easy_vqa/{source}/{i}", Path(paths[i]), pairs[i]) for i in image_ids]


def question_type(answer: str) -> Literal["shape", "colour", "yes/no"]:
    """What kind of question has this reference answer.

    Raises:
        VlmkitError: It is none of the data set's 13 answers.
    """
    if answer in SHAPES:
        return "shape"
    if answer in COLOURS:
        return "colour"
    if answer in ("yes", "no"):
        return "yes/no"
    known = ", ".join((*SHAPES, *COLOURS, "yes", "no"))
    raise VlmkitError(f"{answer!r} is not an answer of easy-VQA (known: {known})")


def facts(question: str, answer: str) -> Facts:
    """What a question and its answer tell for certain: `colour`, `shape`, both, or nothing (a bare denial).

    `what is the red shape? circle` tells both.

    Raises:
        VlmkitError: The question is none of the data set's, or the answer does not answer it.
    """
    text, kind = question.removesuffix("?"), question_type(answer)
    for pattern, answers in ((_ASKS_SHAPE, "shape"), (_ASKS_COLOUR, "colour"), (_ASKS_WHETHER, "yes/no")):
        match = pattern.fullmatch(text)
        if match and answers == kind:
            said = {k: v for k, v in match.groupdict().items() if v and k in ("colour", "shape")}
            if kind != "yes/no":
                return {**said, kind: answer}
            negated = any(v for k, v in match.groupdict().items() if k.startswith("not"))
            return said if (answer == "yes") != negated else {}
    raise VlmkitError(f"easy-VQA question {question!r} with the answer {answer!r} is not understood")


def captions(pairs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Captions from all questions and answers of an image, the fullest first.

    Raises:
        VlmkitError: They contradict each other.
    """
    known: Facts = {}
    for question, answer in pairs:
        for kind, value in facts(question, answer).items():
            if known.setdefault(kind, value) != value:
                raise VlmkitError(f"{question!r} {answer!r} contradicts the {kind} {known[kind]!r}")
    colour, shape = known.get("colour"), known.get("shape")
    both = [f"a {colour} {shape}"] if colour and shape else []
    return (*both, *([f"a {colour} shape"] if colour else []), *([f"a {shape}"] if shape else []))


def _load(source: str) -> tuple[dict[int, str], dict[int, Pairs]]:
    """Image files and question-answer pairs, by image number."""
    try:
        import easy_vqa as package
    except ImportError:
        raise MissingExtraError("easy-vqa", "demo") from None
    read: Any = package.get_train_questions if source == "train" else package.get_test_questions
    paths = package.get_train_image_paths() if source == "train" else package.get_test_image_paths()
    pairs: dict[int, Pairs] = {}
    for question, answer, image_id in zip(*read()):
        pairs.setdefault(image_id, []).append((question, answer))
    return paths, pairs


def _sample(name: str, path: Path, pairs: Pairs) -> Sample:
    return Sample(name, (path,), tuple(_conversation(q, a) for q, a in pairs), captions(pairs))


def _conversation(question: str, answer: str) -> Conversation:
    return (Message("user", (IMAGE, question)), Message("assistant", (answer,)))
