"""Every family in a whole model: counted tokens are produced tokens, saving, batches, training."""

import random

import pytest
import torch

from vlmkit.checkpoint import load_part
from vlmkit.config import build_encoder
from vlmkit.encoders import ENCODERS, encoder_class
from vlmkit.inference import question
from vlmkit.train.module import StageModule
from vlmkit.vlm import VLM

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
FIXED = {**SIZE, "image_size": 16, "patch_size": 4}
DINO = {k: v for k, v in FIXED.items() if k != "intermediate_size"}
FAMILIES = {
    "vit": {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2},
    "clip": {"vision_config": {**FIXED, "projection_dim": 8}},
    "siglip": {"vision_config": FIXED},
    "siglip2_naflex": {"vision_config": {**SIZE, "patch_size": 4, "num_patches": 9}, "max_num_patches": 20},
    "timm": {
        "model": "vit_tiny_patch16_224.augreg_in21k",
        "model_args": {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "reg_tokens": 2},
        "image_size": 16,
    },
    "dinov2": {"vision_config": {**DINO, "num_register_tokens": 3}, "image_size": 24, "shortest_edge": 28},
}


# The others at the size of `--tiny`: their own tests compare them with transformers.
FAMILIES |= {name: encoder_class(name).tiny_options() for name in ENCODERS if name not in FAMILIES}


@pytest.fixture(params=FAMILIES)
def model(request, tiny_vlm):
    if request.param == "timm":
        request.getfixturevalue("timm")
    return tiny_vlm(encoder={"type": request.param, **FAMILIES[request.param]})


@pytest.fixture
def inputs(noise):
    """A function: a model to rows with one image, two and none, each of another size."""

    def build(model):
        rows = [question([noise(1, (40, 9))], "say yes"), question([noise(2, (8, 33)), noise(3)], "say yes")]
        rows.append(question([], "say yes"))
        return model.processor.prompts([r.conversation for r in rows], [r.images for r in rows])

    return build


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def test_every_family_is_here():
    assert set(FAMILIES) == set(ENCODERS)


def test_counted_tokens_are_produced_tokens(model, noise):
    """For random sizes, alone and together; a model refuses another number (see `VLM.read`)."""
    draw = random.Random(0)
    images = [noise(i, (draw.randint(1, 90), draw.randint(1, 90))) for i in range(30)]
    rows = [question(images[i : i + 3], "say yes") for i in range(0, 30, 3)]
    batch = model.processor.prompts([r.conversation for r in rows], [r.images for r in rows])
    with torch.no_grad():
        features = model.encode_images(batch["pixel_values"], batch["image_sizes"])
        tokens = [torch.cat(row) for row in model.image_tokens(features, batch["image_sizes"])]
    counted = [model.count_tokens(image.size) for image in images]
    assert [len(run) for run in tokens] == [sum(counted[i : i + 3]) for i in range(0, 30, 3)]
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == sum(counted)
    assert torch.isfinite(logits(model, batch)[batch["attention_mask"].bool()]).all()


def test_saving_and_loading_keep_every_bit(model, inputs, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    again = VLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(model, inputs(model)), logits(again, inputs(again)))
    assert again.vision_encoder.fingerprint == model.vision_encoder.fingerprint


def test_a_row_does_not_depend_on_its_batch(model, inputs, noise):
    together = logits(model, inputs(model))[1, -1]
    row = question([noise(2, (8, 33)), noise(3)], "say yes")
    alone = logits(model, model.processor.prompts([row.conversation], [row.images]))[0, -1]
    assert torch.allclose(together, alone, atol=1e-4)


def test_generation_answers_about_images(model, noise):
    answers = model.ask_each([noise(1, (40, 9)), noise(2, (8, 33))], "say yes", max_new_tokens=3)
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)


def test_a_batch_without_images_still_touches_every_trained_part(model, tiny_recipe, rows, collate):
    """The picture that stands in for none has the shape that the family expects."""
    module = StageModule(model.train(), tiny_recipe().stages[0])
    for some in (rows, [row for row in rows if not row.images]):
        model.zero_grad()
        loss, weight = module(collate(model, some))["next_token"]
        (loss / weight).backward()
        assert all(p.grad is not None for p in model.connector.parameters())


@pytest.mark.parametrize("name", ["clip", "dinov2", "dinov3", "hf_vit", "swin"])
def test_a_tower_without_its_vector_is_saved_and_comes_back(tiny_vlm, inputs, tmp_path, name):
    """Blocks above the layer are in no file, whatever names transformers stores a tower by."""
    options = {"type": name, **encoder_class(name).tiny_options(), "layer": 1, "pooled": False}
    model = tiny_vlm(encoder=options)
    model.save_pretrained(tmp_path)
    again = VLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(model, inputs(model)), logits(again, inputs(again)))
    encoder = build_encoder(model.config.encoders[0])
    load_part(encoder, tmp_path, "encoders.0.")
    assert encoder.fingerprint == model.vision_encoder.fingerprint


def test_an_encoder_comes_out_of_a_run_on_its_own(model, tmp_path):
    model.save_pretrained(tmp_path)
    encoder = build_encoder(model.config.encoders[0])
    load_part(encoder, tmp_path, "encoders.0.")
    assert encoder.fingerprint == model.vision_encoder.fingerprint
