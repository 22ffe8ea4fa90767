"""The splits of the search over drawings, out of archives as npm packs them."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from vlmkit.data.formats.image_captions import image_captions
from vlmkit_retrieval.eval import load_task

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CODES = [f"1F{number:03X}" for number in range(12)]


def drawing(number, style):
    """A bar as wide as its concept, in the colour of its style; the edges are transparent."""
    image = Image.new("RGBA", (72, 72))
    image.paste((20 * style, 90, 200, 255), (6, 30, 12 + 5 * number, 40))
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@pytest.fixture
def archives(tmp_path):
    """Each package with 12 concepts. The SVG hold PNG, which are told by their first bytes."""
    rows = [{"hexcode": code, "label": f"Bar {n}", "group": 1} for n, code in enumerate(CODES)]
    rows += [{"hexcode": "1F3FB", "label": "light skin", "group": 2}, {"hexcode": "1F1E6", "label": "A"}]
    lower = [code.lower() for code in CODES]
    files = {
        "emojibase-data-17.0.0": {"en/data.json": json.dumps(rows).encode()},
        "openmoji-17.0.0": {f"color/svg/{c}-FE0F.svg": drawing(n, 0) for n, c in enumerate(CODES)},
        "fluentui-emoji-1.3.0": {
            f"icons/{kind}/bar-{n}{'-default' if n % 2 else ''}.svg": drawing(n, style)
            for n in range(12)
            for style, kind in enumerate(("flat", "modern"), 1)
        },
        "emoji-datasource-twitter-16.0.0": {
            f"img/twitter/64/{c}.png": drawing(n, 3) for n, c in enumerate(lower)
        },
        "emoji-datasource-google-16.0.0": {
            f"img/google/64/{c}.png": drawing(n, 4) for n, c in enumerate(lower)
        },
    }
    for name, members in files.items():
        with tarfile.open(tmp_path / f"{name}.tgz", "w:gz") as tar:
            for path, content in members.items():
                info = tarfile.TarInfo(f"package/{path}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return tmp_path


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from retrieval_data import make

    return make


def concepts(folder):
    return {path.stem for path in folder.rglob("*.png")}


def test_held_out_concepts_and_styles_are_nowhere_in_the_training(archives, make, tmp_path):
    out = tmp_path / "out"
    sizes = make(archives, out, 3)
    assert sizes["pictures"] == dict.fromkeys(("openmoji", "fluent", "fluent_modern", "twemoji", "noto"), 12)
    assert sizes["task"] == {"train": 36, "newstyle": 9, "unseen": 3}
    assert sizes["tune"] == {"train": 18, "newstyle": 6, "unseen": 3}
    for folder, new, styles in ((out, "noto", 4), (out / "tune", "twemoji", 3)):
        train, held = concepts(folder / "train"), concepts(folder / "unseen")
        assert len(held) == 3 and not held & train
        assert concepts(folder / "newstyle") == train and concepts(folder / "drawn") == held
        drawn = {path.name for path in (folder / "train").iterdir() if path.is_dir()}
        assert new not in drawn and len(drawn) == styles
    # What is reported is not chosen by: the tuning task knows nothing of the held-out concepts and style.
    assert not concepts(out / "unseen") & concepts(out / "tune")
    assert "noto" not in {path.name for path in (out / "tune").rglob("*")}


def test_the_product_reads_what_is_written(archives, make, tmp_path):
    out = tmp_path / "out"
    make(archives, out, 3)
    samples = image_captions(out / "train")
    assert {sample.captions for sample in samples} == {
        (f"bar {CODES.index(code)}",) for code in concepts(out / "train")
    }
    assert {image.size for sample in samples for image in sample.open_images()} == {(64, 64)}
    for gallery in ("newstyle", "unseen", "drawn"):
        task = load_task(out / gallery / "qrels.tsv")
        assert len(task.queries) == len(task.qrels) == len(concepts(out / gallery))
        for query in task.queries:
            assert task.qrels[query.id] == {f"{query.id}.png": 1}
            if gallery == "drawn":
                assert query.image.resolve() == (out / "unseen" / f"{query.id}.png").resolve()
            else:
                assert query.text == f"bar {CODES.index(query.id)}"


def test_the_same_archives_give_the_same_bytes(archives, make, tmp_path):
    for name in ("one", "two"):
        make(archives, tmp_path / name, 3)
    one, two = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two and len(one) > 80


def test_missing_archives_are_named_with_the_commands(archives, make, tmp_path):
    (archives / "openmoji-17.0.0.tgz").unlink()
    with pytest.raises(SystemExit, match=r"no openmoji-VERSION\.tgz.*\n.*\nnpm pack emojibase-data"):
        make(archives, tmp_path / "out", 3)
