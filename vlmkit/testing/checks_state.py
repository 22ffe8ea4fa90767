"""Checks of what is stored, of its fingerprint, and of other types of numbers."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load, save

from vlmkit.encoders.base import VisionEncoder
from vlmkit.testing.report import Outcome, judged
from vlmkit.testing.subject import Subject, features_gap, look, photos

TYPES = (torch.bfloat16, torch.float16)
NUDGE = 1e-3


def round_trip(subject: Subject) -> Outcome:
    """Configuration as JSON and tensors as safetensors rebuild the encoder to the bit."""
    encoder = subject.encoder
    config = json.loads(json.dumps(encoder.config))
    stored = save({name: t.detach().cpu().clone() for name, t in encoder.state_dict().items()})
    # Another random state: what is neither stored nor computed from the configuration comes out different.
    torch.manual_seed(4321)
    twin = type(encoder)(**config).eval().to(encoder.device)
    twin.load_state_dict(load(stored))
    found = features_gap(look(twin, photos(2)), subject.see(photos(2)))
    same = (twin.config, twin.spec) == (encoder.config, encoder.spec)
    measured = f"difference {found:.1e}" + ("" if same else ", configuration or spec differ")
    return judged(found == 0 and same, measured, "0")


def fingerprint(subject: Subject) -> Outcome:
    """It stays with a copy and with training mode, and changes with one weight and with the layer."""
    stated = subject.encoder.fingerprint
    wrong = []
    if subject.copy().train().fingerprint != stated:
        wrong.append("another one of a copy")
    parameters = [name for name, _ in subject.encoder.named_parameters()]
    wrong += [
        f"the same with another {n}" for n in {parameters[0], parameters[-1]} if _nudged(subject, n) == stated
    ]
    if "layer" in subject.encoder.config:
        other = 1 if subject.encoder.config["layer"] == 0 else 0
        if subject.rebuilt(layer=other).fingerprint == stated:
            wrong.append("the same with another layer")
    return judged(not wrong, "; ".join(wrong) or f"{stated[:8]}..., as it should", "")


def _nudged(subject: Subject, name: str) -> str:
    """The fingerprint with one number changed."""
    twin: VisionEncoder = subject.copy()
    with torch.no_grad():
        twin.get_parameter(name).view(-1)[-1] += NUDGE
    return twin.fingerprint


def dtype(subject: Subject) -> Outcome:
    """bfloat16 and float16 run, what comes out is of the weights' type; the difference is stated."""
    exact, wrong, figures = subject.see(photos(2)), [], []
    for kind in TYPES:
        name = str(kind).removeprefix("torch.")
        features = look(subject.copy().to(kind), photos(2))
        outputs = [x for x in (features.patches_TV, features.pooled_BE) if x is not None]
        figures.append(f"{name} {features_gap(features, exact):.1e}")
        wrong += [f"{name} gives {x.dtype}" for x in outputs if x.dtype != kind]
        wrong += [f"{name} is not finite" for x in outputs if not bool(torch.isfinite(x).all())]
    return judged(not wrong, "difference " + ", ".join(figures + wrong), "same type, finite")
