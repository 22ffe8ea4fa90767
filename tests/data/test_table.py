"""CSV, TSV and Parquet: a column for each thing."""

import base64
import csv
import io
import json
import pickle
import random
import sys

import datasets
import pytest
from PIL import Image

from vlmkit.data.formats.csv_rows import CsvRows
from vlmkit.data.formats.table import table
from vlmkit.data.sample import IMAGE, Message
from vlmkit.errors import MissingExtraError, UsageError, VlmkitError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png(value):
    out = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(out, "png")
    return out.getvalue()


URI = "data:image/png;base64," + base64.b64encode(png(9) + bytes(200_000)).decode()
ROWS = [
    {"image": "7.png", "question": "what, exactly?", "answer": "a dot"},
    {"image": "", "question": 'say "yes"\nor no', "answer": "007"},
    {"image": URI, "question": "left of <image>?", "answer": "NA"},
]


def written(path, rows, **options):
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, rows[0], **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(path, rows):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    datasets.Dataset.from_dict(columns).to_parquet(path)
    return path


def place(kind, tmp_path):
    (tmp_path / "7.png").write_bytes(png(7))
    if kind == "parquet":
        return parquet(tmp_path / "t.parquet", ROWS)
    if kind == "tsv":
        return written(tmp_path / "t.TSV", ROWS, delimiter="\t")
    return written(tmp_path / "t.csv", ROWS, encoding="utf-8-sig" if kind == "bom" else "utf-8")


def red(sample):
    return [image.getpixel((0, 0))[0] for image in sample.open_images()]


@pytest.mark.parametrize("kind", ["csv", "bom", "tsv", "parquet"])
def test_each_kind_says_the_same_and_text_stays_text(kind, tmp_path):
    path = place(kind, tmp_path)
    samples = table(path, image_folder=tmp_path)
    assert [red(s) for s in samples] == [[7], [], [9]]
    assert [s.conversations[0][0].parts for s in samples] == [
        (IMAGE, "what, exactly?"),
        ('say "yes"\nor no',),
        ("left of ", IMAGE, "?"),
    ]
    assert [s.conversations[0][1] for s in samples] == [
        Message("assistant", (a,)) for a in ("a dot", "007", "NA")
    ]
    assert samples[2].id == f"{path} row 2" and samples[2].captions == ()
    assert len(table(path, image_folder=tmp_path, limit=2)) == 2
    captions = table(path, question=None, image_folder=tmp_path)
    assert captions[0].captions == ("a dot",) and captions[0].conversations[0][0].parts == (IMAGE,)


def test_several_images_ids_and_whole_conversations(tmp_path):
    for value in (1, 2):
        (tmp_path / f"{value}.png").write_bytes(png(value))
    talk = [{"role": "user", "content": "<image> or <image>?"}, {"role": "assistant", "content": "none"}]
    rows = [{"id": "x1", "left": "1.png", "right": "2.png", "talk": json.dumps(talk)}]
    options = {"image": ["right", "left"], "messages": "talk", "image_folder": tmp_path}
    for path in (written(tmp_path / "t.csv", rows), parquet(tmp_path / "t.parquet", rows)):
        (sample,) = table(path, **options)
        assert red(sample) == [2, 1] and sample.id == "x1"
        assert sample.conversations[0][0].parts == (IMAGE, " or ", IMAGE, "?")


def test_parquet_holds_bytes_and_lists_and_several_files(tmp_path):
    for number in range(3):
        images = [{"bytes": png(number), "path": None}, {"bytes": png(50), "path": None}]
        row = {"image": images, "question": "a?", "answer": str(number), "id": number}
        parquet(tmp_path / f"train-{number}.parquet", [row])
    samples = table(str(tmp_path / "train-*.parquet"))
    assert [red(s) for s in samples] == [[0, 50], [1, 50], [2, 50]]


