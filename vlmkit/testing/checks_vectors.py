"""Checks of the retrieval space: vectors of images and texts, and whether they are the reference's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from vlmkit.testing.report import Outcome, at_most, judged, skipped
from vlmkit.testing.subject import ROUNDING, Subject, Vectors, photos
from vlmkit.testing.twin import gap, picture

TEXTS = ["a cat", "a dog and a cat!", "x", "two words"]
SIZES = [(101, 67), (60, 140), (90, 90)]


def vector(subject: Subject) -> Outcome:
    """`embed_images` gives `pooled` at unit length, one row a picture, another one for another picture."""
    encoder, images = subject.encoder, photos(3)
    if not encoder.embed_dim:
        return skipped("no retrieval space")
    ours = encoder.embed_images(images)
    pooled_BE = subject.see(images).pooled_BE
    assert pooled_BE is not None
    off = float(np.abs(np.linalg.norm(ours, axis=1) - 1).max())
    found = gap(torch.from_numpy(ours), _unit(pooled_BE))
    apart = float(np.abs(ours[0] - ours[1]).max())
    empty = encoder.embed_images([]).shape == (0, encoder.embed_dim)
    measured = f"length off by {off:.1e}, from pooled by {found:.1e}, pictures {apart:.1e} apart"
    measured += "" if empty else ", no images make no rows: not so"
    holds = empty and off <= 1e-5 and found <= ROUNDING and apart > 1e-5
    return judged(holds, measured, f"<= 1e-05, {ROUNDING:g}, > 1e-05")


def reference(subject: Subject) -> Outcome:
    """Vectors of pictures of several sizes are those of the reference, both at unit length."""
    if subject.reference is None:
        return skipped(subject.no_reference)
    if not subject.encoder.embed_dim:
        return skipped("no retrieval space")
    images = [picture(size, seed) for seed, size in enumerate(SIZES)]
    theirs = _unit(subject.reference(images))
    return at_most(gap(_unit(subject.encoder.embed_images(images)), theirs), ROUNDING, "relative difference")


def text(subject: Subject) -> Outcome:
    """Vectors of texts have unit length and the images' width, and are a reference's if one is given."""
    encoder = subject.encoder
    if encoder.text_tower_ref is None:
        return skipped("no text tower")
    ours = encoder.embed_text(TEXTS)
    off = float(np.abs(np.linalg.norm(ours, axis=1) - 1).max())
    shaped = ours.shape == (len(TEXTS), encoder.embed_dim)
    measured = f"{ours.shape[0]} vectors of {ours.shape[1]}, length off by {off:.1e}"
    if subject.text_reference is None:
        return judged(shaped and off <= 1e-5, f"{measured}; no reference was given", "<= 1e-05")
    found = gap(_unit(ours), _unit(subject.text_reference(TEXTS)))
    measured += f", from the reference by {found:.1e}"
    return judged(shaped and off <= 1e-5 and found <= ROUNDING, measured, f"<= 1e-05, {ROUNDING:g}")


def _unit(vectors: Vectors) -> Tensor:
    rows = torch.as_tensor(vectors).detach().cpu().float()
    return nn.functional.normalize(rows, dim=-1)
