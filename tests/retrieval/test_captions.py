from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vlmkit_retrieval.scan import FileState, scan
from vlmkit_retrieval.sidecars import pair
from vlmkit_retrieval.sources import Reader


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")


def taken(folder: Path, *others: Path) -> tuple[dict[str, str | None], list[str]]:
    """Captions by path in the folder, and lines of refusal by the file's name."""
    found = scan([folder, *others])
    with Reader(found.files) as reader:
        items = [item for file in found.files.values() for item in reader.read(file)]
    captions = {os.path.relpath(item.id, folder): item.text for item in items}
    return captions, [f"{Path(bad.path).name}: {bad.reason}" for bad in reader.refused]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "a.txt"], {"a.png": ("a.txt",)}),
        (["a.PNG", "a.TXT"], {"a.PNG": ("a.TXT",)}),
        (["IMG_1.JPG", "img_1.txt"], {"IMG_1.JPG": ("img_1.txt",)}),
        (["a.png", "A.png", "a.txt"], {"a.png": ("a.txt",)}),
        (["a.png", "a.jpg", "a.txt"], {"a.png": ("a.txt",), "a.jpg": ("a.txt",)}),
        (["a.png", "a.json", "a.caption"], {"a.png": ("a.caption", "a.json")}),
        (["a.tar.png", "a.txt", "a.tar.txt"], {"a.tar.png": ("a.tar.txt",)}),
        (["metadata.png", "metadata.jsonl", "captions.json"], {}),
        (["a.pdf", "a.txt"], {}),
    ],
)
def test_names_are_paired(names, expected):
    assert pair(names) == expected
    assert pair(reversed(names)) == expected


def test_every_way_of_writing_a_caption(photos):
    write(photos, red_txt=" a red square \n", green_json='{"caption": "a green one", "url": "x"}')
    (photos / "deep" / "metadata.jsonl").write_text('{"file_name": "blue.png", "text": "blue"}\n')
    captions, refused = taken(photos)
    assert captions == {"red.png": "a red square", "green.png": "a green one", "deep/blue.png": "blue"}
    assert refused == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.json", {"red.png": "r", "deep/blue.png": ["b", "b", "c"]}),
        (
            "captions.json",
            [{"image": "red.png", "caption": "r"}, {"file_name": "deep/blue.png", "text": ["b", "c"]}],
        ),
        (
            "Captions.JSONL",
            '{"file_name": "red.png", "text": "r"}\n\n{"image": "deep/./blue.png", "caption": "b"}\n'
            '{"image": "deep/blue.png", "caption": "c", "text": "c"}',
        ),
    ],
)
def test_one_file_for_a_folder_and_those_below(photos, name, content):
    (photos / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert taken(photos) == ({"red.png": "r", "green.png": None, "deep/blue.png": "b\nc"}, [])


def test_the_source_of_a_caption_is_told(photos):
    write(photos, red_txt="red")
    found = scan([photos])
    with Reader(found.files) as reader:
        payloads = {Path(f.id).name: next(reader.read(f)).payload for f in found.files.values()}
    assert payloads["red.png"]["caption_source"] == (photos / "red.txt").as_posix()
    assert "caption_source" not in payloads["green.png"]


def test_files_that_disagree_are_a_line(photos):
    write(
        photos, red_txt="a red one", red_json='{"caption": "a blue one"}', captions_json='{"green.png": "g"}'
    )
    write(photos, green_txt="g")
    captions, refused = taken(photos)
    assert captions == {"red.png": None, "green.png": "g", "deep/blue.png": None}
    assert len(refused) == 1
    assert refused[0].startswith("red.txt: another caption of red.png than in ")
    assert refused[0].endswith("red.json; keep one (it has none now)")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "row 2 is not JSON"),
        ("[1]", "row 2 is no object"),
        ('{"text": "x"}', "row 2 names no image ('file_name' or 'image')"),
        ('{"file_name": "red.png"}', "row 2 has neither 'text' nor 'caption'"),
        ('{"file_name": "red.png", "text": 7}', "row 2 has a caption that is no text (int)"),
        ('{"file_name": "red.png", "text": "a", "caption": "b"}', "row 2 has a 'text' and another 'caption'"),
        ('{"file_name": "gone.png", "text": "x"}', "no image that was found"),
        ('{"file_name": "../photos/red.png", "text": "x"}', "is no path below its folder"),
        (json.dumps({"file_name": "red.png", "text": "x" * 20_001}), "20,001 characters, more than 20,000"),
    ],
)
def test_a_bad_row_is_a_line_and_the_others_count(photos, line, reason):
    write(photos, metadata_jsonl=f'{{"file_name": "green.png", "text": "g"}}\n{line}\n{line}\n')
    captions, refused = taken(photos)
    assert captions["green.png"] == "g"
    assert captions["red.png"] is None
    assert len(refused) == 1
    assert reason in refused[0]
    assert refused[0].endswith("(and 1 rows more)")


