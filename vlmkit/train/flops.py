"""How many floating-point operations a training step asks for, by the usual count of matrix products.

A matrix of N numbers costs 2 N operations for each token it meets, 2 N more where the loss's gradient goes
through it, and 2 N more where it trains: 6 N where all is trained (Kaplan et al. 2020,
https://arxiv.org/abs/2001.08361), 4 N in a frozen language model behind a connector that trains, 2 N in a
frozen encoder. Attention over T tokens costs 4 T^2 D operations a layer of width D, and twice as many again
where a gradient goes through (Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311).

Counted is what the result needs: no padding, no activations that are computed twice, logits at supervised
positions only. A causal mask is not subtracted, and a sample's row counts as one sequence.

Shapes: B rows, L tokens, I samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vlmkit.data.batch import Batch, listed_images
from vlmkit.encoders.spec import VisionSpec
from vlmkit.objectives import IGNORE
from vlmkit.quantize import parameter_size
from vlmkit.share.features import StoredFeatures
from vlmkit.splice import count_given
from vlmkit.train.module import StageModule
from vlmkit.train.stage import PARTS, part_module, trainable

# Names by which configurations state how many experts share a layer's tokens.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def has_experts(config: Any) -> bool:
    """Whether a token meets a part of the parameters only, so that counting them says nothing."""
    return any((getattr(config, name, None) or 0) > 1 for name in EXPERTS)


def states_attention(config: Any) -> bool:
    """Whether a language model's configuration says in which layers and how wide it attends.

    One that does not may mix tokens in another way, whose operations are not counted here.
    """
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", None)
    return bool(heads and width and getattr(config, "num_hidden_layers", None))


class StageFlops:
    """Counts the operations of a stage's batches.

    Args:
        module: With the stage applied, before it is cut into shares.
    """

    def __init__(self, module: StageModule) -> None:
        model = module.vlm
        self.model = model
        # A gradient goes through a part where it trains, or where one before it does.
        trains = [trainable(part_module(model, part)) > 0 for part in PARTS]
        encoder, connector, llm = (any(trains[: i + 1]) for i in range(len(PARTS)))
        runs = not isinstance(module.encode, StoredFeatures)
        self.encoders = [_Encoder(spec, e, encoder) for spec, e in zip(model.specs, model.encoders) if runs]
        self.text = "next_token" in module.weights
        head = model.get_output_embeddings()
        output = _ids(head)
        self.head = _operations(head.parameters(), llm)
        # Blocks inside the language model meet its tokens, the rest of a connector those of images.
        inside = _ids(model.injection.blocks) if model.injection is not None else set()
        joined = [*_matrices(part_module(model, "connector"))]
        self.connector = _operations((p for p in joined if id(p) not in inside), connector)
        body = [p for p in _matrices(model.language_model) if id(p) not in output]
        self.body = _operations((*body, *(p for p in joined if id(p) in inside)), llm)
        self.attention = _attention_width(model.config.text_config) * (12 if llm else 4)

    def __call__(self, batch: Batch) -> float:
        """Operations of one forward pass over a batch, and of its backward pass."""
        sizes = [] if batch.image_sizes is None else listed_images(batch.image_sizes)
        images = [image for row in sizes for image in row]
        total = float(sum(encoder(image) for encoder in self.encoders for image in images))
        if not self.text:
            return total
        assert batch.branches_BL is not None and batch.labels_BL is not None
        lengths_I = torch.bincount(batch.owners_BL[batch.branches_BL >= 0]).double()
        asked = int((batch.labels_BL[:, 1:] != IGNORE).sum())
        p = self.model.processor
        given = sum(count_given(p.specs, p.connector, p.marks, image) for image in images)
        total += self.connector * given + self.body * float(lengths_I.sum()) + self.head * asked
        return total + self.attention * float(lengths_I.square().sum())


class _Encoder:
    """Operations of an encoder on an image."""

    def __init__(self, spec: VisionSpec, encoder: nn.Module, flows: bool) -> None:
        self.spec = spec
        self.token = _operations(_matrices(encoder), flows)
        # The longest list of modules is that of its blocks, as `plan_memory` has it.
        blocks = max((len(m) for m in encoder.modules() if isinstance(m, nn.ModuleList)), default=0)
        self.pair = blocks * spec.width * (12 if flows else 4)

    def __call__(self, image: tuple[int, int, int]) -> float:
        views = self.spec.views(image[:2], image[2])
        tokens = [view.rows * view.cols + self.spec.prefix_tokens for view in views]
        return self.token * sum(tokens) + self.pair * sum(n * n for n in tokens)


def _ids(module: nn.Module) -> set[int]:
    return {id(p) for p in module.parameters()}


def _matrices(module: nn.Module) -> Iterable[nn.Parameter]:
    """Parameters that are multiplied with; a table of embeddings is looked up in."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return (p for p in module.parameters() if id(p) not in tables)


def _operations(parameters: Iterable[nn.Parameter], flows: bool) -> float:
    """For each token that meets them."""
    return float(sum(parameter_size(p) * (2 + 2 * flows + 2 * p.requires_grad) for p in parameters))


def _attention_width(config: Any) -> float:
    """Sum over layers of the width that attention works in; see `states_attention`."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return float(config.num_hidden_layers * heads * width)
