"""How much memory a stage takes on each device: an estimate from shapes, by formulas that are stated here."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vlmkit.objectives import OBJECTIVES, objective_weights
from vlmkit.recipe import Recipe, Stage
from vlmkit.train.head import CHUNK
from vlmkit.train.stage import PARTS, part_module
from vlmkit.vlm import VLM

FLOAT32 = 4
ADAMW = 8
# Half a byte, a byte of scale for 64 numbers, and a float32 for 256 scales.
FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
# Numbers that a block keeps for its backward pass, in widths a token, without a matrix of attention scores:
# counted on Llama's in float32, 10.5 and 4 for each width that its MLP is wide (2.75 there).
BLOCK = 22
# Bytes a logit: its log-softmax, the gradient of that and its own, in float32.
LOGITS = 3 * FLOAT32
PHOTO = (640, 480)
TEXT = 256


@dataclass(frozen=True)
class Memory:
    """Bytes on one device; an estimate.

    Attributes:
        weights: Of all parts, trained or frozen.
        gradients: Of what trains.
        optimizer: AdamW's two moments.
        activations: What one micro-batch keeps for its backward pass.
        rows, tokens: The micro-batch that is assumed.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    rows: int
    tokens: int

    @property
    def total(self) -> float:
        """All together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate(recipe: Recipe, stage: Stage, model: VLM) -> Memory:
    """Memory of a stage that has been applied to a model, which may be on the meta device.

    As with one device or DDP every process holds the whole model, with P parameters of which T train; FSDP2's
    shares are not counted:

    - weights 4 P: parameters are held in float32; those of 4-bit layers take 0.52 bytes each;
    - gradients 4 T, AdamW 8 T;
    - activations 22 e R L D n + 12 C V for R rows of L tokens, a language model of width D with n blocks
      (those that a connector puts inside it among them) and V words, and e = 4 bytes in float32, else 2: the
      tensors that a Llama block keeps are 22 D numbers a token (GPT's are 17, Korthikanti et al. 2022,
      https://arxiv.org/abs/2205.05198; attention scores left out, sdpa does not keep them). With
      `gradient_checkpointing` 22 n becomes n + 22. A frozen model counts too: gradients go through it. An
      encoder that trains adds 22 e D' n' for each of its tokens;
    - of these 12 C V are the head's: it gives logits at supervised positions, C = 1,024 of them at a time
      (see `vlmkit.train.head`; all R L where that is less), and at the worst moment their log-softmax, its
      gradient and theirs are there in float32. A family that caps or scales logits has all supervised
      positions at once, of which the recipe does not say how many there are.

    R is `micro_batch_size`, or else `batch_size`, as on one device; L is `max_length`, or else one image of
    640 x 480 pixels and 256 tokens of text. Kernels' buffers and fragmentation come on top.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = stage.micro_batch_size or stage.batch_size
    tokens = stage.max_length or model.count_tokens(PHOTO) + TEXT
    size = 4 if recipe.precision == "fp32" else 2
    return Memory(
        weights=_weights(model, recipe.model.llm.quantize is not None),
        gradients=FLOAT32 * trained,
        optimizer=ADAMW * trained,
        activations=size * rows * _encoder(model) + _language(model, stage, rows * tokens, size),
        rows=rows,
        tokens=tokens,
    )


def _weights(model: VLM, four_bits: bool) -> float:
    total = sum(p.numel() for part in PARTS for p in part_module(model, part).parameters())
    if not four_bits:
        return FLOAT32 * total
    head = model.get_output_embeddings()
    layers = [
        m
        for name, m in model.language_model.named_modules()
        if isinstance(m, nn.Linear) and m is not head and ".lora_" not in name
    ]
    rounded = sum(layer.weight.numel() for layer in layers)
    return FLOAT32 * (total - rounded) + FOUR_BITS * rounded


def _encoder(model: VLM) -> float:
    """Numbers that the encoders keep for one image; none where they are frozen."""
    if not any(p.requires_grad for p in model.encoders.parameters()):
        return 0.0
    ((_, _, level),), total = model.fit([PHOTO]), 0.0
    for spec, encoder in zip(model.specs, model.encoders, strict=True):
        views = spec.views(PHOTO, level)
        patches = sum(view.rows * view.cols + spec.prefix_tokens for view in views)
        blocks = max(len(m) for m in encoder.modules() if isinstance(m, nn.ModuleList))
        total += BLOCK * spec.width * blocks * patches
    return total


def _language(model: VLM, stage: Stage, tokens: int, size: int) -> float:
    """Bytes that the language model keeps for so many tokens; none for an objective without text."""
    if not any(OBJECTIVES[name].tokens for name in objective_weights(stage.objective)):
        return 0.0
    config = model.config.text_config
    blocks = config.num_hidden_layers
    if model.injection is not None:
        blocks += len(model.injection.blocks)
    kept = blocks + BLOCK if stage.gradient_checkpointing else BLOCK * blocks
    head = LOGITS * min(tokens, CHUNK) * config.vocab_size
    return float(tokens * size * kept * config.hidden_size + head)
