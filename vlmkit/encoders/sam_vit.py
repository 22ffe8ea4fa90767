"""The image encoder of Segment Anything (Kirillov et al. 2023, https://arxiv.org/abs/2304.02643).

Shapes: I views, H W rows and columns of patches, V width, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import SamVisionConfig, SamVisionModel

from vlmkit.encoders.hf import NOTHING, VIT_FIELDS, Block, Defaults, HFEncoder, tiny_vit


class SAMEncoder(HFEncoder):
    """SAM's ViT: dense, without a token in front and without a retrieval vector.

    The neck is the last hidden state: `layer` -1 (the default) is what SAM's decoder reads, of the neck's own
    width; -2 is the last block below the neck. SAM pads at the bottom and right; `pad` pads on both sides.
    """

    family = "sam_vit"
    config_class, model_class = SamVisionConfig, SamVisionModel
    model_types, whole_type = ("sam_vision_model",), "sam"
    fields = (
        *(name for name in VIT_FIELDS if name != "intermediate_size"), "mlp_dim", "output_channels",
        "attention_dropout", "initializer_range", "qkv_bias", "use_abs_pos", "use_rel_pos", "window_size",
        "global_attn_indexes",
    )  # fmt: skip
    leftover = r"^(shared_image_embedding|prompt_encoder|mask_decoder)\."
    embeddings, embeddings_arguments = "vision_encoder.patch_embed", NOTHING
    layers, norm, prefix_tokens = "vision_encoder.layers", "", 0
    default = Defaults("pad", resample="bilinear", layer=-1)
    tiny = tiny_vit(intermediate_size=None, mlp_dim=64, output_channels=24, window_size=2)

    def depth(self, config: Any) -> int:
        """The blocks and the neck."""
        return int(config.num_hidden_layers) + 1

    def width(self, config: Any, run: int) -> int:
        """The neck has a width of its own."""
        return int(config.output_channels if run == self.depth(config) else config.hidden_size)

    def vector_width(self, config: Any) -> int:
        """No vector of the whole image."""
        return 0

    def takes_any_side(self, config: Any) -> bool:
        """The table of positions is as large as the picture."""
        return False

    def embed(self, pixels_ICHW: Tensor) -> Tensor:
        """Patches and their positions, (I, H, W, V)."""
        positions_1HWV = self.vision.vision_encoder.pos_embed
        embedded_IHWV = super().embed(pixels_ICHW)
        return embedded_IHWV if positions_1HWV is None else embedded_IHWV + positions_1HWV

    def blocks(self, pixels_ICHW: Tensor) -> Sequence[Block]:
        """The blocks and the neck."""
        return [*super().blocks(pixels_ICHW), self._neck]

    def tokens(self, hidden: Tensor) -> Tensor:
        """(I, H, W, V) to (I, P, V)."""
        return hidden.flatten(1, 2)

    def unread(self) -> tuple[str, ...]:
        """The neck, below it."""
        return ("vision_encoder.neck",) if self.blocks_run < self.depth(self.vision.config) else ()

    def _neck(self, hidden_IHWV: Tensor) -> Tensor:
        features_IHWV: Tensor = self.vision.vision_encoder.neck(hidden_IHWV).permute(0, 2, 3, 1)
        return features_IHWV
