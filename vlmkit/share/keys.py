"""What a piece of work is a function of, as a hash: equal keys, equal results.

A key says too much rather than too little: what is in it and does not matter costs work that is done again;
what is missing and matters would hand one run the result of another.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import vlmkit
import vlmkit_connectors
from vlmkit.data.collate import TextRules
from vlmkit.data.formats.mixture import Mixture
from vlmkit.data.sample import FileSlice, ImageSource, Sample, readable
from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.text import tensors_hash, text_hash

if TYPE_CHECKING:
    from vlmkit.vlm import VLM

PACKAGES = (
    "torch", "torchvision", "transformers", "tokenizers", "timm", "accelerate", "peft", "bitsandbytes",
    "numpy", "pillow",
)  # fmt: skip
# What a chat template calls to know the day, see `transformers.utils.chat_template_utils`.
NOW = "strftime_now"


def digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 (32 hex digits) of JSON values."""
    return text_hash(json.dumps(facts, sort_keys=True, default=str))


def machine(device: torch.device, mixed: str) -> dict[str, Any]:
    """What decides about the last bits of a computation beside its inputs.

    Args:
        device: Where it runs.
        mixed: accelerate's name of the mixed precision.
    """
    cuda = device.type == "cuda"
    return {
        "code": code_hash(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        # Sums are split over threads.
        "threads": torch.get_num_threads(),
        "precision": [mixed, str(torch.get_default_dtype()), torch.get_float32_matmul_precision()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@cache
def code_hash() -> str:
    """Hash of this package's source: a checkout changes without its version changing."""
    found = hashlib.sha256(vlmkit.__version__.encode())
    for package in (vlmkit, vlmkit_connectors):
        folder = Path(str(package.__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            found.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:32]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _kind(part: nn.Module) -> list[str]:
    """Types of the numbers, and the class with its source, which may be a stranger's."""
    types = sorted({str(t.dtype) for t in part.state_dict().values()})
    try:
        source = hashlib.sha256(Path(inspect.getfile(type(part))).read_bytes()).hexdigest()
    except (OSError, TypeError):  # a class that was typed in
        source = ""
    return [type(part).__qualname__, source, *types]


def encoder_facts(encoder: VisionEncoder) -> list[str]:
    """Tensors as they are now, configuration and preprocessing, text tower.

    They are hashed anew: a fingerprint that is kept does not see what was written through `.data`.
    """
    return [encoder.compute_fingerprint(), *_kind(encoder)]


def encoders_facts(model: VLM) -> list[list[str]]:
    """`encoder_facts` of all."""
    return [encoder_facts(encoder) for encoder in model.encoders if isinstance(encoder, VisionEncoder)]


def model_facts(model: VLM) -> dict[str, Any]:
    """The whole model: encoders, connector, splice, language model, tokenizer, configuration."""
    parts = {"connector": model.connector, "splice": model.splice, "llm": model.language_model}
    return {
        "encoders": encoders_facts(model),
        "parts": {name: [tensors_hash(part), *_kind(part)] for name, part in parts.items()},
        "config": model.config.to_dict(),
        "attention": model.language_model.config._attn_implementation,
        "tokenizer": tokenizer_hash(model.processor.tokenizer),
    }


def tokenizer_hash(tokenizer: Any) -> str:
    """Vocabulary, rules, special tokens and chat template of a fast tokenizer.

    A template that states the date makes other rows on another day, so it is hashed with today's.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # State of the last call, no property of the tokenizer.
    rules = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    named = {"class": type(tokenizer).__name__, "special": tokenizer.special_tokens_map}
    # There may be several templates, by name.
    day = {"day": today().isoformat()} if NOW in str(tokenizer.chat_template) else {}
    return digest({**named, "rules": rules, "template": tokenizer.chat_template, **day})


def today() -> date:
    """The day that a chat template is told."""
    return date.today()


def tokens_key(rules: TextRules, prompt: str) -> str:
    """What a row of tokens is a function of, beside the conversation."""
    versions = [_version(name) for name in ("transformers", "tokenizers")]
    stated = {"tokenizer": tokenizer_hash(rules.tokenizer), "prompt": prompt, "code": code_hash()}
    return digest({**stated, "versions": versions, "eos": rules.eos_weight, "image": rules.image_token_id})


def data_hash(samples: Sequence[Sample]) -> str:
    """Names, texts and images of all samples, in order, and what an epoch of a mixture shows of each source.

    An image in a file is known by path, size and time of change; it is not read. Of a row that cannot be read
    it is known that it is there.
    """
    found = hashlib.sha256()
    shares = samples.shares if isinstance(samples, Mixture) else ()
    found.update(repr([astuple(share) for share in shares]).encode())
    for sample in readable(samples):
        found.update(repr(sample and list(_facts_of(sample))).encode())
    return found.hexdigest()[:32]


def _facts_of(sample: Sample) -> Iterator[Any]:
    yield sample.id, sample.captions
    for source in sample.images:
        yield image_facts(source)
    for conversation in sample.conversations:
        for message in conversation:
            yield message.role, message.parts, message.weight


def image_facts(source: ImageSource) -> tuple[Any, ...]:
    """What tells an image from others: its bytes, or path, size and time of change of its file."""
    if isinstance(source, bytes):
        return (hashlib.sha256(source).hexdigest(),)
    if isinstance(source, FileSlice):
        return (*_file_facts(source.path), source.offset, source.size)
    if isinstance(source, Path):
        return _file_facts(source)
    return source.mode, source.size, hashlib.sha256(source.tobytes()).hexdigest()


def _file_facts(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError:  # a missing image is the collator's to report
        return (str(path.absolute()), -1, -1)
    return (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
