"""The model with a stage's objectives, as the one module that accelerate wraps.

Shapes: B rows, L tokens, I images, E retrieval width, U distinct captions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from vlmkit.data.batch import Batch, listed_images, numbers_of
from vlmkit.objectives import IGNORE, ContrastiveHead, caption_targets, objective_weights
from vlmkit.recipe import Stage
from vlmkit.share.features import StoredFeatures
from vlmkit.train.head import SupervisedHead
from vlmkit.train.logits import keep_four_bits
from vlmkit.train.stage import PARTS, part_module
from vlmkit.vlm import VLM
from vlmkit_connectors import VisionFeatures

LOGIT_SCALE_LR = 10.0
# Pixels and sizes of a batch's images to what each encoder sees in them, see `VLM.encode_images`.
Encode = Callable[[Tensor, Tensor], list[VisionFeatures]]


class StageModule(nn.Module):
    """The model with the stage's objectives: one forward pass gives every loss, as a sum and its weight.

    It is the module that accelerate wraps, so that every parameter's gradient is seen in `forward`.

    Args:
        model: The model.
        stage: Its objectives.
        encode: Stands for `model.encode_images`.
    """

    def __init__(self, model: VLM, stage: Stage, encode: Encode | None = None) -> None:
        super().__init__()
        self.vlm = model
        self.encode = encode or model.encode_images
        self.weights = objective_weights(stage.objective)
        self.head = SupervisedHead(model.get_output_embeddings())
        self.contrastive = ContrastiveHead(*stage.logit_scale) if "contrastive" in self.weights else None

    def forward(self, batch: Batch, by_row: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
        """Each objective's (sum of losses, weight) on a batch that is on the model's device.

        Args:
            batch: The rows.
            by_row: Give both numbers of `next_token` for each of `batch.sample_ids`, and no other objective;
                without gradient.
        """
        images = self._features(batch)
        # A process whose rows have no image must still touch the parameters that other processes' images do.
        features = images or self.blank_features()
        losses = {}
        if "next_token" in self.weights:
            losses["next_token"] = self._next_token(batch, images, features)
        if by_row:
            return {"next_token": self._by_row(batch)}
        if self.contrastive is not None:
            losses["contrastive"] = self._contrastive(batch, features)
        return losses

    @property
    def stored_seconds(self) -> float | None:
        """Seconds spent so far on features that runs share; None where the encoders run in the steps."""
        return self.encode.seconds if isinstance(self.encode, StoredFeatures) else None

    def _features(self, batch: Batch) -> list[VisionFeatures] | None:
        if batch.pixel_values is None:
            return None
        assert batch.image_sizes is not None
        return self.encode(batch.pixel_values, batch.image_sizes)

    def blank_features(self) -> list[VisionFeatures]:
        """Of one black image."""
        return self.vlm.encode_images(*self._dummy_image())

    def _dummy_image(self) -> tuple[Tensor, Tensor]:
        specs, device = self.vlm.specs, self.vlm.device
        side = specs[0].image_size
        numbers = sum(numbers_of(spec, (side, side, 0)) for spec in specs)
        return torch.zeros(1, numbers, device=device), torch.tensor([[[side, side, 0]]])

    def _next_token(
        self, batch: Batch, images: list[VisionFeatures] | None, features: list[VisionFeatures]
    ) -> tuple[Tensor, Tensor]:
        assert batch.input_ids_BL is not None and batch.labels_BL is not None and batch.weights_BL is not None
        ids_BL, questions_BQ = batch.input_ids_BL, batch.question_ids_BQ
        if images is None:
            read = self.vlm.read_blank(ids_BL, features, self._dummy_image()[1], questions_BQ)
        else:
            read = self.vlm.read(ids_BL, images, batch.image_sizes, questions_BQ, segments=batch.segments_BL)
        # Not every image has the tokens that layouts and marks write: another process's may.
        untouched = [0.0 * token_D.sum() for token_D in self.vlm.splice.parameters()]
        placed = {"position_ids": batch.positions_BL, "use_cache": False}
        loss, weight = self.head.loss(
            lambda: self.vlm.decode(read, batch.branches_BL, batch.segments_BL, **placed),
            batch.labels_BL,
            batch.weights_BL,
        )
        return sum(untouched, loss), weight

    def _by_row(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The losses that the head has kept, and their weights, of each of `batch.sample_ids`."""
        assert batch.labels_BL is not None and batch.weights_BL is not None
        chosen_BL = batch.labels_BL[:, 1:] != IGNORE
        owner_S = batch.owners_BL[:, 1:][chosen_BL]
        losses_S, weights_S = self.head.losses_S, batch.weights_BL[:, 1:][chosen_BL].float()
        zeros = losses_S.new_zeros(len(batch.sample_ids))
        return zeros.index_add(0, owner_S, losses_S), zeros.index_add(0, owner_S, weights_S)

    def _contrastive(self, batch: Batch, features: list[VisionFeatures]) -> tuple[Tensor, Tensor]:
        """Each sample's first image against the captions of the batch; zero where no image has a caption."""
        pooled_IE = features[0].pooled_BE
        assert self.contrastive is not None
        assert pooled_IE is not None, "check_fit refuses encoders without a retrieval space"
        rows, first = captioned_rows(batch)
        if not rows:
            zero = 0.0 * (pooled_IE.sum() + self.contrastive.log_scale.sum())
            return zero, zero.detach()
        distinct, positive_BU = caption_targets(tuple(batch.captions[row] for row in rows))
        tower = self.vlm.vision_encoder.text_tower()
        # One by one: padding and batch change a vector's last bits, and a resumed run meets the captions in
        # another company than the run that was not interrupted.
        text_UE = torch.cat([tower.embed([caption]) for caption in distinct]).to(pooled_IE.device)
        loss, weight = self.contrastive(pooled_IE[first], text_UE, positive_BU.to(pooled_IE.device))
        return loss, weight

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of layers that FSDP keeps as one share each: those of the language model."""
        named = getattr(self.vlm.language_model, "_no_split_modules", None) or ()
        there = {type(module).__name__ for module in self.modules()}
        return [name for name in named if name in there]

    def train(self, mode: bool = True) -> Self:
        """Switch dropout and batch statistics on, in the parts that train: a frozen part stays as it is."""
        super().train(mode)
        for part in PARTS:
            module = part_module(self.vlm, part)
            if not any(p.requires_grad for p in module.parameters()):
                module.eval()
        # A pass without gradient would round their scales on some processors, see `evaluate_exactly`.
        keep_four_bits(self)
        return self

    def param_groups(self, stage: Stage) -> list[dict[str, object]]:
        """Optimiser groups of the parameters that train, by part; biases and norms do not decay."""
        groups: list[dict[str, object]] = []
        for part in PARTS:
            wanted = stage.train.get(part)
            trained = [p for p in part_module(self.vlm, part).parameters() if p.requires_grad]
            for decays in (True, False):
                params = [p for p in trained if (p.ndim > 1) is decays]
                if wanted is not None and params:
                    decay = wanted.weight_decay if decays else 0.0
                    groups.append({"params": params, "lr": wanted.lr, "weight_decay": decay, "name": part})
        if self.contrastive is not None and self.contrastive.log_scale.requires_grad:
            lr = stage.train["encoder"].lr * LOGIT_SCALE_LR if "encoder" in stage.train else 1e-3
            scale = {
                "params": list(self.contrastive.parameters()),
                "lr": lr,
                "weight_decay": 0.0,
                "name": "scale",
            }
            groups.append(scale)
        return groups


def batch_weight(objective: str, batch: Batch) -> float:
    """What an objective's sum over this batch is divided by: supervised weight, or images with captions."""
    if objective == "contrastive":
        return float(len(captioned_rows(batch)[0]))
    assert batch.labels_BL is not None and batch.weights_BL is not None
    return float(batch.weights_BL[:, 1:][batch.labels_BL[:, 1:] != IGNORE].sum())


def captioned_rows(batch: Batch) -> tuple[list[int], list[int]]:
    """Rows of samples that have an image and a caption, and each one's first image's number in the batch."""
    if batch.image_sizes is None:
        return [], []
    images = batch.image_counts or [len(row) for row in listed_images(batch.image_sizes)]
    rows = [row for row, own in enumerate(batch.captions) if own and images[row]]
    return rows, [sum(images[:row]) for row in rows]
