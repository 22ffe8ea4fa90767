"""Any image model of timm (https://github.com/huggingface/pytorch-image-models) that proves what it states.

Shapes: I views, B images, T patches of all views, V width, R C rows and columns, E retrieval width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, first_views
from vlmkit.encoders.spec import Resample, Stated, VisionSpec
from vlmkit.encoders.timm_config import complete, embed_dim, level_index
from vlmkit.encoders.timm_model import build
from vlmkit.encoders.timm_order import block_input
from vlmkit.encoders.timm_probe import stated_levels
from vlmkit.encoders.timm_weights import read_tensors
from vlmkit.encoders.values import rgb
from vlmkit.errors import VlmkitError
from vlmkit_connectors import VisionFeatures

# Published ones of each kind; any other name of timm is taken as well.
KNOWN_TIMM = (
    "timm/vit_small_patch16_224.augreg_in21k", "timm/deit_small_distilled_patch16_224.fb_in1k",
    "timm/eva02_base_patch14_224.mim_in22k", "timm/eva02_large_patch14_448.mim_m38m_ft_in22k_in1k",
    "timm/beitv2_base_patch16_224.in1k_ft_in22k", "timm/vit_base_patch16_siglip_224.webli",
    "timm/vit_small_patch14_reg4_dinov2.lvd142m", "timm/vit_small_patch16_dinov3.lvd1689m",
    "timm/fastvit_t8.apple_in1k", "timm/fastvit_mci0.apple_mclip2_dfndr2b", "timm/coatnet_0_rw_224.sw_in1k",
    "timm/swin_tiny_patch4_window7_224.ms_in22k", "timm/convnext_tiny.fb_in22k", "timm/resnet50.a1_in1k",
)  # fmt: skip


class TimmEncoder(VisionEncoder):
    """Any image model of timm by name; what it states is proved by forward passes before it is believed.

    The proof runs once, on random weights, and its results are stored as `proved`. The retrieval vector is
    the model's own `forward_head(pre_logits=True)`, which timm calls the embedding: images only.

    Args:
        model: Name in timm with its tag, e.g. `vit_small_patch16_224.augreg_in21k`; absent: of `weights`.
        model_args: More arguments of `timm.create_model`, which change the architecture, e.g. `depth`.
        image_size: Side of a view in pixels; absent: timm's. Position tables of weights are resized to it.
        layer: Which state feeds the connector. In a plain tower an index into [embeddings, block 1, ...,
            block n], in one that shrinks its grid into timm's feature levels (`model.feature_info`: for some
            models the first is the stem). Never followed by the model's final norm, not even the last.
            Absent: -2 in a plain tower, as in LLaVA, else -1.
        pooled: Whether to compute the retrieval vector; without it nothing above `layer` runs.
        projection: Outputs of the model's final layer, where that projects into a space shared with text (512
            for `fastvit_mci0.apple_mclip`); the retrieval vector is then its output. 0: that layer's input.
        layout, shortest_edge, mean, std, resample: Preprocessing (see `VisionSpec`); absent: timm's.
        proved: What was proved about the model, as `proved` of a stored configuration.
        weights: Hub id such as those in `KNOWN_TIMM`, folder or file that timm or this model can read.
    """

    family: ClassVar[str] = "timm"

    def __init__(
        self,
        model: str | None = None,
        model_args: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        layer: int | None = None,
        pooled: bool = True,
        projection: int = 0,
        layout: Stated | None = None,
        shortest_edge: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resample: Resample | None = None,
        proved: Mapping[str, Any] | None = None,
        weights: str | None = None,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__", "weights")}
        config = complete(given, None)
        super().__init__(config, None, weights)
        found = config["proved"]
        self.plain = found["kind"] == "blocks"
        self.level = level_index(config["model"], config["layer"], found)
        width, stride = found["levels"][0 if self.plain else self.level]
        self.pooled = pooled
        self.projection = projection
        self.spec = VisionSpec(
            config["image_size"], stride, width, found["prefix_tokens"], config["layer"],
            mean=rgb(self.family, "mean", config["mean"]), std=rgb(self.family, "std", config["std"]),
            layout=config["layout"], resample=config["resample"], shortest_edge=config["shortest_edge"],
            embed_dim=embed_dim(config["model"], found) if pooled else 0,
        )  # fmt: skip
        self.tower: Any = build(config["model"], config["model_args"], config["image_size"], projection)

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; proves what the model states, on random weights."""
        return complete({k: v for k, v in options.items() if k != "weights"}, options.get("weights"))

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """A plain tower of three blocks, for trying things out in seconds."""
        size = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
        return {"model": "vit_tiny_patch16_224.augreg_in21k", "model_args": size, "image_size": 32}

    def load(self, weights: str) -> None:
        """See `VisionEncoder.load`; a classifier that this encoder does not have is left out."""
        config = self.config
        tensors = read_tensors(config["model"], config["model_args"], config["image_size"], weights)
        own = self.tower.state_dict()
        misfits = [n for n, t in own.items() if n not in tensors or tensors[n].shape != t.shape]
        if misfits:
            raise VlmkitError(
                f"timm: weights {weights!r} have no {', '.join(misfits[:5])} of this shape; projection is "
                f"{self.projection}: state the number of outputs of the checkpoint's last layer, or 0"
            )
        self.tower.load_state_dict({name: tensors[name] for name in own})

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`. Of the states only the selected one is kept."""
        pixels_ICHW = batch.pixels_ICHW
        if self.plain and self.level == 0:
            with block_input(self.tower, stated_levels(self.config["model"], self.tower)[0][0]) as seen:
                final, _ = self._run(pixels_ICHW, 0)
            patches_ITV = seen[0].flatten(1, -2)[:, self.spec.prefix_tokens :]
        else:
            final, state_IVRC = self._run(pixels_ICHW, self.level - self.plain)
            patches_ITV = state_IVRC.flatten(2).transpose(1, 2)
        pooled_BE = None
        if self.pooled:
            first_B = first_views(final, batch.image_of_view_I)
            pooled_BE = self.tower.forward_head(first_B, pre_logits=not self.projection)
        return VisionFeatures(patches_ITV.flatten(0, 1), batch.grids_I2, batch.image_of_view_I, pooled_BE)

    def _run(self, pixels_ICHW: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Final features (only where the pooled vector needs them) and one level as (I, V, R, C)."""
        only = {"indices": [index], "norm": False, "output_fmt": "NCHW"}
        if not self.pooled:
            (state_IVRC,) = self.tower.forward_intermediates(
                pixels_ICHW, stop_early=True, intermediates_only=True, **only
            )
            return state_IVRC, state_IVRC
        final, (state_IVRC,) = self.tower.forward_intermediates(pixels_ICHW, **only)
        return final, state_IVRC

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """Tables that no checkpoint stores, as of positions: timm's modules recompute their own."""
        for module in self.tower.modules():
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
