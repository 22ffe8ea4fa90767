"""The encoders that `encode.py` times: ours, and the same random weights in transformers and timm."""

import re
from dataclasses import dataclass

import torch
import transformers

from vlmkit.encoders import encoder_class
from vlmkit.encoders.batch import PixelBatch

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "mlp_ratio": 4}
HALF, MEAN, STD = (0.5,) * 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Names of a tower in transformers to those of timm; q, k and v are joined afterwards.
RENAMED = [
    (r"^vision_model\.", ""), (r"^embeddings\.class_embedding$", "cls_token"), (r"^embeddings\.", ""),
    (r"^patch_embeddings\.projection", "patch_embed.proj"), (r"^patch_embedding\.", "patch_embed.proj."),
    (r"^position_embedding(\.weight|s)$", "pos_embed"), (r"^pre_layrnorm", "norm_pre"),
    (r"^encoder\.layers?\.", "blocks."), (r"^(blocks.*)(self_attn|attention\.attention)\.", r"\1attn."),
    (r"^(blocks.*)attention\.(?=[qkvo]_proj)", r"\1attn."),
    (r"attention\.output\.dense|attn\.(out|o)_proj", "attn.proj"), (r"layer_norm|norm(?=[12])", "norm"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"), (r"attn\.(query|q_proj)", "attn.q"),
    (r"attn\.(key|k_proj)", "attn.k"), (r"attn\.(value|v_proj)", "attn.v"),
    (r"^(post_layernorm|layernorm)", "norm"), (r"^visual_projection", "head"),
    (r"^head\.probe", "attn_pool.latent"), (r"^head\.attention\.out_proj", "attn_pool.proj"),
    (r"^head\.layernorm", "attn_pool.norm"), (r"^head\.mlp", "attn_pool.mlp"),
]  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A published shape.

    Attributes:
        family: Encoder here.
        vision_config: Its fields.
        twin: Classes of the model and of its configuration in transformers.
        processor: Class of the image processor in transformers, without the `Pil` of its second form.
        sizes: What the processor is told.
        timm: Model in timm, and arguments.
        read: Which output of the transformers model is the retrieval vector.
    """

    family: str
    vision_config: dict
    twin: tuple[str, str]
    processor: str
    sizes: dict
    timm: tuple[str, dict]
    read: str


PUBLISHED = {
    "CLIP ViT-B/16 224": Published(
        "clip", {**BASE, "image_size": 224, "patch_size": 16, "projection_dim": 512},
        ("CLIPVisionModelWithProjection", "CLIPVisionConfig"), "CLIPImageProcessor", {},
        ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 512}), "image_embeds",
    ),
    "SigLIP-B/16 224": Published(
        "siglip", {**BASE, "image_size": 224, "patch_size": 16},
        ("SiglipVisionModel", "SiglipVisionConfig"), "SiglipImageProcessor", {"resample": 3},
        ("vit_base_patch16_siglip_224", {"num_classes": 0, "act_layer": "gelu_tanh"}), "pooler_output",
    ),
    "DINOv2-S/14 224": Published(
        "dinov2", {**SMALL, "image_size": 224, "patch_size": 14},
        ("Dinov2Model", "Dinov2Config"), "BitImageProcessor",
        {"size": {"shortest_edge": 224}, "crop_size": 224, "image_mean": MEAN, "image_std": STD,
         "resample": 3},
        ("vit_small_patch14_dinov2", {"num_classes": 0, "img_size": 224}), "pooler_output",
    ),
}  # fmt: skip


class Models:
    """Ours and the twins of one published shape, on a device, with the same random weights."""

    def __init__(self, published, device, pooled=True):
        self.published, self.device = published, device
        options = {"vision_config": published.vision_config, "pooled": pooled}
        self.ours = encoder_class(published.family)(**options).eval()
        shake(self.ours)
        model, config = (getattr(transformers, name) for name in published.twin)
        self.theirs = model(config(**published.vision_config)).eval()
        # Without pooling our tower has no block above the layer that is read.
        self.theirs.load_state_dict(self.ours.vision.state_dict(), strict=pooled)
        for module in (self.ours, self.theirs):
            module.to(device)

    def batch(self, pixels_BCHW):
        """The pixels as our encoders take them."""
        views = self.ours.spec.views((224, 224)) * len(pixels_BCHW)
        return PixelBatch.of(pixels_BCHW.flatten(), views, range(len(pixels_BCHW)))

    def vectors(self, pixels):
        """The retrieval vectors of transformers."""
        return unit(getattr(self.theirs(pixel_values=pixels.to(self.device)), self.published.read))

    def processor(self, pil):
        """The image processor of transformers: with Pillow, or with torchvision."""
        name = self.published.processor + ("Pil" if pil else "")
        return getattr(transformers, name)(**self.published.sizes)

    def timm(self):
        """The model of timm."""
        import timm

        name, arguments = self.published.timm
        model = timm.create_model(name, **arguments).eval()
        model.load_state_dict(_for_timm(self.theirs.state_dict(), model.state_dict()))
        return model.to(self.device)


def unit(vectors):
    """Unit-length rows as numpy."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


@torch.no_grad()
def shake(module):
    """Weights with which each block matters; no bias is zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(module.named_parameters()):
        random = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and "embedding" not in name:
            parameter.copy_(random * parameter[0].numel() ** -0.5)
        else:
            one = ("norm" in name and name.endswith("weight")) or "lambda" in name
            parameter.copy_(random * 0.1 + one)
    return module


def _for_timm(stored, wanted):
    """Rename, join q, k and v, and split what timm has apart; each tensor of timm is filled."""
    named = {}
    for name, tensor in stored.items():
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        named[name] = tensor
    for kind in ("weight", "bias"):
        joint = named.pop(f"head.attention.in_proj_{kind}", None)
        if joint is not None:
            width = len(joint) // 3
            named[f"attn_pool.q.{kind}"], named[f"attn_pool.kv.{kind}"] = joint[:width], joint[width:]
    filled = {}
    for name, like in wanted.items():
        if "attn.qkv" in name:
            parts = [named[name.replace("qkv", one)] for one in "qkv"]
            filled[name] = torch.cat(parts)
        elif name == "head.bias" and name not in named:
            filled[name] = torch.zeros_like(like)
        else:
            filled[name] = named[name].reshape(like.shape)
    return filled
