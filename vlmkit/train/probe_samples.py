"""What a probe looks at: samples with their own images, with those of other samples, and with grey ones.

A row is rendered anew with its other image, by the stage's collator: another image may have another size, and
so another number of tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from PIL import Image

from vlmkit.data.collate import Collator, Prepared
from vlmkit.data.formats.mixture import Mixture
from vlmkit.data.sample import ImageSource, Sample, open_image
from vlmkit.errors import VlmkitError
from vlmkit.train.schedule import Order
from vlmkit.train.steps import StageData

# In this order in a probe's numbers.
VERSIONS = ("true", "shuffled", "blank")
GREY = (127, 127, 127)
# Samples that are looked at for each one that is wanted: rows of text alone may be most of the data.
LOOKED_AT = 32
# Samples with images for each one that is wanted, of which those with an image of their own are taken.
ENOUGH = 2
# In place of the number of an epoch: the first samples of training are not those of the probe.
OWN_ORDER = 999_983


@dataclass(frozen=True)
class ProbeRows:
    """The samples of a probe, the same through a stage.

    Attributes:
        samples: With their own images.
        others: The same samples, each image changed for another one of the probe's.
        collate: The stage's.
    """

    samples: tuple[Sample, ...]
    others: tuple[Sample, ...]
    collate: Collator

    def share(self, rank: int, world: int) -> ProbeRows:
        """The rows of one process; every process has as many."""
        stop = len(self.samples) // world * world
        return replace(self, samples=self.samples[rank:stop:world], others=self.others[rank:stop:world])

    def prepared(self, version: str, start: int, stop: int) -> list[Prepared]:
        """Some of the samples in one of `VERSIONS`, ready for a batch."""
        samples = (self.others if version == "shuffled" else self.samples)[start:stop]
        if version == "blank":
            samples = tuple(map(blank, samples))
        return [self.collate.prepare(sample, 0) for sample in samples]


def choose_rows(data: StageData, wanted: int) -> ProbeRows:
    """So many samples with images, or as many as there are; drawn by the seed alone.

    Samples whose first image no other one has come first. Where there are fewer than two different images
    there is nothing to change for another, and the rows are empty. Of a mixture they are drawn in its shares.

    Args:
        data: Of the stage.
        wanted: Number of samples.
    """
    data = replace(data, collate=_unpacked(data.collate))
    new: list[tuple[Sample, list[str]]] = []
    known: list[tuple[Sample, list[str]]] = []
    places: dict[str, tuple[tuple[int, int], ImageSource]] = {}
    for looked_at, (sample, names, sizes) in enumerate(_readable(data, wanted * LOOKED_AT), 1):
        (known if names[0] in places else new).append((sample, names))
        for name, size, source in zip(names, sizes, sample.images, strict=True):
            places.setdefault(name, (size, source))
        if len(new) == wanted or (looked_at >= ENOUGH * wanted and len(new) + len(known) >= wanted):
            break
    chosen = (new + known)[:wanted]
    used = {name for _, names in chosen for name in names}
    other = next_image({name: place for name, place in places.items() if name in used})
    if not other:
        return ProbeRows((), (), data.collate)
    swapped = [(s, replace(s, images=tuple(places[other[n]][1] for n in names))) for s, names in chosen]
    fitting = [pair for pair in swapped if _fits(pair[1], data.collate)]
    return ProbeRows(tuple(s for s, _ in fitting), tuple(o for _, o in fitting), data.collate)


def next_image(places: dict[str, tuple[tuple[int, int], ImageSource]]) -> dict[str, str]:
    """Each image's name to that of another one, of equal size where there is one; empty for a single image.

    Sorted by size, each image gives way to the next, and the last one to the first: all are used once, so
    that the images as a whole are the same. Within a size the order is that of hashes, which has nothing to
    do with the order of rows in a batch.
    """
    order = sorted(places, key=lambda name: (places[name][0], name))
    return dict(zip(order, order[1:] + order[:1], strict=True)) if len(order) > 1 else {}


def blank(sample: Sample) -> Sample:
    """The sample with grey images of the sizes of its own."""
    grey = tuple(Image.new("RGB", image.size, GREY) for image in sample.open_images())
    return replace(sample, images=grey)


def _readable(data: StageData, most: int) -> Iterator[tuple[Sample, list[str], Sequence[tuple[int, int]]]]:
    """Samples with images that can be trained on, with name (a hash of pixels) and size of each image."""
    shares = data.samples.shares if isinstance(data.samples, Mixture) else ()
    drawn = Order(len(data.samples), data.seed, shares).shuffled(OWN_ORDER)
    # Of a source that is smaller than its share, a sample is drawn several times.
    for number in islice(dict.fromkeys(drawn), most):
        try:
            sample = data.samples[number]
            images = [open_image(source) for source in sample.images]
            # With the images as they are now: they are decoded once.
            if not images or not _fits(replace(sample, images=tuple(images)), data.collate):
                continue
        except VlmkitError:
            # What a damaged sample means for the stage is said where the stage meets it.
            continue
        names = [hashlib.sha256(image.tobytes()).hexdigest() + str(image.size) for image in images]
        yield sample, names, [image.size for image in images]


def _unpacked(collate: Collator) -> Collator:
    """Each row on its own, in the order of the samples."""
    return replace(collate, text=collate.text and replace(collate.text, pack_length=None))


def _fits(sample: Sample, collate: Collator) -> bool:
    """Whether the sample makes rows: another image may be too large for them."""
    try:
        collate.prepare(sample, 0)
    except VlmkitError:
        return False
    return True
