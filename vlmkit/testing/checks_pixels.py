"""Checks of preprocessing: sizes known beforehand, the stated normalisation, every kind of picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vlmkit.encoders.hub import read_processor
from vlmkit.encoders.processors import stated_pixels
from vlmkit.errors import VlmkitError
from vlmkit.testing.report import Outcome, at_most, judged, skipped
from vlmkit.testing.subject import Subject
from vlmkit.testing.twin import picture, sizes

COLOURS = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (10, 128, 250)]
EXTREME = [(1, 1), (1, 90), (90, 1), (3, 200), (640, 480)]
ALIKE = ("L", "LA", "RGB", "RGBA", "I;16")
TAKEN = ("1", "P", "PA", "CMYK", "YCbCr", "HSV", "I", "F")


def views(subject: Subject) -> Outcome:
    """`views` is a function of a picture's size alone, and `preprocess` makes pictures of those sizes."""
    spec = subject.encoder.spec
    wrong = []
    tried = [*EXTREME, *sizes(8, seed=1)]
    for seed, size in enumerate(tried):
        stated = [(3, view.height, view.width) for view in spec.views(size)]
        made = [pixels.shape for pixels in spec.preprocess(picture(size, seed))]
        again = [(3, view.height, view.width) for view in spec.views(size)]
        whole = all(
            v.rows == v.height // spec.patch_size and v.cols == v.width // spec.patch_size
            for v in spec.views(size)
        )
        if not (stated == made == again and whole):
            wrong.append(f"{size[0]}x{size[1]}: views {stated}, pictures {made}")
    first = f", first {wrong[0]}" if wrong else ""
    return judged(not wrong, f"{len(wrong)} of {len(tried)} sizes differ{first}", "0")


def pixels(subject: Subject) -> Outcome:
    """Pictures of one colour become (colour / 255 - mean) / std of the spec, channels in the order RGB."""
    spec = subject.encoder.spec
    side = (spec.image_size, spec.image_size)
    largest = 0.0
    for colour in COLOURS:
        expected = (np.array(colour) / 255 - np.array(spec.mean)) / np.array(spec.std)
        for view in spec.preprocess(Image.new("RGB", side, colour)):
            largest = max(largest, float(np.abs(view - expected[:, None, None]).max()))
    return at_most(largest, 1e-5, "largest difference")


def processor(subject: Subject) -> Outcome:
    """Mean, std and resampling are those of the image processor that is stored with the weights."""
    if subject.weights is None:
        return skipped("no published weights")
    try:
        stored = stated_pixels(read_processor(subject.weights))
    except VlmkitError as error:
        return skipped(str(error))
    if not stored:
        return skipped("no image processor is stored with the weights")
    spec = subject.encoder.spec
    own = {name: getattr(spec, name) for name in stored}
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return judged(own == plain, str(own), str(plain))


def modes(subject: Subject) -> Outcome:
    """Every kind of picture that Pillow opens is taken; a grey one looks the same in each of them."""
    spec = subject.encoder.spec
    grey = picture((40, 28)).convert("L")
    expected = spec.preprocess(grey.convert("RGB"))
    wrong = []
    for mode in (*ALIKE, *TAKEN, "P with transparency"):
        try:
            made = spec.preprocess(_as(grey, mode))
        except Exception as error:  # a mode that is not thought of raises anything
            wrong.append(f"{mode} ({type(error).__name__})")
            continue
        same = [m.shape == e.shape and bool(np.isfinite(m).all()) for m, e in zip(made, expected)]
        if mode in ALIKE:
            same += [bool(np.allclose(m, e, atol=1e-6)) for m, e in zip(made, expected)]
        if not all(same) or len(made) != len(expected):
            wrong.append(mode)
    tried = len(ALIKE) + len(TAKEN) + 1
    return judged(
        not wrong, f"{tried - len(wrong)} of {tried} modes" + "".join(f", not {m}" for m in wrong), "all"
    )


def _as(grey: Image.Image, mode: str) -> Image.Image:
    """The picture in another mode."""
    if mode == "I;16":
        return Image.fromarray(np.asarray(grey).astype(np.uint16) * 256)
    if mode == "P with transparency":
        palette = grey.convert("P")
        palette.info["transparency"] = 0
        return palette
    if mode in ("PA", "HSV"):
        return grey.convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    return grey.convert(mode)