def test_rows_of_images_that_are_gone_do_not_spoil_the_others(photos, monkeypatch):
    """What is no row at all tells that the file is something else; an image that was deleted does not."""
    monkeypatch.setattr("vlmkit_retrieval.sources.caption_rows.MAX_BAD", 2)
    gone = "".join(f'{{"file_name": "{n}.png", "text": "x"}}\n' for n in range(9))
    write(photos, metadata_jsonl=f'{gone}{{\n{{"file_name": "green.png", "text": "g"}}\n{{\n')
    captions, refused = taken(photos)
    assert captions["green.png"] == "g" and refused[0].endswith("(and 10 rows more)")
    write(photos, metadata_jsonl=f'{{"file_name": "green.png", "text": "g"}}\n{gone}' + "{\n" * 3)
    captions, refused = taken(photos)
    assert captions["green.png"] is None and refused[0].endswith("none of its captions is used")


def test_a_file_of_captions_for_nobody_says_so(photos):
    write(photos, captions_json='{"info": {"year": 2017}, "images": []}')  # COCO's
    assert taken(photos)[1] == ["captions.json: neither a list of rows nor captions by file name"]


def test_annotations_of_another_kind_say_nothing(photos):
    write(photos, red_json='{"shapes": [], "imageData": null}', green_txt="  ")
    captions, refused = taken(photos)
    assert captions == {"red.png": None, "green.png": None, "deep/blue.png": None}
    assert refused == []


def test_what_holds_captions_is_no_item(photos):
    write(photos, red_txt="red", notes_txt="notes", metadata_jsonl="")
    assert {Path(id).name for id in scan([photos], (".txt", ".jsonl")).files} == {"notes.txt"}
    alone = scan([photos / "red.txt"], (".txt",))
    assert [bad.reason for bad in alone.unreadable] == [
        "it holds captions of images and is no item of its own"
    ]


def test_a_state_tells_a_changed_caption_from_a_changed_file(photos):
    def states() -> dict[str, FileState]:
        return {Path(file.id).name: file.state for file in scan([photos]).files.values()}

    write(photos, red_txt="red")
    (photos / "deep" / "captions.json").write_text("{}")
    before = states()
    assert states() == before
    assert before["green.png"].beside == ""
    assert {name: FileState.of(state.payload()) for name, state in before.items()} == before
    write(photos, red_txt="scarlet")
    os.utime(photos / "deep" / "captions.json", ns=(1, 1))
    after = states()
    for name in ("red.png", "blue.png"):
        assert (before[name].size, before[name].mtime_ns) == (after[name].size, after[name].mtime_ns)
        assert before[name].beside != after[name].beside
    (photos / "red.txt").unlink()
    assert states()["red.png"].beside == ""
    assert after["green.png"] == before["green.png"]


def test_a_caption_does_not_depend_on_which_folder_was_named(photos):
    write(photos, captions_json='{"deep/blue.png": "b", "red.png": "r"}')
    whole = scan([photos]).files
    blue = (photos / "deep" / "blue.png").as_posix()
    assert whole[blue].captions == ((photos / "captions.json").as_posix(),)
    for paths in ([photos, photos / "deep", blue], [blue, photos / "deep", photos]):
        assert scan(paths).files == whole
    assert scan([photos / "deep"]).files[blue].captions == ()
    for path in (photos / "deep", blue):
        assert scan([path], known=[photos]).files == {blue: whole[blue]}


def test_a_shared_caption_is_refused_once(photos, save_image):
    save_image(photos / "red.jpg", "red")
    (photos / "red.txt").write_bytes(b"\xff")
    captions, refused = taken(photos)
    assert captions["red.png"] is captions["red.jpg"] is None
    assert refused == ["red.txt: byte 0 (0xff) is not UTF-8; save it as UTF-8"]
