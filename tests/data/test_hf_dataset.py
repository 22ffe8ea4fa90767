"""Hugging Face data sets: every form, every place, and nothing read before its time."""

import io
import json
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from vlmkit.data.formats.hf_dataset import hf_dataset
from vlmkit.data.formats.hf_rows import Columns, read_sample
from vlmkit.data.sample import IMAGE, Message
from vlmkit.errors import MissingExtraError, UsageError, VlmkitError

TEXT = datasets.Value("string")
IMAGES = datasets.List(datasets.Image())
PAIRS = datasets.List({"user": TEXT, "assistant": TEXT})
ASKED = [{"user": "what?", "assistant": "a dot"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """`datasets` copies parquet files into its cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def dot(value):
    return Image.new("RGB", (3, 2), (value, 0, 0))


def encoded(value):
    out = io.BytesIO()
    dot(value).save(out, "png")
    return out.getvalue()


def table(rows, **features):
    columns = {name: [row.get(name) for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def pictures(count):
    """Row i with i % 3 images, the first of them with the red value i."""
    rows = [{"images": [dot(i + 100 * j) for j in range(i % 3)], "texts": ASKED} for i in range(count)]
    return table(rows, images=IMAGES, texts=PAIRS)


def saved(tmp_path, data):
    data.save_to_disk(tmp_path / "data")
    return str(tmp_path / "data")


def red(sample):
    return [image.getpixel((0, 0))[0] for image in sample.open_images()]


def place(kind, tmp_path):
    """The same ten rows in each place that a data set can lie in."""
    data = pictures(10)
    folder = tmp_path / "data"
    if kind == "saved":
        return saved(tmp_path, data)
    if kind == "saved splits":
        return saved(tmp_path, datasets.DatasetDict(train=data, val=data.select([5])))
    folder.mkdir()
    data.to_parquet(folder / "train-00000.parquet")
    return str(folder / "train-00000.parquet" if kind == "file" else folder)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["saved", "saved splits", "parquet", "file"])
def test_wherever_it_lies_the_samples_are_the_same(kind, streaming, tmp_path):
    path = place(kind, tmp_path)
    samples = hf_dataset(path, streaming=streaming, limit=8)
    assert len(samples) == 8
    assert [red(s) for s in samples] == [[i + 100 * j for j in range(i % 3)] for i in range(8)]
    answer = Message("assistant", ("a dot",))
    assert samples[2].conversations == ((Message("user", (IMAGE, IMAGE, "what?")), answer),)
    assert samples[0].conversations == ((Message("user", ("what?",)), answer),)
    assert samples[7].id == f"{path} train row 7"
    assert [s.id for s in samples[6:]] == [samples[6].id, samples[-1].id]
    with pytest.raises(IndexError):
        samples[8]


def test_without_a_limit_all_rows_are_there_but_a_stream_has_no_length(tmp_path):
    path = place("parquet", tmp_path)
    assert len(hf_dataset(path)) == len(hf_dataset(path, limit=99)) == 10
    assert len(hf_dataset(path, streaming=True, limit=99)) == 10
    with pytest.raises(UsageError, match="streaming needs a limit, as shuffling and resuming need a length"):
        hf_dataset(path, streaming=True)


def test_a_split_that_is_not_there(tmp_path):
    path = place("saved splits", tmp_path)
    assert [red(s) for s in hf_dataset(path, "val")] == [[5, 105]]
    with pytest.raises(UsageError, match=r"unknown split of .*'valid'; did you mean 'val'"):
        hf_dataset(path, "valid")
    with pytest.raises(VlmkitError, match=r"split 'test' cannot be loaded: Unknown split"):
        hf_dataset(place("parquet", tmp_path / "data" / "train"), "test")


def test_pixels_are_decoded_only_when_a_sample_is_opened(tmp_path):
    rows = [{"images": [{"bytes": b"no image", "path": None}], "texts": ASKED}] * 3
    samples = hf_dataset(saved(tmp_path, table(rows, images=IMAGES, texts=PAIRS)))
    assert [s.images for s in samples] == [(b"no image",)] * 3
    with pytest.raises(VlmkitError, match=r"train row 1'?: image bytes cannot be read"):
        samples[1].open_images()


def test_rows_are_read_one_by_one(tmp_path):
    """A malformed row is met when it is reached; before, only the first is looked at."""
    rows = [{"texts": ASKED}, {"texts": []}, {"texts": ASKED}]
    samples = hf_dataset(saved(tmp_path, table(rows, texts=PAIRS)), images=None)
    assert samples[2].images == ()
    with pytest.raises(
        VlmkitError, match=r"train row 1, field 'texts': a list of turns is needed, found \[\]"
    ):
        samples[1]
    with pytest.raises(VlmkitError, match="train row 0, field 'texts'"):
        hf_dataset(saved(tmp_path / "b", table(rows[1:], texts=PAIRS)), images=None)


def read(row, text="talk", images="images", folder=""):
    return read_sample(row, "set row 4", Columns(text, images, Path(folder)))


def said(sample):
    return [(m.role, m.parts) for m in sample.conversations[0]]


USER_PARTS = [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]
FORMS = {
    "parts": [{"role": "user", "content": USER_PARTS}, {"role": "assistant", "content": "a dot"}],
    "text": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a dot"}],
    "slot": [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "a dot"}],
    "llava": [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a dot"}],
    "pairs": ASKED,
}


LLAVA_WITHOUT_SLOT = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a dot"}]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form):
    sample = read({"talk": FORMS[form], "images": encoded(7), "id": 12})
    assert said(sample) == [("user", (IMAGE, "what?")), ("assistant", ("a dot",))]
    assert sample.id == "12" and red(sample) == [7]


def test_images_without_a_slot_go_before_the_first_question():
    turns = [
        {"role": "system", "content": "be brief"},
        *FORMS["text"],
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "no more"},
    ]
    sample = read({"talk": turns, "images": [encoded(1), encoded(2)]})
    assert [m.parts for m in sample.conversations[0]][:2] == [("be brief",), (IMAGE, IMAGE, "what?")]
    assert said(sample)[3] == ("user", ("and?",))


@pytest.mark.parametrize(
    "value",
    ["7.png", ["7.png"], {"bytes": None, "path": "7.png"}, {"bytes": encoded(7), "path": "x"}, [encoded(7)]],
)
def test_an_image_is_bytes_or_a_path_alone_or_in_a_list(value, tmp_path):
    dot(7).save(tmp_path / "7.png")
    assert red(read({"talk": ASKED, "images": value}, folder=tmp_path)) == [7]


@pytest.mark.parametrize("feature", [False, True])
def test_no_text_leads_out_of_the_folder_of_images(feature, tmp_path):
    """A whole path is possible in the feature `Image` alone, which `datasets` itself writes so."""
    for name in ("../../../etc/hostname", "/etc/hostname"):
        row = {"talk": ASKED, "images": [{"bytes": None, "path": name} if feature else name]}
        if feature and name.startswith("/"):
            assert read(row, folder=tmp_path).images == (Path(name),)
            continue
        with pytest.raises(VlmkitError, match=r"row 4, field 'images\[0\]': .*hostname' leads out of"):
            read(row, folder=tmp_path)


def test_prompt_and_completion_are_refused_with_the_way_out(tmp_path):
    rows = table([{"prompt": "what?", "completion": "a dot"}], prompt=TEXT, completion=TEXT)
    with pytest.raises(UsageError, match=r"prompt and completion are not read; write one of both: data\.map"):
        hf_dataset(saved(tmp_path, rows), images=None)
    written = rows.map(lambda row: {"texts": [{"user": row["prompt"], "assistant": row["completion"]}]})
    assert said(hf_dataset(saved(tmp_path / "b", written), images=None)[0])[1] == ("assistant", ("a dot",))


@pytest.mark.parametrize("value", [None, []])
def test_a_row_may_have_no_image(value):
    assert read({"talk": ASKED, "images": value}).images == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": [b"x", 5]}, r"row 4, field 'images\[1\]': encoded bytes or a path is needed, found int"),
        ({"images": [{"bytes": None, "path": None}]}, r"'images\[0\]': .* found NoneType"),
        ({"talk": None}, "row 4, field 'talk': a list of turns is needed, found None"),
        ({"talk": "hello"}, "a list of turns is needed, found 'hello'"),
        ({"talk": ["hello"]}, "a list of turns is needed, found a list of str"),
        ({"talk": [{"question": "a"}]}, "'role' and 'content', .* are needed, found question"),
        (
            {"talk": [{"role": "bot", "content": "a"}]},
            r"'talk'\[0\], field 'role': unknown 'bot' \(known: ass",
        ),
        (
            {"talk": [{"role": "user", "content": None}]},
            r"field 'talk'\[0\], field 'content': text is needed",
        ),
        (
            {"talk": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}]},
            r"'talk'\[0\].content\[0\]: .*itself stands in the column of images\), found type, image",
        ),
        ({"talk": [{"user": "a", "assistant": None}]}, r"'talk'\[0\], field 'assistant': text is needed"),
        ({"talk": [{"from": "bot", "value": "a"}]}, r"'talk'\[0\], field 'from': unknown 'bot'"),
        ({"talk": FORMS["slot"], "images": [b"a", b"b"]}, "1 image slots for 2 images in 'images'"),
        ({"talk": FORMS["slot"], "images": []}, "1 image slots for 0 images"),
        ({"talk": LLAVA_WITHOUT_SLOT, "images": [b"a"]}, "0 image slots for 1 images"),
        ({"talk": [{"user": "what?", "assistant": ""}]}, "'talk': the answer in turn 1 is empty; fill it"),
        ({"talk": FORMS["slot"][1:] + FORMS["slot"]}, "'talk': the roles are .*user and assistant in turn"),
    ],
)
def test_errors_name_row_and_field(row, message):
    with pytest.raises(VlmkitError, match=message) as raised:
        read({"talk": ASKED, "images": [], **row})
    assert "set row 4" in str(raised.value) and "\n" not in str(raised.value)


def test_columns_are_named_or_found(tmp_path):
    rows = [{"photo": dot(3), "qa": ASKED, "texts": ASKED}]
    path = saved(tmp_path, table(rows, photo=datasets.Image(), qa=PAIRS, texts=PAIRS))
    assert red(hf_dataset(path, images="photo")[0]) == [3]
    assert said(hf_dataset(path, images=None, text="qa")[0])[0] == ("user", ("what?",))
    with pytest.raises(UsageError, match=r"unknown column .*images: null is for text only\) 'images'"):
        hf_dataset(path)
    with pytest.raises(UsageError, match=r"unknown column .*'q'.*known: photo, qa, texts"):
        hf_dataset(path, text="q", images="photo")
    messages = datasets.List({"role": TEXT, "content": TEXT})
    rows = [{"messages": FORMS["text"], "texts": ASKED}]
    both = saved(tmp_path / "both", table(rows, messages=messages, texts=PAIRS))
    with pytest.raises(UsageError, match=r"has messages and texts of the columns .* name the one to read"):
        hf_dataset(both, images=None)


def test_json_lines_with_paths(tmp_path):
    dot(9).save(tmp_path / "9.png")
    lines = [{"images": ["9.png"], "messages": FORMS["slot"]}, {"images": [], "messages": FORMS["text"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with_image, without = hf_dataset(str(tmp_path / "rows.jsonl"), image_folder=str(tmp_path))
    assert red(with_image) == [9] and without.images == ()


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.txt").write_text("a")
    for path, message in (
        (str(tmp_path / "none"), "does not exist; give a folder, a file or a hub id"),
        (str(tmp_path / "empty"), "cannot be loaded"),
        (str(tmp_path / "rows.txt"), r"unknown kind of data file '.txt'"),
    ):
        with pytest.raises(VlmkitError, match=message) as raised:
            hf_dataset(path)
        assert "\n" not in str(raised.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"datasets is not installed; do: .*vlmkit\[train\]"):
        hf_dataset("owner/name")


def test_a_recipe_trains_on_it(tmp_path, tiny_recipe):
    from vlmkit.train.run import train_recipe

    path = saved(tmp_path, pictures(6))
    stage = {"data": {"type": "hf_dataset", "path": path}, "steps": 2, "group": "modality_length"}
    recipe = tiny_recipe(stages=[stage], output=str(tmp_path / "run"))
    assert (train_recipe(recipe).path / "model.safetensors").is_file()


PARTS = datasets.List({"type": TEXT, "text": TEXT})
TURNS = datasets.List(datasets.Value("int64"))
# The columns of published data sets, as their cards give them.
PUBLISHED = {
    "FineVision": (
        {"images": [dot(1)], "texts": ASKED, "source": "ai2d", "relevance_ratings": [5], "relevance_min": 5},
        {"images": IMAGES, "texts": PAIRS, "source": TEXT, "relevance_ratings": TURNS,
         "relevance_min": datasets.Value("int64")},
    ),
    "the Cauldron": (
        {"images": [dot(1)], "texts": [{**ASKED[0], "source": "vqav2"}]},
        {"images": IMAGES, "texts": datasets.List({"user": TEXT, "assistant": TEXT, "source": TEXT})},
    ),
    "TRL, parts": (
        {"images": [dot(1)], "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a dot"}]},
        ]},
        {"images": IMAGES, "messages": datasets.List({"role": TEXT, "content": PARTS})},
    ),
    "TRL, text": (
        {"images": [dot(1)], "messages": FORMS["text"]},
        {"images": IMAGES, "messages": datasets.List({"role": TEXT, "content": TEXT})},
    ),
    "LLaVA on the hub": (
        {"id": "7", "image": dot(1), "conversations": FORMS["llava"]},
        {"id": TEXT, "image": datasets.Image(),
         "conversations": datasets.List({"from": TEXT, "value": TEXT})},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("where", ["saved", "parquet"])
def test_rows_as_they_are_published(kind, where, tmp_path):
    row, features = PUBLISHED[kind]
    image = "image" if "image" in row else "images"
    nothing = {name: value for name, value in row.items() if name != image}
    if kind.startswith("LLaVA"):
        nothing["conversations"] = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a dot"}]
    elif kind == "TRL, parts":
        nothing["messages"] = [{"role": m["role"], "content": m["content"][-1:]} for m in row["messages"]]
    data = table([row, nothing], **features)
    path = saved(tmp_path, data)
    if where == "parquet":
        data.to_parquet(path + ".parquet")
        path += ".parquet"
    with_image, without = hf_dataset(path, images=image)
    assert said(with_image) == [("user", (IMAGE, "what?")), ("assistant", ("a dot",))]
    assert red(with_image) == [1]
    assert without.images == () and said(without) == [("user", ("what?",)), ("assistant", ("a dot",))]


def test_rows_are_kept_by_the_ratings_of_all_their_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["vlmkit.data.formats.hf_dataset"], "BATCH", 2)
    rated = [([5, 4], [1]), ([5, 3], [5]), (None, [5]), ([None, 4], [2]), ([], None)]
    rows = [{"texts": ASKED, "id": str(i), "relevance_ratings": r, "formatting_ratings": f}
            for i, (r, f) in enumerate(rated)]  # fmt: skip
    path = saved(
        tmp_path, table(rows, texts=PAIRS, id=TEXT, relevance_ratings=TURNS, formatting_ratings=TURNS)
    )

    def kept(ratings, **options):
        return "".join(s.id for s in hf_dataset(path, images=None, min_ratings=ratings, **options))

    assert kept({"relevance": 4}) == "0234" and kept({"relevance": 4, "formatting": 2}) == "234"
    assert kept({"formatting": 2}, limit=2) == "12"
    with pytest.raises(UsageError, match=r"unknown rating of .*'relevant'; did you mean 'relevance'"):
        kept({"relevant": 4})
    with pytest.raises(UsageError, match="min_ratings reads a column of the whole data set"):
        kept({"relevance": 4}, streaming=True, limit=2)
