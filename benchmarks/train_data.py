"""Conversations of mixed lengths for `train.py`, the same on every machine with the same Python.

Four kinds of rows, in LLaVA's JSON: short answers in several turns, one long answer, a conversation, and text
without an image. The words are the sentences of Python's own manual; the pictures are ellipses in photo size.
"""

import json
import random
from pydoc_data.topics import topics

from PIL import Image, ImageDraw

# Kind: share of the rows, whether there is an image, turns, words of a question, words of an answer.
KINDS = {
    "short answers": (50, True, (1, 5), (3, 8), (1, 3)),
    "one long answer": (15, True, (1, 1), (4, 12), (20, 60)),
    "conversation": (20, True, (2, 3), (4, 12), (5, 20)),
    "text only": (15, False, (1, 3), (4, 20), (3, 60)),
}
PICTURES, SIZES = 256, ((640, 480), (480, 640), (640, 427), (500, 500))


def write_data(folder, rows, seed=0):
    """Write `rows.json` and its images."""
    draw, words = random.Random(seed), manual()
    pictures = [picture(folder, number, draw) for number in range(PICTURES)]
    kinds = draw.choices(list(KINDS), [share for share, *_ in KINDS.values()], k=rows)
    made = [row(f"row-{i}", KINDS[kind], pictures, words, draw) for i, kind in enumerate(kinds)]
    (folder / "rows.json").write_text(json.dumps(made))


def manual():
    """All words of Python's manual in order."""
    return [word for name in sorted(topics) for word in topics[name].split()]


def row(name, kind, pictures, words, draw):
    """One row of LLaVA's JSON."""
    _, sees, turns, question, answer = kind
    made = {"id": name, "conversations": []}
    for turn in range(draw.randint(*turns)):
        asked = (
            f"<image>\n{text(words, question, draw)}" if sees and not turn else text(words, question, draw)
        )
        made["conversations"] += [
            {"from": "human", "value": asked},
            {"from": "gpt", "value": text(words, answer, draw)},
        ]
    return {**made, "image": draw.choice(pictures)} if sees else made


def text(words, bounds, draw):
    """So many words of the manual from somewhere in it."""
    count = draw.randint(*bounds)
    start = draw.randrange(len(words) - count)
    return " ".join(words[start : start + count])


def picture(folder, number, draw):
    """Write a JPEG of a photo's size; returns its name."""
    size = draw.choice(SIZES)
    rough = (size[0] // 8, size[1] // 8)
    image = Image.frombytes("RGB", rough, draw.randbytes(3 * rough[0] * rough[1])).resize(size)
    pen = ImageDraw.Draw(image)
    for _ in range(20):
        x, y, r = draw.randrange(size[0]), draw.randrange(size[1]), draw.randint(10, 150)
        pen.ellipse((x - r, y - r, x + r, y + r), tuple(draw.choices(range(256), k=3)))
    name = f"{number}.jpg"
    image.save(folder / name, quality=90)
    return name


def read_chats(folder):
    """The rows as transformers' processors take them: (messages, image name or None)."""
    roles = {"human": "user", "gpt": "assistant"}
    return [(messages(row["conversations"], roles), row.get("image")) for row in read_rows(folder)]


def read_rows(folder):
    """The rows as they were written."""
    return json.loads((folder / "rows.json").read_text())


def messages(turns, roles):
    """Messages with typed parts."""
    made = []
    for turn in turns:
        said = turn["value"].removeprefix("<image>\n")
        image = [{"type": "image"}] if said != turn["value"] else []
        made.append({"role": roles[turn["from"]], "content": [*image, {"type": "text", "text": said}]})
    return made
