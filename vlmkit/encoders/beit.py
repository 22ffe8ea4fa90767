"""BEiT (Bao et al. 2021, https://arxiv.org/abs/2106.08254).

Shapes: I views, B images, P 1 + patches, C H W a view's pixels, V width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from transformers import BeitConfig, BeitModel

from vlmkit.encoders.hf import DROPOUTS, HALF, NOTHING, VIT_FIELDS, Block, Defaults, HFEncoder, tiny_vit


class BEiTEncoder(HFEncoder):
    """BEiT; the retrieval vector is that of its classifier: the normalised mean of patches, or the CLS token.

    A checkpoint that was only pretrained has no norm for that mean: read it with `pooled: false`.
    """

    family = "beit"
    config_class, model_class, model_types = BeitConfig, BeitModel, ("beit",)
    fields = (
        *VIT_FIELDS, *DROPOUTS, "use_mask_token", "use_absolute_position_embeddings", "drop_path_rate",
        "use_relative_position_bias", "use_shared_relative_position_bias", "layer_scale_init_value",
        "use_mean_pooling",
    )  # fmt: skip
    leftover = r"^(classifier|lm_head|layernorm|decode_head|auxiliary_head|fpn\d?)\.|relative_position_index$"
    embeddings_arguments, layers, head = NOTHING, "layers", ("pooler",)
    default = Defaults("square", HALF, HALF)
    tiny = tiny_vit(use_relative_position_bias=True)

    def blocks(self, pixels_ICHW: Tensor) -> Sequence[Block]:
        """The blocks, with the bias of distances that they share, if they do."""
        size, shared = tuple(pixels_ICHW.shape[2:]), self.vision.shared_position_bias
        grid = tuple(edge // self.spec.patch_size for edge in size)
        bias = None if shared is None else shared(grid)
        return [partial(block, attention_mask=bias, resolution=size) for block in self.vision.layers]

    def pool(self, last: Tensor) -> Tensor:
        """See the class."""
        vector_BV: Tensor = self.vision.pooler(self.vision.layernorm(last))
        return vector_BV
