"""Emoji in several drawing styles as a retrieval task: what to train on, galleries, queries, judgements.

    python benchmarks/retrieval_data.py OUT --archives FOLDER

The archives come from npm, see `--help`. The same input gives the same files, byte for byte. OUT holds the
task and OUT/tune a copy of it one style and some concepts smaller, which is what settings are chosen by:

    train/      captioned pictures: train/STYLE/HEXCODE.png, train/captions.jsonl
    newstyle/   pictures of concepts of the training in a style that is not in it, with queries and judgements
    unseen/     pictures of held-out concepts in that style, with queries and judgements
    drawn/      the same concepts in a style of the training: queried by the pictures of `unseen`

Concepts are held out in every style, by a hash of the hexcode; no caption of the training is a name of
theirs.
"""

import argparse
import hashlib
import json
from functools import cache
from pathlib import Path

from retrieval_drawings import COMMANDS, picture, read_concepts, read_styles

HELD_OUT = 250
# The style that is new, and the one that its pictures are looked for in; each task trains on all the others.
NEW, DRAWN = "noto", "twemoji"
TUNE_NEW, TUNE_DRAWN = "twemoji", "openmoji"


def held_out(codes, count):
    """That many of the codes: which ones depends on no order and no other code."""
    return set(sorted(codes, key=lambda code: hashlib.sha256(code.encode()).digest())[:count])


def write_lines(path, rows):
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_gallery(folder, pictures, queries):
    """A picture a concept, and one query for each: BEIR's files.

    Args:
        folder: Where.
        pictures: By hexcode.
        queries: By hexcode, what is asked: `{"text": ...}` or `{"image": ...}`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for code, image in pictures.items():
        image.save(folder / f"{code}.png")
    write_lines(folder / "queries.jsonl", [{"_id": code, **queries[code]} for code in pictures])
    judged = "".join(f"{code}\t{code}.png\t1\n" for code in pictures)
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")


def write_task(folder, styles, concepts, held, new, drawn):
    """Everything of one task: see the top of the file."""
    names = {concepts[code] for code in held}
    train = {(style, code): image for style, images in styles.items() if style != new
             for code, image in images.items() if concepts[code] not in names}  # fmt: skip
    rows = []
    for (style, code), image in train.items():
        (folder / "train" / style).mkdir(parents=True, exist_ok=True)
        image.save(folder / "train" / style / f"{code}.png")
        rows.append({"file_name": f"{style}/{code}.png", "text": concepts[code]})
    write_lines(folder / "train" / "captions.jsonl", rows)
    seen = {code for _, code in train}
    labels = {code: {"text": label} for code, label in concepts.items()}
    both = held & styles[new].keys() & styles[drawn].keys()
    write_gallery(folder / "newstyle", {c: i for c, i in styles[new].items() if c in seen}, labels)
    write_gallery(folder / "unseen", {c: i for c, i in styles[new].items() if c in both}, labels)
    by_picture = {code: {"image": f"../unseen/{code}.png"} for code in both}
    write_gallery(folder / "drawn", {c: i for c, i in styles[drawn].items() if c in both}, by_picture)
    return {"train": len(rows), "newstyle": len(seen & styles[new].keys()), "unseen": len(both)}


def make(archives, out, count):
    """Read the archives, draw, and write both tasks; gives how large they are.

    Args:
        archives: The folder that they are in.
        out: The folder to write.
        count: Concepts that are held out, in each of the two tasks.
    """
    concepts, drawn = read_concepts(archives), cache(picture)
    styles = {
        style: {code: image for code in concepts if code in found and (image := drawn(found[code]))}
        for style, found in read_styles(archives, concepts).items()
    }
    # A concept is held out only where both tasks can ask for it: it is drawn in each of these styles.
    common = styles[NEW].keys() & styles[DRAWN].keys() & styles[TUNE_DRAWN].keys()
    test = held_out(common, count)
    tune = held_out(common - test, count)
    sizes = {"pictures": {style: len(images) for style, images in styles.items()}}
    sizes["task"] = write_task(out, styles, concepts, test, NEW, DRAWN)
    known = {
        style: {code: image for code, image in images.items() if code not in test}
        for style, images in styles.items()
        if style != NEW
    }
    sizes["tune"] = write_task(out / "tune", known, concepts, tune, TUNE_NEW, TUNE_DRAWN)
    (out / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
    return sizes


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"To fill FOLDER:\n{COMMANDS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--archives", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    print(json.dumps(make(args.archives, args.out, HELD_OUT)))


if __name__ == "__main__":
    main()
