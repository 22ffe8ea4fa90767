"""Towers out of published kinds of checkpoints: with classifiers, decoders, or inside a larger model."""

import pytest
import torch
from transformers import (
    Aimv2Config,
    Aimv2Model,
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    SamConfig,
    SamModel,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from vlmkit.encoders import encoder_class
from vlmkit.errors import VlmkitError

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SIZE, "image_size": 16, "patch_size": 4}
SAM = {k: v for k, v in VIT.items() if k != "intermediate_size"}
SAM |= {"mlp_dim": 32, "output_channels": 8, "window_size": 2, "global_attn_indexes": [1]}
SWIN = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
DECODER = {
    "decoder_hidden_size": 16, "decoder_intermediate_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}  # fmt: skip
TEXT = {**SIZE, "vocab_size": 32}


def internvl():
    text = LlamaConfig(**TEXT).to_dict()
    return InternVLForConditionalGeneration(InternVLConfig(vision_config=VIT, text_config=text))


def aimv2():
    text = {**TEXT, "max_position_embeddings": 8, "eos_token_id": 1}
    return Aimv2Model(Aimv2Config(vision_config=VIT, text_config=text))


# A model, and where the tower is in it.
WHOLE = {
    "hf_vit": (lambda: ViTForImageClassification(ViTConfig(**VIT)), "vit"),
    "deit": (lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(**VIT)), "deit"),
    "mae": (lambda: ViTMAEForPreTraining(ViTMAEConfig(**VIT, **DECODER)), "vit"),
    "beit": (lambda: BeitForImageClassification(BeitConfig(**VIT)), "beit"),
    "swin": (lambda: SwinForImageClassification(SwinConfig(**SWIN)), "swin"),
    "swinv2": (lambda: Swinv2ForImageClassification(Swinv2Config(**SWIN)), "swinv2"),
    "convnext": (
        lambda: ConvNextForImageClassification(
            ConvNextConfig(image_size=32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
        ),
        "convnext",
    ),
    "sam_vit": (lambda: SamModel(SamConfig(vision_config=SAM)), "vision_encoder"),
    "internvit": (internvl, "model.vision_tower"),
    "aimv2": (aimv2, "vision_model"),
}


@pytest.mark.parametrize("family", WHOLE)
def test_the_tower_of_a_whole_checkpoint_is_read(family, tmp_path, shake):
    build, place = WHOLE[family]
    model = shake(build())
    model.save_pretrained(tmp_path)
    encoder = encoder_class(family).from_options(weights=str(tmp_path))
    tower = model.get_submodule(place).state_dict()
    prefix = "vision_encoder." if family == "sam_vit" else ""
    ours = {name.removeprefix(prefix): tensor for name, tensor in encoder.vision.state_dict().items()}
    assert set(ours) <= set(tower) and len(ours) > 20
    assert all(torch.equal(tensor, tower[name]) for name, tensor in ours.items())


def test_a_beit_that_was_only_pretrained_has_no_vector(tmp_path, shake):
    """The norm of the mean of patches came with the classifier."""
    fields = {**VIT, "use_mask_token": True, "use_shared_relative_position_bias": True}
    shake(BeitForMaskedImageModeling(BeitConfig(**fields))).save_pretrained(tmp_path)
    cls = encoder_class("beit")
    with pytest.raises(VlmkitError, match="missing tensors: pooler"):
        cls.from_options(weights=str(tmp_path))
    encoder = cls.from_options(weights=str(tmp_path), pooled=False, layer=1)
    assert (encoder.embed_dim, len(encoder.vision.layers)) == (0, 1)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2", "hf_vit"])
def test_another_kind_of_model_is_refused(family, tmp_path):
    SamModel(SamConfig(vision_config=SAM)).save_pretrained(tmp_path)
    with pytest.raises(VlmkitError, match=f"are a 'sam' model; the encoder '{family}' takes such as"):
        encoder_class(family).resolve(weights=str(tmp_path))
