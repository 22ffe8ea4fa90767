"""Checks of the patch tokens: how many, how wide, which one is which, from which layer.

Shapes: R perturbed patches, T patches, V width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, pixel_batch
from vlmkit.errors import VlmkitError
from vlmkit.testing.report import Outcome, judged, skipped
from vlmkit.testing.subject import Subject, look, photos
from vlmkit.testing.twin import gap, picture, sizes
from vlmkit.testing.variants import WIDE, in_layout, is_large, oblong, other_layouts

# Patches that are perturbed, how often, by how much. A stem of overlapping convolutions sees a patch by two
# tokens nearly alike: the one at its place may lose to its neighbour by a little.
PERTURBED, NOISES, LOUD, CLEAR, BESIDE = 16, 2, 0.5, 1.3, 0.85
OWN_SIZES, OTHER_SIZES = 8, 4
# The embeddings and the first block: every encoder has them. And what none has.
LAYERS, FAR = (0, 1), 10**6
SEEN = 1e-3


def forward(subject: Subject) -> Outcome:
    """A square picture gives as many tokens, as wide, and a vector as wide as the spec states, all finite."""
    spec = subject.encoder.spec
    features = subject.see(photos(1, (90, 90)))
    patches, width = features.patches_TV.shape
    vector = 0 if features.pooled_BE is None else features.pooled_BE.shape[-1]
    stated = sum(view.rows * view.cols for view in spec.views((90, 90)))
    outputs = [features.patches_TV] + ([] if features.pooled_BE is None else [features.pooled_BE])
    finite = all(bool(torch.isfinite(x).all()) for x in outputs)
    measured = f"{patches} tokens of {width}, vector of {vector}" + ("" if finite else ", not all finite")
    holds = finite and (patches, width, vector) == (stated, spec.width, spec.embed_dim)
    return judged(holds, measured, f"{stated} of {spec.width}, {spec.embed_dim}")


def grids(subject: Subject) -> Outcome:
    """In each layout that the encoder takes, pictures of any size have the grids that the spec states."""
    own = subject.encoder
    taken, wrong = [type(own.spec.rule).__name__.lower()], _wrong_grids(own, OWN_SIZES)
    refused: list[str] = []
    for name in other_layouts(subject):
        try:
            encoder = in_layout(subject, name)
        except VlmkitError as error:
            wrong.append(str(error))
            continue
        (refused if encoder is None else taken).append(name)
        wrong += [] if encoder is None else _wrong_grids(encoder, OTHER_SIZES)
    measured = f"{len(wrong)} of {OWN_SIZES + OTHER_SIZES * (len(taken) - 1)} differ in {', '.join(taken)}"
    measured += f", first {wrong[0]}" if wrong else ""
    measured += "; too large to be tried in other layouts" if is_large(subject) else ""
    return judged(not wrong, measured + (f"; refused: {', '.join(refused)}" if refused else ""), "0")


def _wrong_grids(encoder: VisionEncoder, number: int) -> list[str]:
    """Pictures, one by one, whose grids are not those of the spec."""
    wrong = []
    for seed, size in enumerate(sizes(number)):
        found = look(encoder, [picture(size, seed)]).grids
        stated = [(view.rows, view.cols) for view in encoder.spec.views(size)]
        if found != stated:
            wrong.append(f"{size[0]}x{size[1]}: {found} for {stated}")
    return wrong


def order(subject: Subject) -> Outcome:
    """Noise on the pixels of a patch changes the token at its place, row by row, more than one elsewhere."""
    # Which token is which does not depend on weights, and what training put where cannot be known.
    seen = subject.drawn_anew()
    # A grid that is no square shows rows taken for columns, too.
    encoders = list(dict.fromkeys(e for e in (seen.encoder, oblong(seen)) if e is not None))
    found = [_at_home(encoder) for encoder in encoders]
    measured = ", ".join(f"in {grid} {own:.1f}x the usual, {other}" for own, grid, other, _ in found)
    holds = all(own >= CLEAR and own >= BESIDE * best for own, _, _, best in found)
    return judged(holds, measured, f">= {CLEAR:g}x, >= {BESIDE:g} of another order")


@torch.no_grad()
def _at_home(encoder: VisionEncoder) -> tuple[float, str, str, float]:
    """How much the tokens at the places of perturbed patches change, the grid, and the best other order."""
    spec, image = encoder.spec, picture(WIDE)
    view = spec.views(image.size)[0]
    batch = encoder.move(pixel_batch(spec, [image]))
    places = _spread(view.rows * view.cols)
    before_TV = encoder(batch).views()[0]
    changes_RT = torch.stack([_changes(encoder, batch, divmod(p, view.cols), before_TV) for p in places])
    # Attention carries a change to all tokens, to some more than to others: each is held against its usual.
    relative_RT = changes_RT / changes_RT.mean(0).clamp(min=1e-12)
    own = float(relative_RT[range(len(places)), places].mean())
    others = {
        name: float(relative_RT[range(len(places)), order_T[places]].mean())
        for name, order_T in _other_orders(view.rows, view.cols).items()
    }
    best = max(others, key=lambda name: others[name])
    return own, f"{view.rows}x{view.cols}", f"{others[best]:.1f}x if {best}", others[best]


def _other_orders(rows: int, cols: int) -> dict[str, Tensor]:
    """Where each patch would be, by the mistakes that are made (T)."""
    places_RC = torch.arange(rows * cols).view(rows, cols)
    return {
        "one too late": places_RC.flatten().roll(-1),
        "one too early": places_RC.flatten().roll(1),
        "column by column": torch.arange(rows * cols).view(cols, rows).T.flatten(),
        "from below": places_RC.flip(0).flatten(),
        "from the right": places_RC.flip(1).flatten(),
    }


def _spread(number: int) -> list[int]:
    """At most `PERTURBED` of that many places, the first and the last among them."""
    return torch.linspace(0, number - 1, min(number, PERTURBED)).round().long().tolist()


def _changes(encoder: VisionEncoder, batch: PixelBatch, place: tuple[int, int], before_TV: Tensor) -> Tensor:
    """How much each token of the first view changes (T) with noise on the pixels of one patch, on average."""
    side, (row, col) = encoder.spec.patch_size, place
    total_T = torch.zeros(len(before_TV))
    for seed in range(NOISES):
        noisy = replace(batch, pixels_N=batch.pixels_N.clone())
        pixels = noisy.views()[0][:, row * side : (row + 1) * side, col * side : (col + 1) * side]
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
        pixels += LOUD * noise.to(pixels)
        total_T += (encoder(noisy).views()[0] - before_TV).float().norm(dim=1).cpu()
    return total_T


def layer(subject: Subject) -> Outcome:
    """Another `layer` gives other tokens, the spec states it, and one that does not exist is refused."""
    if "layer" not in subject.encoder.config:
        return skipped("no option layer")
    made = [subject.rebuilt(layer=number) for number in LAYERS]
    stated = all(e.spec.layer == number for e, number in zip(made, LAYERS, strict=True))
    one, other = (look(encoder, photos(1)).patches_TV for encoder in made)
    found = gap(one, other)
    taken = [number for number in (FAR, -FAR) if not _refused(subject, number)]
    measured = f"difference of layers 0 and 1: {found:.1e}"
    measured += "" if stated else "; the spec states another"
    measured += f"; {taken} not refused" if taken else ""
    return judged(stated and not taken and found > SEEN, measured, f"> {SEEN:g}")


def _refused(subject: Subject, number: int) -> bool:
    """When it is built or when it sees, with an error for users."""
    try:
        look(subject.rebuilt(layer=number), photos(1))
    except VlmkitError:
        return True
    return False
