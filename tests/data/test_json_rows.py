"""Rows of JSON files by number: the same as Python's reader, from any cut, and nothing kept."""

import json
import pickle
import random

import pytest

from vlmkit.data.formats import json_rows
from vlmkit.data.formats.json_rows import JsonRows
from vlmkit.errors import VlmkitError

# What a scanner that is not exact stumbles over.
HARD = ['"', "\\", '\\"', "[{", "}],", "é", "\u2028", "😀", "\n", "\x7f", ", ", "\\u0041", "\ufeff", "\x85"]


def random_rows(seed, count):
    draw = random.Random(seed)

    def text():
        return "".join(draw.choice([*HARD, "a", " "]) for _ in range(draw.randrange(12)))

    def value(depth):
        kind = draw.randrange(6 if depth else 3)
        if kind == 3:
            return [value(depth - 1) for _ in range(draw.randrange(3))]
        if kind > 3:
            return {text(): value(depth - 1) for _ in range(draw.randrange(3))}
        return [text(), draw.random() * 10 ** draw.randrange(-9, 9), None][kind]

    return [{"id": i, text(): value(3)} for i in range(count)]


def written(rows, form, draw):
    """The rows in one of the ways in which they can be written."""
    ascii_only = draw.random() < 0.5
    if form == "jsonl":
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
        return "".join(line + draw.choice(["\n", "\r\n", "\n\n", " \n"]) for line in lines)
    indent = draw.choice([None, 2, "\t"])
    return draw.choice(["", " \n"]) + json.dumps(rows, ensure_ascii=ascii_only, indent=indent) + "\n"


@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
def test_every_row_is_what_pythons_reader_makes_of_it(tmp_path, monkeypatch, form, chunk):
    """The window ends at every place there is: within strings, escapes, and characters of several bytes."""
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    path = tmp_path / f"rows.{form}"
    for seed in range(15):
        rows = random_rows(seed, seed)
        path.write_bytes(written(rows, form, random.Random(seed)).encode())
        found = JsonRows(path)
        assert len(found) == len(rows)
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        assert [found[i][1] for i in order] == [rows[i] for i in order]


def test_rows_are_named_by_line_or_number_and_a_limit_reads_no_further(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n{bad')
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": 2}, {bad')
    assert [JsonRows(tmp_path / "a.jsonl", limit=2)[i][0][-6:] for i in (0, 1)] == ["line 1", "line 3"]
    assert [JsonRows(tmp_path / "a.json", limit=2)[i][0][-5:] for i in (0, 1)] == ["row 0", "row 1"]
    for name, place in (("a.jsonl", "line 4"), ("a.json", "row 2")):
        with pytest.raises(VlmkitError, match=f"{place} is not JSON"):
            JsonRows(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}', "after row 0, at byte 9, ',' or ']' is needed, found 'the end of the file'"),
        ('[{"a": 1} {"a": 2}]', "after row 0, at byte 10, ',' or ']' is needed, found '{'"),
        ('[{"a": 1}] x', "'x' at byte 11, after the list"),
        ('[{"a": 1},]', r"row 1 is not JSON \(Expecting value, byte 10\)"),
        ('[{"é": "é', r"row 0 is not JSON \(Unterminated string starting at, byte 8\)"),
        ('[{"a": 1}, null]', "row 1 is a NoneType; an object is needed"),
        ("", "starts with ''; a list of objects is needed"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2**20])
def test_what_is_wrong_is_said_with_its_place(tmp_path, monkeypatch, text, message, chunk):
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    (tmp_path / "a.json").write_bytes(text.encode())
    with pytest.raises(VlmkitError, match=message):
        JsonRows(tmp_path / "a.json")


def test_the_check_sees_every_row_once_before_any_is_used(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"a": {i}}}\n' for i in range(5)))
    seen = []
    rows = JsonRows(tmp_path / "a.jsonl", lambda place, row: seen.append((place, row)))
    assert seen == [rows[i] for i in range(5)]


def test_a_file_that_changes_is_noticed_and_rows_survive_pickling(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    rows = pickle.loads(pickle.dumps(JsonRows(path)))
    assert rows[1][1] == {"a": 2}
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    with pytest.raises(VlmkitError, match=r"a\.jsonl was changed while it is in use; start again"):
        rows[1]
    path.unlink()
    with pytest.raises(VlmkitError, match="cannot be read any more"):
        rows[1]


def test_what_stays_in_memory_is_where_rows_are(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "' + "x" * 1000 + '"}\n')
    (tmp_path / "b.jsonl").write_text(('{"a": "' + "x" * 1000 + '"}\n') * 500)
    sizes = [len(pickle.dumps(JsonRows(tmp_path / name))) for name in ("a.jsonl", "b.jsonl")]
    assert sizes[1] - sizes[0] < 500 * 17
