"""A recipe's configuration and processor without weights: what `plan` and `data check` are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from vlmkit import llm
from vlmkit.assemble import training_texts
from vlmkit.config import VLMConfig
from vlmkit.encoders import encoder_class
from vlmkit.encoders.hub import load_pretrained
from vlmkit.encoders.known import KNOWN
from vlmkit.errors import MissingExtraError, VlmkitError
from vlmkit.init_from import adopt, find_saved
from vlmkit.llm import gguf
from vlmkit.llm.known import KNOWN_LLMS
from vlmkit.llm.words import build_words_tokenizer
from vlmkit.processor import Processor
from vlmkit.recipe import Recipe
from vlmkit.recipe_files import bundled_recipes
from vlmkit.weights import PYPI, reachable_weights


def refuse_fetching(recipe: Recipe) -> None:
    """Refuse recipes whose shapes would have to be downloaded.

    Raises:
        VlmkitError: Shapes are neither bundled nor on this machine; names the models.
    """
    named: list[tuple[Any, Mapping[str, object]]]
    named = [(block.options.get("weights"), KNOWN) for block in recipe.model.encoders]
    named += [(recipe.model.llm.weights, KNOWN_LLMS)]
    remote = [str(w) for w, known in named if w is not None and w not in known and _is_remote(str(w))]
    if remote:
        raise VlmkitError(
            f"the shapes of {', '.join(remote)} are not bundled; plan would fetch config.json from the hub: "
            "allow it with --fetch, or give a folder"
        )


def _is_remote(reference: str) -> bool:
    return not reference.startswith(PYPI) and not Path(reference).expanduser().exists()


def planned_config(recipe: Recipe, notes: list[str]) -> VLMConfig:
    """The model's configuration: of the one that `init_from` names if it is here, else of the parts.

    Args:
        recipe: Whose model.
        notes: What is not known is added, in words.
    """
    saved = recipe.init_from
    if saved is not None and Path(saved).is_dir():
        config: VLMConfig = VLMConfig.from_pretrained(find_saved(saved))
        adopt(config, saved, recipe.model)
        return config
    if saved is not None and saved not in bundled_recipes():
        notes.append(f"{saved} is not looked at: shapes are those of the parts that the recipe states")
    return _stated_config(recipe, _text_config(recipe, notes))


def _stated_config(recipe: Recipe, text_config: Any) -> VLMConfig:
    blocks = recipe.model.encoders
    return VLMConfig(
        encoders=[{"type": b.type, **encoder_class(b.type).resolve(**b.options)} for b in blocks],
        fusion=recipe.model.fusion,
        image_tokens=recipe.model.image_tokens.model_dump(),
        splice=recipe.model.splice.model_dump(),
        connector={"type": recipe.model.connector.type, **recipe.model.connector.options},
        text_config=text_config,
        prompt={"format": recipe.model.prompt},
    )


def _text_config(recipe: Recipe, notes: list[str]) -> Any:
    """The language model's configuration with a row for the image placeholder."""
    stated = recipe.model.llm
    if stated.weights is None:
        vocabulary = len(build_words_tokenizer(_texts(recipe, notes)))
        return AutoConfig.for_model(stated.type, vocab_size=vocabulary, **stated.options)
    if stated.weights in KNOWN_LLMS and not Path(stated.weights).is_dir():
        known = KNOWN_LLMS[stated.weights]
        config, tokens = AutoConfig.for_model(known.family, **known.config), known.tokens
    else:
        folder = _readable(stated.weights)
        config, tokens = load_pretrained(AutoConfig, folder), len(load_pretrained(AutoTokenizer, folder))
    config.vocab_size = max(config.vocab_size, tokens + 1)
    return config


def _readable(weights: str) -> str:
    """What `from_pretrained` takes of a reference to a language model."""
    path = reachable_weights(weights)
    return str(gguf.converted(Path(path))) if path.endswith(gguf.SUFFIX) else path


def _texts(recipe: Recipe, notes: list[str]) -> Iterable[str]:
    try:
        return list(training_texts(recipe))
    except (VlmkitError, MissingExtraError):
        notes.append("the vocabulary is made from data that is not there: its rows are not counted")
        return []


def planned_processor(recipe: Recipe, texts: Iterable[str], notes: list[str], fetch: bool) -> Processor:
    """The processor that training would have: a tokenizer, the encoders' specs, the connector on meta.

    Args:
        recipe: Whose model.
        texts: All that its stages train on, for the vocabulary of a language model from scratch.
        notes: What is not known is added, in words.
        fetch: Download what is small: the tokenizer and config.json.

    Raises:
        VlmkitError: The tokenizer or shapes are not on this machine, and `fetch` is not set.
    """
    if not fetch:
        refuse_fetching(recipe)
    saved = recipe.init_from
    if saved is not None and Path(saved).is_dir():
        config = planned_config(recipe, notes)
        return Processor.from_pretrained(find_saved(saved), config=config)
    if saved is not None:
        notes.append(f"{saved} is not looked at: the tokenizer is that of the parts that the recipe states")
    weights = recipe.model.llm.weights
    tokenizer = build_words_tokenizer(texts) if weights is None else _tokenizer(weights, fetch)
    image_token_id = llm.add_image_token(tokenizer)
    config = _stated_config(recipe, _shape(recipe, len(tokenizer), fetch))
    config.image_token_id = image_token_id
    return Processor.from_config(config, tokenizer)


def _shape(recipe: Recipe, vocabulary: int, fetch: bool) -> Any:
    """The language model's configuration."""
    stated = recipe.model.llm
    if stated.weights is None:
        return AutoConfig.for_model(stated.type, vocab_size=vocabulary, **stated.options)
    if stated.weights in KNOWN_LLMS and not Path(stated.weights).is_dir():
        known = KNOWN_LLMS[stated.weights]
        return AutoConfig.for_model(known.family, **known.config)
    return load_pretrained(AutoConfig, _readable(stated.weights), local_files_only=not fetch)


def _tokenizer(weights: str, fetch: bool) -> Any:
    try:
        return load_pretrained(AutoTokenizer, _readable(weights), local_files_only=not fetch)
    except VlmkitError as error:
        if fetch:
            raise
        raise VlmkitError(
            f"the tokenizer of {weights} is not on this machine; allow to download it (not the weights) with "
            f"--fetch, or give a folder ({error})"
        ) from error
