"""GGUF files: converted once to float32 safetensors with tokenizer and chat template, and cached.

Dequantising takes many times as long as reading the result, so it is done once a file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from vlmkit.errors import MissingExtraError, VlmkitError
from vlmkit.llm.stored import load_stored
from vlmkit.weights import cache_dir

SUFFIX = ".gguf"


def converted(file: Path) -> Path:
    """The folder with a GGUF file's model and tokenizer as `from_pretrained` reads them.

    It lies in the cache under the SHA-256 of the file's content, and takes four bytes a parameter; deleting
    it only costs the time to make it again.

    Raises:
        MissingExtraError: The package gguf is not installed, and the file is not in the cache.
        VlmkitError: The file is broken, or transformers cannot read its architecture.
    """
    with file.open("rb") as content:
        key = hashlib.file_digest(content, "sha256").hexdigest()
    folder = cache_dir() / "gguf" / key
    if not folder.is_dir():
        if importlib.util.find_spec("gguf") is None:
            raise MissingExtraError("gguf", "gguf")
        _fill(folder, file)
    return folder


def _fill(folder: Path, file: Path) -> None:
    """Convert beside the final place and rename: a reader sees all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        _convert(file, partial)
        partial.rename(folder)
    except OSError:
        # Another process was faster: its folder has the same content.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert(file: Path, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = load_stored(str(file), str(file.parent), gguf_file=file.name, dtype=torch.float32)
    except VlmkitError:
        raise
    # The reader's errors are of many kinds: a broken file is an IndexError or a struct's, as it happens.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise VlmkitError(
            f"{file} cannot be converted ({type(error).__name__}: {reason}); give another file or a hub id"
        ) from error
    _forget_quantization(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _forget_quantization(model: Any) -> None:
    """Make the model one that can be saved: transformers takes it for quantised, which it is no more."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
