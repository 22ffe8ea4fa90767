"""Licences of published weights, by hub id, where the publisher says it plainly; no legal advice. No torch.

As the model cards state them in 2025. An id whose card and original repository disagree (MAE, ConvNeXt V2) is
not listed. Other ids are `UNKNOWN`.
"""

from __future__ import annotations

UNKNOWN = "see model card"
APACHE, DINOV3 = "Apache-2.0", "DINOv3 License"
# The model cards of CLIP name no licence; that of https://github.com/openai/CLIP is MIT.
CLIP = "MIT (repository)"

_SIGLIP = (
    "siglip-base-patch16-224", "siglip-large-patch16-384", "siglip-so400m-patch14-224",
    "siglip-so400m-patch14-384", "siglip2-base-patch16-224", "siglip2-so400m-patch14-384",
    "siglip2-so400m-patch16-384", "siglip2-base-patch16-naflex", "siglip2-so400m-patch16-naflex",
)  # fmt: skip
_VIT = ("base-patch16-224", "base-patch16-224-in21k", "base-patch16-384", "large-patch16-224")
_DINOV3 = ("vits16", "vitb16", "vitl16", "convnext-tiny", "convnext-small", "convnext-base", "convnext-large")

LICENCES: dict[str, str] = {
    **{f"openai/clip-vit-{size}": CLIP for size in ("base-patch16", "large-patch14", "large-patch14-336")},
    **{f"google/{name}": APACHE for name in _SIGLIP},
    **{f"facebook/dinov2-{size}": APACHE for size in ("small", "base", "large")},
    **{f"facebook/dinov2-with-registers-{size}": APACHE for size in ("small", "base", "large")},
    **{f"facebook/dinov3-{name}-pretrain-lvd1689m": DINOV3 for name in _DINOV3},
    **{f"google/vit-{name}": APACHE for name in _VIT},
    **{f"facebook/sam-vit-{size}": APACHE for size in ("base", "large", "huge")},
}


def licence(weights: str) -> str:
    """The licence of a hub id, or `UNKNOWN`."""
    return LICENCES.get(weights, UNKNOWN)
