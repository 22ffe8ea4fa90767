"""Checks of training: frozen is frozen, and what is trained is reached by gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmkit.encoders.base import VisionEncoder
from vlmkit.testing.report import Outcome, judged
from vlmkit.testing.subject import Subject, features_gap, look, photos


def frozen(subject: Subject) -> Outcome:
    """With `requires_grad_(False)` features have no graph."""
    encoder = subject.copy().requires_grad_(False)
    features = encoder(subject.batch(photos(1)))
    outputs = {"patches": features.patches_TV, "vector": features.pooled_BE}
    wrong = [name for name, x in outputs.items() if x is not None and x.requires_grad]
    return judged(not wrong, f"graphs: {', '.join(wrong) or 'none'}", "none")


def trainable(subject: Subject) -> Outcome:
    """Every parameter that changes patches or vector gets a gradient from them."""
    encoder = subject.copy().requires_grad_(True)
    features = encoder(subject.batch(photos(2)))
    outputs: list[Tensor] = [x for x in (features.patches_TV, features.pooled_BE) if x is not None]
    # Weighted by noise: the plain sum of normalised numbers does not depend on what is before the norm.
    noise = torch.Generator().manual_seed(0)
    weighted = [(x * torch.randn(x.shape, generator=noise).to(x)).sum() for x in outputs]
    loss = torch.stack(weighted).sum()
    if not loss.requires_grad:
        return judged(False, "the features have no graph", "every parameter in use")
    loss.backward()  # type: ignore[no-untyped-call]
    idle = [name for name, p in encoder.named_parameters() if p.grad is None or not bool(p.grad.any())]
    cut = [name for name in idle if _matters(subject, name)]
    number = sum(1 for _ in encoder.parameters())
    measured = f"{number - len(idle)} of {number} tensors have one, {len(idle) - len(cut)} are not in use"
    measured += f", without: {', '.join(cut[:3])}" if cut else ""
    return judged(not cut, measured, "every one in use")


def _matters(subject: Subject, name: str) -> bool:
    """Whether the features change with a parameter."""
    changed: VisionEncoder = subject.copy()
    with torch.no_grad():
        parameter = changed.get_parameter(name)
        noise = torch.Generator().manual_seed(0)
        parameter.add_(torch.randn(parameter.shape, generator=noise).to(parameter))
    return features_gap(look(changed, photos(2)), subject.see(photos(2))) > 0
