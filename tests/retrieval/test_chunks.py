from __future__ import annotations

import random
from itertools import pairwise

import pytest

from vlmkit_retrieval.sources.chunks import chunks

WORDS = [
    "a",
    "tree",
    "stands.",
    "Where?",
    "in",
    "the",
    "forest!",
    "x" * 90,
    "日本語。",
    "   ",
    "\t",
    "#",
    "é",
]
ENDS = [
    "\n",
    "\n\n",
    "\n\n\n",
    " ",
    " ",
    " ",
    "\r\n",
    "\n# Title\n",
    "\n## Below\n\n",
    "\n```\n",
    " \n \n",
    "\u2028",
]


def document(seed: int, words: int = 300) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice(ENDS) for _ in range(draw.randrange(words)))


def shape(seed: int) -> tuple[int, int]:
    draw = random.Random(seed)
    size = draw.randrange(20, 300)
    return size, draw.randrange((size + 1) // 2)


def cut(text: str, size: int = 60, overlap: int = 0) -> list[str]:
    return [text[c.start : c.end] for c in chunks(text, size, overlap, markdown=True)]


@pytest.mark.parametrize("seed", range(60))
def test_chunks_cover_the_text_and_are_bounded(seed):
    text, (size, overlap) = document(seed), shape(seed)
    found = list(chunks(text, size, overlap, markdown=bool(seed % 2)))
    covered = [False] * len(text)
    for chunk in found:
        assert 0 < chunk.end - chunk.start <= size
        assert text[chunk.start : chunk.end] == text[chunk.start : chunk.end].strip()
        covered[chunk.start : chunk.end] = [True] * (chunk.end - chunk.start)
    assert all(covered[n] for n in range(len(text)) if not text[n].isspace())
    for before, after in pairwise(found):
        assert before.start < after.start
        assert before.end < after.end
        assert before.end - after.start <= overlap


@pytest.mark.parametrize("seed", range(60))
def test_a_change_behind_leaves_a_chunk_as_it_is(seed):
    text, (size, overlap) = document(seed), shape(seed)
    found = list(chunks(text, size, overlap, markdown=bool(seed % 2)))
    for number, chunk in enumerate(found):
        place = chunk.start + 2 * size
        if place < len(text):
            changed = text[:place] + document(seed + number + 1000, 30)
            assert (
                list(chunks(changed, size, overlap, markdown=bool(seed % 2)))[: number + 1]
                == found[: number + 1]
            )


def test_a_section_is_not_joined_with_the_next():
    text = "# One\nfirst\n\n## Two\n\nsecond\n\nthird\n# Three\nfourth\n"
    assert cut(text) == ["# One\nfirst", "## Two\n\nsecond\n\nthird", "# Three\nfourth"]
    headings = [chunk.headings for chunk in chunks(text, 60, 0, markdown=True)]
    assert headings == [("One",), ("One", "Two"), ("Three",)]


def test_a_comment_in_a_code_fence_is_no_heading():
    assert cut("# One\n```sh\n# not two\n~~~\n```\n# Three\n") == [
        "# One\n```sh\n# not two\n~~~\n```",
        "# Three",
    ]
    assert [c.headings for c in chunks("# One\n", 60, 0)] == [()]


def test_a_long_paragraph_is_cut_behind_a_sentence_or_a_word():
    text = "One two three four five. Six seven eight nine ten eleven"
    assert cut(text, 36) == ["One two three four five.", "Six seven eight nine ten eleven"]
    assert cut(text.replace(".", ""), 36) == ["One two three four five Six seven", "eight nine ten eleven"]
    assert cut("x" * 50, 20) == ["x" * 20, "x" * 20, "x" * 10]


def test_the_overlap_begins_with_a_word_of_the_same_section():
    text = "one two three four five six seven eight nine ten"
    assert cut(text, 24, 8) == ["one two three", "three four five six", "six seven eight", "eight nine ten"]
    assert cut("# A\nlong enough to stand alone\n# B\nmore", 30, 10)[-1] == "# B\nmore"


def test_an_overlap_of_half_a_chunk_is_refused():
    with pytest.raises(ValueError, match="overlap of 30 is not less than half of a chunk of 60"):
        cut("text", 60, 30)