@pytest.mark.parametrize("seed", range(8))
def test_rows_by_number_are_the_csv_modules(tmp_path, seed):
    draw = random.Random(seed)
    pieces = ["a", ",", '"', "\n", "\r\n", "é", "\u2028", "\x0b", "\x85", " ", ";", "\x1c"]
    texts = [["".join(draw.choices(pieces, k=draw.randrange(9))) for _ in range(3)] for _ in range(30)]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=draw.choice(["\n", "\r\n"]))
    writer.writerows([["x", "y", "z"], *texts])
    (tmp_path / "a.csv").write_bytes(out.getvalue().encode())
    rows = pickle.loads(pickle.dumps(CsvRows(tmp_path / "a.csv", ",")))
    assert [list(rows[i][1].values()) for i in range(30)] == texts
    order = draw.sample(range(30), 30)
    assert [list(rows[i][1].values()) for i in order] == [texts[i] for i in order]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,question,answer\na.png,b",
            r"row 0 has 2 fields and the header 3 \(image, question, answer\)",
        ),
        ("image,question,answer\na,b,c,d", "row 0 has 4 fields"),
        ('image,question,answer\na,b,c\na,"b', r"row 1 is not CSV \(unexpected end of data\)"),
        (
            "image,question,answer\na,b,c\na,b,\n",
            "row 1, field 'answer': is empty; fill it or remove the row",
        ),
        ("image,question,answer\na, ,c", "row 0, field 'question': is empty"),
        ("image,question,answers\na,b,c", r"unknown column of .* row 0 'answer'; did you mean 'answers'"),
        ("image,image,answer\na,b,c", r"names a column twice \(image, image, answer\)"),
        ("image,question,answer\n", "holds no sample"),
        ("", "is empty; a header and rows are needed"),
        ("image,question,answer\na,<image><image>,c", "field 'answer': 2 image slots for 1 images"),
        ("image,question,answer\nhttps://a.org/b.png,b,c", "images are not downloaded"),
    ],
)
def test_malformed_files(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(VlmkitError, match=message) as raised:
        table(tmp_path / "t.csv")
    assert "t.csv" in str(raised.value)


def test_other_errors(tmp_path, monkeypatch):
    (tmp_path / "latin.csv").write_bytes(b"image,question,answer\na,\xff,c\n")
    with pytest.raises(VlmkitError, match=r"latin\.csv is not UTF-8"):
        table(tmp_path / "latin.csv")
    with pytest.raises(VlmkitError, match=r"none\.csv does not exist"):
        table(tmp_path / "none.csv")
    with pytest.raises(UsageError, match=r"there is no file .*none\.parquet"):
        table(tmp_path / "none.parquet")
    with pytest.raises(UsageError, match=r"unknown kind of table '.xlsx'.*known: .csv, .parquet, .tsv"):
        table(tmp_path / "a.xlsx")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(VlmkitError, match=r"bad\.parquet cannot be loaded: ") as raised:
        table(tmp_path / "bad.parquet")
    assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"vlmkit\[train\]"):
        table(tmp_path / "bad.parquet")


@pytest.mark.parametrize("name", ["../../../etc/hostname", "/etc/hostname"])
def test_no_path_leads_out_of_the_folder_of_images(name, tmp_path):
    path = written(tmp_path / "t.csv", [{"image": name, "question": "what?", "answer": "a dot"}])
    with pytest.raises(VlmkitError, match=r"t\.csv row 0, field 'images\[0\]': .*hostname' leads out of"):
        table(path, image_folder=tmp_path)
    assert [str(image) for image in table(path)[0].images] == [name], (
        "without a folder a path is what it says"
    )


def test_the_csv_modules_limit_is_as_it_was(tmp_path):
    before = csv.field_size_limit()
    table(place("csv", tmp_path), image_folder=tmp_path)
    assert csv.field_size_limit() == before < len(URI)


def test_a_malformed_parquet_row_is_met_when_it_is_reached(tmp_path):
    rows = [{"image": png(1), "question": "a?", "answer": answer} for answer in ("b", "", "c")]
    samples = table(parquet(tmp_path / "t.parquet", rows))
    assert red(samples[2]) == [1]
    with pytest.raises(VlmkitError, match=r"t\.parquet row 1, field 'answer': is empty"):
        samples[1]
