"""Checks that what is seen of a picture depends on that picture alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, SeveralSizesError, pixel_batch
from vlmkit.testing.report import Outcome, at_most, judged, skipped
from vlmkit.testing.subject import ROUNDING, Subject, features_gap, look, photos
from vlmkit.testing.twin import gap, picture
from vlmkit.testing.variants import oblong
from vlmkit_connectors import VisionFeatures

SEVERAL = [(101, 67), (60, 140), (90, 90), (30, 200), (101, 67)]


def repeat(subject: Subject) -> Outcome:
    """Two runs give the same bits. What training mode changes is stated; it may."""
    first, again = (subject.see(photos(2)) for _ in range(2))
    training = features_gap(look(subject.copy().train(), photos(2)), first)
    found = features_gap(again, first)
    return judged(found == 0, f"difference {found:.1e} (in training mode {training:.1e})", "0")


def batch(subject: Subject) -> Outcome:
    """A picture has the same features alone and among others of its size."""
    return _alone_and_together(subject.encoder, photos(4))


def packing(subject: Subject) -> Outcome:
    """Pictures with views of other sizes or numbers in the batch change nothing: no padding is seen."""
    encoder = subject.encoder
    if len({encoder.spec.views(size) for size in SEVERAL}) == 1:
        other = oblong(subject)
        if other is None:
            return skipped("all views are of one size")
        encoder = other
    try:
        return _alone_and_together(encoder, [picture(size, seed) for seed, size in enumerate(SEVERAL)])
    except SeveralSizesError as error:
        return skipped(f"refuses a batch of several sizes: {str(error).partition(';')[0]}")


def first_view(subject: Subject) -> Outcome:
    """The vector of a picture of several views is that of its first view, which shows the whole picture."""
    if not subject.encoder.embed_dim:
        return skipped("no retrieval space")
    images = photos(4)
    whole = pixel_batch(subject.encoder.spec, images)
    kept = [whole.image_of_view_I.tolist().index(i) for i in range(len(images))]
    views = [subject.encoder.spec.views(image.size)[0] for image in images]
    pixels = torch.cat([whole.views()[i].flatten() for i in kept])
    with torch.no_grad():
        # Four views as one picture each, then as those of two pictures: the first has three of them.
        each, two = (
            subject.encoder(subject.encoder.move(PixelBatch.of(pixels, views, owners))).pooled_BE
            for owners in ([0, 1, 2, 3], [0, 0, 0, 1])
        )
    return at_most(gap(two, each[[0, 3]]), ROUNDING, "relative difference")


def _alone_and_together(encoder: VisionEncoder, images: Sequence[Image.Image]) -> Outcome:
    alone = [look(encoder, [image]) for image in images]
    return at_most(features_gap(look(encoder, images), _joined(alone)), ROUNDING, "relative difference")


def _joined(alone: list[VisionFeatures]) -> VisionFeatures:
    """The features of pictures that were seen one by one, as if they had been seen together."""
    pooled = [features.pooled_BE for features in alone if features.pooled_BE is not None]
    owners = [torch.full_like(f.image_of_view_I, i) for i, f in enumerate(alone)]
    return VisionFeatures(
        torch.cat([features.patches_TV for features in alone]),
        torch.cat([features.grids_I2 for features in alone]),
        torch.cat(owners),
        torch.cat(pooled) if pooled else None,
    )
