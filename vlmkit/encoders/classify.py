"""Zero-shot classification: images against prompts that name the labels, scored as in training.

CLIP: softmax of the scaled cosines (Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1.4 for
the ensemble of prompts). SigLIP: a sigmoid for each label on its own (Zhai et al. 2023,
https://arxiv.org/abs/2303.15343).

Shapes: B images, L labels, M templates, E retrieval width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmkit.errors import UsageError

if TYPE_CHECKING:
    from vlmkit.encoders.base import VisionEncoder

Scores = NDArray[np.float32]
TEMPLATES = ("a photo of a {}.",)
PLACE = "{}"


@dataclass(frozen=True)
class Scoring:
    """How a checkpoint turns cosines of unit vectors into scores.

    Attributes:
        families: Encoders whose images it was trained with; it says nothing about those of another.
        kind: `softmax` over the labels, or a `sigmoid` for each label on its own.
        scale: Factor of the cosines, `logit_scale.exp()`.
        bias: Added to them.
    """

    families: tuple[str, ...]
    kind: Literal["softmax", "sigmoid"]
    scale: float
    bias: float = 0.0

    def logits(self, cosines_BL: Scores) -> Scores:
        """As `logits_per_image` of transformers."""
        return np.float32(self.scale) * cosines_BL + np.float32(self.bias)

    def scores(self, cosines_BL: Scores) -> Scores:
        """Numbers in [0, 1]; with `softmax` those of an image sum to 1, with `sigmoid` they need not."""
        logits_BL = self.logits(cosines_BL)
        if self.kind == "sigmoid":
            # By tanh, which does not overflow where a logit is very negative.
            return np.asarray(0.5 * (1 + np.tanh(logits_BL / 2)), np.float32)
        powers_BL = np.exp(logits_BL - logits_BL.max(axis=1, keepdims=True))
        return np.asarray(powers_BL / powers_BL.sum(axis=1, keepdims=True), np.float32)


def classify(
    encoder: VisionEncoder,
    images: Sequence[Image.Image],
    labels: Sequence[str],
    templates: Sequence[str],
    temperature: float | None,
) -> Scores:
    """See `VisionEncoder.classify`."""
    check_texts(labels, templates)
    scoring = scoring_for(encoder, temperature)
    labels_LE = label_vectors(encoder, labels, templates)
    return scoring.scores(encoder.embed_images(images) @ labels_LE.T)


def label_vectors(encoder: VisionEncoder, labels: Sequence[str], templates: Sequence[str]) -> Scores:
    """Unit vectors of labels (L, E): the mean of the templates' unit vectors, at length 1."""
    prompts = [template.replace(PLACE, label) for label in labels for template in templates]
    texts_LME = encoder.embed_text(prompts).reshape(len(labels), len(templates), -1)
    mean_LE = texts_LME.mean(axis=1)
    return np.asarray(mean_LE / np.linalg.norm(mean_LE, axis=1, keepdims=True), np.float32)


def scoring_for(encoder: VisionEncoder, temperature: float | None) -> Scoring:
    """The text tower's own scoring, or a softmax of cosines over a temperature that is given.

    Raises:
        UsageError: No temperature is given and the tower has no scoring for this encoder's images; or it is
            not positive.
        VlmkitError: The encoder has no text tower.
    """
    own = encoder.text_tower().scoring
    if temperature is not None:
        if not temperature > 0:
            raise UsageError(f"temperature {temperature} is not positive; give e.g. 0.01, as CLIP's")
        return Scoring((encoder.family,), "softmax", 1 / temperature)
    if own is not None and encoder.family in own.families:
        return own
    found = "has no scale" if own is None else f"has a scale for images of {', '.join(own.families)}"
    raise UsageError(
        f"text tower {encoder.text_tower_ref!r} {found}, so cosines with images of {encoder.family!r} "
        "cannot be made scores; give a temperature (classify(..., temperature=0.05): softmax of cosine / "
        "temperature)"
    )


def check_texts(labels: Sequence[str], templates: Sequence[str]) -> None:
    """Raise a `UsageError` for labels or templates that make no prompts."""
    for name, texts in (("labels", labels), ("templates", templates)):
        if isinstance(texts, str):
            raise UsageError(f"found one text for {name}: {texts!r}; give a list of texts")
        if not len(texts):
            raise UsageError(f"found no {name}; give one or more")
    for template in templates:
        if PLACE not in template:
            raise UsageError(f"template {template!r} has no {{}} for the label; e.g. {TEMPLATES[0]!r}")
