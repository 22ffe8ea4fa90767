"""`--tiny`: a recipe with the same parts at tiny random size, a bundled sample for data, two steps a stage.

It shows in seconds, on any machine and without a download, that a recipe runs from its start to its end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmkit.config import connector_class
from vlmkit.encoders import encoder_class
from vlmkit.encoders.known import KNOWN
from vlmkit.errors import unknown_name
from vlmkit.layouts import build_layout
from vlmkit.llm import known_config
from vlmkit.llm.known import KNOWN_LLMS
from vlmkit.objectives import OBJECTIVES, objective_weights
from vlmkit.recipe import LLM, Block, Evaluate, Part, Recipe, Stage, load_recipe
from vlmkit.recipe_files import bundled_recipes

SAMPLE = Path(__file__).parent / "data" / "tiny"
# The first rows have one image, one question and one answer, as the prompt `plain` needs.
PLAIN_ROWS = 8
STEPS = 2
# Options of an encoder that a tiny one has its own for.
SIZES = ("weights", "vision_config", "image_size", "shortest_edge", "proved", "projection")
# By the names that the families of transformers have for them; 64 numbers are a block of 4-bit weights.
LANGUAGE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "word_embed_proj_dim": 64,
    "ffn_dim": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2048,
}  # fmt: skip


def tiny_runs(recipe: Recipe) -> list[Recipe]:
    """The recipe in tiny, after those whose runs it starts from.

    What `init_from` names is run in tiny first if it is a bundled recipe; any other model is left out, and
    the tiny parts start at random.

    Raises:
        UsageError: There is no tiny twin of a part.
    """
    before: list[Recipe] = []
    start = None
    if recipe.init_from in bundled_recipes():
        source = load_recipe(str(recipe.init_from))
        output = recipe.run_dir.parent / f"{source.name}_tiny"
        before = tiny_runs(source.model_copy(update={"output": str(output)}))
        start = str(output)
    return [*before, _tiny(recipe, start)]


def _tiny(recipe: Recipe, start: str | None) -> Recipe:
    encoders = [_encoder(block) for block in recipe.model.encoders]
    parts = {"encoders": encoders, "connector": _connector(recipe.model.connector)}
    model = recipe.model.model_copy(update={**parts, "llm": _llm(recipe.model.llm, start)})
    changed = {
        "output": recipe.output or f"{recipe.run_dir}_tiny",
        "init_from": start,
        "model": model,
        "stages": [_stage(stage, stage.prompt or model.prompt) for stage in recipe.stages],
        "evaluate": recipe.evaluate and _evaluate(recipe.evaluate, recipe.stages[-1]),
    }
    return Recipe.model_validate({**recipe.model_dump(), **_dumped(changed)})


def _dumped(values: dict[str, Any]) -> dict[str, Any]:
    """Models as plain values, so that the whole is checked again."""
    plain = {k: v.model_dump() if hasattr(v, "model_dump") else v for k, v in values.items()}
    return {**plain, "stages": [stage.model_dump() for stage in values["stages"]]}


def _encoder(block: Block) -> Block:
    """Options that no size depends on are kept; weights, and text towers that are not installed, are not."""
    tiny = encoder_class(block.type).tiny_options()
    options = {k: v for k, v in block.options.items() if k not in (*tiny, *SIZES)}
    if not -4 <= options.get("layer", -2) <= 3:
        del options["layer"]
    if not str(options.get("text_tower")).startswith("pypi:"):
        options = {k: v for k, v in options.items() if k not in ("text_tower", "embed_dim")}
    registers = _stated(block).get("num_register_tokens")
    if registers:
        tiny["vision_config"] = {**tiny["vision_config"], "num_register_tokens": registers}
    if "layout" in options:
        options["layout"] = _layout(options["layout"])
    return Block(type=block.type, **options, **tiny)


def _connector(block: Block) -> Block:
    """The same connector, without the options that make its size."""
    return Block(type=block.type, **{**block.options, **connector_class(block.type).tiny_options()})


def _layout(stated: str | dict[str, Any]) -> str | dict[str, Any]:
    """The same layout, without sizes that are of the encoder at its real size."""
    changed = build_layout(stated).tiny_options()
    given = {"type": stated} if isinstance(stated, str) else stated
    return {**given, **changed} if changed else stated


def _stated(block: Block) -> dict[str, Any]:
    """The vision configuration of a block, or of the checkpoint that it names."""
    known = KNOWN.get(str(block.options.get("weights")))
    stated = known.arguments if known else block.options
    return dict(stated.get("vision_config") or {})


def _llm(stated: LLM, start: str | None) -> LLM:
    """A model from scratch of the same family; it is put into 4 bits where it comes from a run."""
    family, options = stated.type, stated.options
    if family is None:
        if stated.weights not in KNOWN_LLMS:
            raise unknown_name("language model with a tiny twin:", str(stated.weights), KNOWN_LLMS)
        known = KNOWN_LLMS[stated.weights]
        family = known.family
        options = {k: v for k, v in known.config.items() if k == "tie_word_embeddings"}
    fields = known_config(family).to_dict()
    sizes = {name: size for name, size in LANGUAGE.items() if name in fields}
    return LLM(type=family, quantize=stated.quantize if start else None, **{**options, **sizes})


def _stage(stage: Stage, prompt: str) -> Stage:
    train = {name: _part(part) for name, part in stage.train.items()}
    micro = None if stage.micro_batch_size is None else 1
    changed = {"data": _data(stage, prompt), "train": train, "micro_batch_size": micro, "batch_size": 2}
    length = {"steps": STEPS, "epochs": None, "max_length": None, "checkpoint_every": 0, "workers": 0}
    return stage.model_copy(update={**changed, **length, "warmup": min(stage.warmup, 1)})


def _part(part: Part) -> Part:
    if part.lora is None:
        return part
    return part.model_copy(update={"lora": part.lora.model_copy(update={"r": min(part.lora.r, 4)})})


def _data(stage: Stage, prompt: str) -> Block:
    """The bundled sample: with captions for an objective that needs them, else as conversations."""
    if any(OBJECTIVES[name].captions for name in objective_weights(stage.objective)):
        return Block.model_validate({"type": "image_captions", "folder": str(SAMPLE)})
    rows = {"limit": PLAIN_ROWS} if prompt == "plain" else {}
    files = {"path": str(SAMPLE / "rows.json"), "image_folder": str(SAMPLE)}
    return Block.model_validate({"type": "llava_json", **files, **rows})


def _evaluate(evaluate: Evaluate, last: Stage) -> Evaluate:
    data = _data(last, "plain").model_copy(update={"limit": 2})
    return evaluate.model_copy(update={"data": data, "max_new_tokens": 2})
