"""LLaVA's JSON and JSONL."""

import json

import pytest

from vlmkit.data.formats.llava_json import llava_json
from vlmkit.data.sample import IMAGE, Message
from vlmkit.errors import UsageError, VlmkitError


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]


ROWS = [
    {"id": "000", "image": "a/b.jpg", "conversations": turns("<image>\nWhat?", "A dog.", "Where?", "Here.")},
    {"id": 7, "image": ["1.png", "2.png"], "conversations": turns("Compare <image> and <image>.", "Equal.")},
    {"conversations": [{"from": "system", "value": "Be brief."}, *turns("Hi", "Hello")]},
]


def write(tmp_path, content, name="data.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_single_image_multi_image_and_text_rows(tmp_path):
    path = write(tmp_path, ROWS)
    one, two, text = llava_json(path, tmp_path)
    assert (one.id, one.images) == ("000", (tmp_path / "a/b.jpg",))
    assert one.conversations == (
        (
            Message("user", (IMAGE, "\nWhat?")),
            Message("assistant", ("A dog.",)),
            Message("user", ("Where?",)),
            Message("assistant", ("Here.",)),
        ),
    )
    assert (two.id, len(two.images)) == ("7", 2)
    assert two.conversations[0][0].parts == ("Compare ", IMAGE, " and ", IMAGE, ".")
    assert text.images == () and text.id == f"{path} row 2"
    assert text.conversations[0][0] == Message("system", ("Be brief.",))


@pytest.mark.parametrize("image", [None, "", []])
def test_a_row_may_say_that_it_has_no_image(tmp_path, image):
    (sample,) = llava_json(
        write(tmp_path, [{"image": image, "conversations": turns("Hi", "Hello")}]), tmp_path
    )
    assert sample.images == ()


def test_jsonl_and_limit(tmp_path):
    path = write(tmp_path, "\n\n".join(json.dumps(r) for r in ROWS[:2]) + "\n", "data.JSONL")
    assert [s.id for s in llava_json(path, tmp_path)] == ["000", "7"]
    assert [s.id for s in llava_json(str(path), str(tmp_path), limit=1)] == ["000"]
    with pytest.raises(UsageError, match="limit is -1"):
        llava_json(path, tmp_path, limit=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": 5}, r"row 0 \(id 'x'\), field 'image': a file name or a list of them is needed, found 5"),
        ({"image": None}, "field 'conversations': 1 <image> placeholders for 0 images"),
        ({"image": ["a.png", None]}, "field 'image': a file name or a list of them is needed"),
        (
            {"conversations": turns("<image>", " \n")},
            "'conversations': the answer in turn 1 is empty; fill it",
        ),
        (
            {"conversations": turns("<image>")},
            "'conversations': the roles are .*must end with the assistant's",
        ),
        (
            {"conversations": turns("<image>", "A dog.")[::-1]},
            "'conversations': the roles are .*user and assis",
        ),
        ({"image": ["a.png", "b.png"]}, r"row 0 \(id 'x'\).*1 <image> placeholders for 2 images"),
        ({"image": []}, "1 <image> placeholders for 0 images"),
        ({"conversations": []}, "field 'conversations': a list of messages is needed"),
        ({"conversations": ["hi"]}, r"conversations\[0\]: an object with 'from' and 'value' is needed"),
        (
            {"conversations": [{"from": "bot", "value": "a"}]},
            r"'from': unknown 'bot' \(known: gpt, human, sys",
        ),
        (
            {"conversations": [{"from": "human"}]},
            r"conversations\[0\], field 'value': text is needed, found noth",
        ),
        ({"conversations": [{"from": "human", "value": 3}]}, "field 'value': text is needed, found int"),
        ({"id": ["x"]}, "field 'id'.*found list"),
    ],
)
def test_malformed_rows(tmp_path, change, message):
    row = {"id": "x", "image": "a.png", "conversations": turns("<image>", "A dog.")} | change
    with pytest.raises(VlmkitError, match=message) as caught:
        llava_json(write(tmp_path, [row]), tmp_path)
    assert "data.json row 0" in str(caught.value) and "\n" not in str(caught.value)


def test_a_whole_path_into_the_folder_is_taken_however_the_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/x.png").touch()
    row = {"id": "x", "image": f"{tmp_path}/images/x.png", "conversations": turns("<image>", "A dog.")}
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "images", "images", "./images/../images"):
        assert llava_json(write(tmp_path, [row]), folder)[0].images == (tmp_path / "images/x.png",)


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "{root}/x.png"])
def test_an_image_outside_the_folder_is_refused(tmp_path, name):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "x.png").touch()
    name = name.format(root=tmp_path)
    row = {"id": "x", "image": name, "conversations": turns("<image>", "A dog.")}
    with pytest.raises(VlmkitError) as caught:
        llava_json(write(tmp_path, [row]), folder)
    assert f"data.json row 0 (id 'x'), field 'image': {name!r} leads out of {folder}; " in str(caught.value)


def test_an_image_folder_may_be_a_link_and_paths_may_turn_in_it(tmp_path):
    (tmp_path / "real/a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    row = {"image": "a/../x.png", "conversations": turns("<image>", "A dog.")}
    (sample,) = llava_json(write(tmp_path, [row]), tmp_path / "link")
    assert sample.images == (tmp_path / "link/a/../x.png",)


def test_links_inside_the_folder_are_the_owners_choice(tmp_path):
    """LLaVA's image folder usually links the data sets it is made of."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/coco").symlink_to(tmp_path)
    row = {"image": "coco/x.png", "conversations": turns("<image>", "A dog.")}
    (sample,) = llava_json(write(tmp_path, [row]), tmp_path / "images")
    assert sample.images == (tmp_path / "images/coco/x.png",)


def test_a_name_that_is_no_path_is_explained(tmp_path):
    row = {"image": "a\0.png", "conversations": turns("<image>", "A dog.")}
    with pytest.raises(VlmkitError, match=r"row 0, field 'image': 'a\\x00.png' is no path"):
        llava_json(write(tmp_path, [row]), tmp_path)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("[{]", "data.json", r"data.json row 0 is not JSON \(.*, byte 2\); repair it"),
        ('{"id": 1}', "data.json", "starts with '{'; a list of objects is needed"),
        ("[3]", "data.json", "row 0 is a int; an object is needed"),
        ("[]", "data.json", "holds no sample"),
        ('{"conversations": 1}', "data.jsonl", "data.jsonl line 1, field 'conversations'"),
        ("\n\n{", "data.jsonl", "data.jsonl line 3 is not JSON"),
    ],
)
def test_malformed_files(tmp_path, content, name, message):
    with pytest.raises(VlmkitError, match=message):
        llava_json(write(tmp_path, content, name), tmp_path)


def test_missing_paths(tmp_path):
    with pytest.raises(VlmkitError, match=r"none\.json does not exist"):
        llava_json(tmp_path / "none.json", tmp_path)
    with pytest.raises(VlmkitError, match="nowhere is not a folder"):
        llava_json(write(tmp_path, ROWS), tmp_path / "nowhere")
    with pytest.raises(VlmkitError, match=r"cannot be read \(Is a directory\); give a JSON or JSONL file"):
        llava_json(tmp_path, tmp_path)
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VlmkitError, match="cannot be read as text"):
        llava_json(tmp_path / "latin.json", tmp_path)
