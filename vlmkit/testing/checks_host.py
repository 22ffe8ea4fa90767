"""Checks that an encoder leaves its host alone: no network, and global state as it was found."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch

from vlmkit.testing.report import Outcome, judged
from vlmkit.testing.subject import Subject, look, photos

# Drawing random weights moves on the first of them; seeing a picture does not.
STATES: dict[str, Callable[[], Any]] = {
    "torch's random state": lambda: torch.get_rng_state().tolist(),
    "numpy's random state": lambda: [str(part) for part in np.random.get_state(legacy=True)],
    "python's random state": random.getstate,
    "torch's default type": torch.get_default_dtype,
    "torch's gradient mode": torch.is_grad_enabled,
    "torch's threads": torch.get_num_threads,
    "torch's determinism": torch.are_deterministic_algorithms_enabled,
    "the environment": lambda: dict(os.environ),
    "the working directory": os.getcwd,
}
DRAWN = ("torch's random state",)


def global_state(subject: Subject) -> Outcome:
    """Building changes nothing but torch's random state, seeing pictures nothing, `embed_images` no mode."""
    encoder, images = subject.copy(), photos(1)
    with _observed() as built:
        subject.rebuilt()
    with _observed() as seen:
        look(encoder, images)
    changed = [name for name in built if name not in DRAWN] + seen
    if encoder.embed_dim:
        modes = [module.training for module in encoder.train().modules()]
        encoder.embed_images(images)
        if [module.training for module in encoder.modules()] != modes:
            changed.append("training mode")
    return judged(not changed, f"changed: {', '.join(dict.fromkeys(changed)) or 'nothing'}", "nothing")


@contextmanager
def _observed() -> Iterator[list[str]]:
    """Names of the states that differ after the block; filled when it ends."""
    before = {name: read() for name, read in STATES.items()}
    changed: list[str] = []
    yield changed
    changed += [name for name, read in STATES.items() if read() != before[name]]


def offline(subject: Subject) -> Outcome:
    """Building from the configuration and seeing a picture ask nothing of a network."""
    with _no_network() as asked:
        look(subject.rebuilt(), photos(1))
    first = f", first to {asked[0]}" if asked else ""
    return judged(not asked, f"{len(asked)} connections{first}", "0")


@contextmanager
def _no_network() -> Iterator[list[str]]:
    """Refuse connections in the block, and list those that were asked for."""
    asked: list[str] = []

    def refuse(*arguments: Any, **named: Any) -> NoReturn:
        asked.append(str(arguments[-1]))
        raise OSError("the check `offline` allows no network")

    doors = [(socket, "getaddrinfo"), (socket.socket, "connect"), (socket.socket, "connect_ex")]
    # `connect` is inherited: it is put back by deleting what hides it.
    kept = [vars(owner).get(name) for owner, name in doors]
    try:
        for owner, name in doors:
            setattr(owner, name, refuse)
        yield asked
    finally:
        for (owner, name), was in zip(doors, kept, strict=True):
            delattr(owner, name) if was is None else setattr(owner, name, was)
