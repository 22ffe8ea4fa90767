from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlmkit_retrieval
from vlmkit_retrieval.index import Index

# For the tests' own writers of files (`pdfs.py`, `hostile.py`): this folder is no package.
sys.path.append(str(Path(__file__).parent))

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


class ColourEmbedder:
    """Embeds an image as its mean colour, and a text as the colour it names: red text finds red images."""

    def __init__(self, name: str = "colour", fingerprint: str = "mean-rgb-1") -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.embed_dim = 3
        self.batches: list[int] = []

    def to(self, device):
        return self

    def embed_images(self, images):
        self.batches.append(len(images))
        return _unit([np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0) for image in images])

    def embed_text(self, texts):
        named = [[COLOURS[c] for c in COLOURS if c in text] or [(1, 1, 1)] for text in texts]
        return _unit([np.mean(colours, axis=0) for colours in named])


class GreyEmbedder(ColourEmbedder):
    """Two numbers: brightness, and a constant. It has no text tower."""

    def __init__(self) -> None:
        super().__init__("grey", "grey-1")
        self.embed_dim = 2

    def embed_images(self, images):
        return _unit([(np.asarray(image.convert("L")).mean(), 100.0) for image in images])

    def embed_text(self, texts):
        raise ValueError("grey has no text tower")


def _unit(rows):
    rows = np.asarray(rows, np.float32) + 1e-3
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def save_image(path: Path, colour, size=(8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS.get(colour, colour)).save(path)
    return path


@pytest.fixture(name="save_image")
def save_image_fixture():
    return save_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images in two folders."""
    save_image(tmp_path / "photos" / "red.png", "red")
    save_image(tmp_path / "photos" / "green.png", "green")
    save_image(tmp_path / "photos" / "deep" / "blue.png", "blue")
    return tmp_path / "photos"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An empty one, open."""
    with Index.create_or_open(tmp_path / "i") as opened:
        yield opened


@pytest.fixture
def python():
    """Start a Python program given as text, with this package (and this file's fakes) importable."""
    running = []

    def start(program: str, *arguments: object) -> subprocess.Popen[str]:
        paths = [str(Path(vlmkit_retrieval.__file__).parents[1]), str(Path(__file__).parent)]
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def colours() -> ColourEmbedder:
    return ColourEmbedder()


@pytest.fixture
def grey() -> GreyEmbedder:
    return GreyEmbedder()
