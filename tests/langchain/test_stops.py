"""Stop sequences in a stream: nothing of them is shown, whatever the pieces."""

import numpy as np
import pytest

from vlmkit.langchain.stops import StopText


def shown(pieces, stops):
    text = StopText(stops)
    out = [text.push(piece) for piece in pieces]
    return out, "".join(out) + text.end(), text.found


def whole(text, stops):
    """What should be shown of a whole text: letter by letter, until it ends in a stop sequence."""
    for end in range(1, len(text) + 1):
        hit = max((len(stop) for stop in stops if text[:end].endswith(stop)), default=0)
        if hit:
            return text[: end - hit].strip()
    return text.strip()


def test_any_pieces_give_the_same_text():
    """Against cutting the whole text, over few letters so that stops and their beginnings are frequent."""
    draw = np.random.default_rng(0)
    for _ in range(3000):
        text = "".join(draw.choice(list("ab \n"), draw.integers(0, 24)))
        stops = ["".join(draw.choice(list("ab\n"), draw.integers(1, 4))) for _ in range(draw.integers(0, 3))]
        cuts = np.sort(draw.integers(0, len(text) + 1, draw.integers(0, 8)))
        pieces = [str(p) for p in (text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))]
        _, found, stopped = shown(pieces, stops)
        assert found == whole(text, stops), (text, stops, pieces)
        assert stopped == any(stop in text for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["a red", " circle"], [], ["a red", " circle"]),
        (["a red ", "circle"], [], ["a red", " circle"]),  # a space waits for what follows it
        (["  a"], [], ["a"]),
        (["one EN", "D two"], ["END"], ["one", ""]),
        (["one EN", "TER"], ["END"], ["one", " ENTER"]),
        (["one", " END"], ["END", "one E"], ["", ""]),  # the one that is complete first counts
    ],
)
def test_what_is_shown_when(pieces, stops, expected):
    assert shown(pieces, stops)[0] == expected


def test_looking_ahead_takes_nothing():
    text = StopText(["END"])
    text.push("E")
    assert text.would_stop("ND") and not text.would_stop("N")
    assert not text.found and text.push("x") == "Ex"
