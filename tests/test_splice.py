"""Layouts of several views in a whole model, against LLaVA-1.6 and LLaVA-OneVision of transformers."""

import random

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)

from vlmkit.data.batch import pixel_batches
from vlmkit.errors import UsageError
from vlmkit.inference import question
from vlmkit.layouts.mosaic import Box
from vlmkit.splice import arrange
from vlmkit.vlm import VLM
from vlmkit_connectors import CONNECTORS, Connector, ImageTokens

SIDE = 16
# (width, height) in tiles; not symmetric, so that exchanged numbers are seen.
PINPOINTS = [[1, 2], [2, 1], [2, 2], [3, 1]]
SIZES = [(40, 17), (16, 16), (9, 50), (33, 32), (100, 7)]


def ask(model, sizes, noise):
    """Rows of one, two and no image."""
    images = [noise(i, size) for i, size in enumerate(sizes)]
    rows = [question(own, "say yes") for own in (images[:1], images[1:3], images[3:], [])]
    return model.processor.prompts([r.conversation for r in rows], [r.images for r in rows])


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def copy_weights(model, reference):
    """Our tensors into transformers' model of the same parts."""
    tower = model.vision_encoder.vision
    left = reference.model.vision_tower.load_state_dict(
        getattr(tower, "vision_model", tower).state_dict(), strict=False
    )
    # What no feature is read from is not there without a retrieval vector.
    assert not left.unexpected_keys and {name.split(".")[0] for name in left.missing_keys} <= {
        "post_layernorm"
    }
    reference.model.language_model.load_state_dict(model.language_model.model.state_dict())
    reference.lm_head.load_state_dict(model.language_model.lm_head.state_dict())
    for theirs, ours in ((1, 0), (2, 2)):
        projector = getattr(reference.model.multi_modal_projector, f"linear_{theirs}")
        projector.load_state_dict(model.connector.layers[ours].state_dict())
    reference.model.image_newline.data.copy_(model.splice.newline.data)


def their_inputs(model, batch):
    """Tiles padded to the most of an image, and sizes as (height, width)."""
    views = next(pixel_batches(batch["pixel_values"], batch["image_sizes"], model.specs))
    owners = views.image_of_view_I
    tiles = [views.pixels_ICHW[owners == i] for i in range(int(owners.max()) + 1)]
    padded = torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True)
    sizes = [[h, w] for row in batch["image_sizes"].tolist() for w, h, _ in row if w]
    named = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {**named, "pixel_values": padded, "image_sizes": torch.tensor(sizes)}


def pinpoints_in_pixels(tiles):
    return [[h * SIDE, w * SIDE] for w, h in tiles]


def common(model):
    config = model.config
    return {"text_config": config.text_config.to_dict(), "image_token_index": config.image_token_id}


@pytest.fixture(scope="module")
def llava_next(tiny_vlm, tiny_clip):
    layout = {"type": "anyres", "pinpoints": PINPOINTS}
    model = tiny_vlm(encoder={**tiny_clip, "layout": layout}, connector={"pool": 1})
    reference = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(**model.vision_encoder.config["vision_config"]),
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_grid_pinpoints=pinpoints_in_pixels(PINPOINTS),
            projector_hidden_act="gelu",
            **common(model),
        )
    ).eval()
    copy_weights(model, reference)
    return model, reference


@pytest.fixture(scope="module")
def onevision(tiny_vlm):
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 4, "vision_use_head": False,
    }  # fmt: skip
    grid = [[w, h] for w in range(1, 7) for h in range(1, 7)]
    layout = {"type": "anyres_max", "max_tiles": 2}
    encoder = {"type": "siglip", "vision_config": vision, "layer": -1, "layout": layout}
    model = tiny_vlm(encoder=encoder, connector={"pool": 1})
    reference = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**vision),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_2",
            image_grid_pinpoints=pinpoints_in_pixels(grid),
            projector_hidden_act="gelu",
            **common(model),
        )
    ).eval()
    copy_weights(model, reference)
    return model, reference


@pytest.mark.parametrize("pair", ["llava_next", "onevision"])
def test_logits_are_the_reference_s(request, pair, noise, record_property):
    model, reference = request.getfixturevalue(pair)
    # One image a row: transformers takes several in a row of OneVision as a gallery, with one view each.
    for image in [noise(i, size) for i, size in enumerate(SIZES)]:
        row = question([image], "say yes")
        batch = model.processor.prompts([row.conversation], [row.images])
        ours, theirs = logits(model, batch), logits(reference, their_inputs(model, batch))
        record_property("largest difference", float((ours - theirs).abs().max()))
        assert ours.std() > 0.1
        assert (ours - theirs).abs().max() < 1e-5


def test_several_images_a_row_are_the_reference_s(llava_next, noise):
    model, reference = llava_next
    batch = ask(model, SIZES, noise)
    ours, theirs = logits(model, batch), logits(reference, their_inputs(model, batch))
    there = batch["attention_mask"].bool()
    assert (ours - theirs)[there].abs().max() < 1e-5


LAYOUTS = {
    "anyres": {"type": "anyres", "pinpoints": PINPOINTS},
    "anyres without newline": {"type": "anyres", "newline": False},
    "anyres_max": {"type": "anyres_max", "max_tiles": 2},
    "tiles": {"type": "tiles", "max_tiles": 6},
    "split": {"type": "split"},
    "scales": {"type": "scales"},
    "native": {"type": "native", "max_patches": 40},
    "letterbox": "letterbox",
}


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request, tiny_vlm):
    native = request.param == "native"
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": 4,
    }  # fmt: skip
    if native:
        encoder = {
            "type": "siglip2_naflex",
            "vision_config": {**vision, "num_patches": 16},
            "max_num_patches": 40,
        }
    else:
        encoder = {"type": "siglip", "vision_config": {**vision, "image_size": SIDE}}
        encoder["layout"] = LAYOUTS[request.param]
    return tiny_vlm(encoder=encoder)


def test_counted_tokens_are_produced_tokens(model, noise):
    """A model refuses another number, see `VLM.embed`."""
    draw = random.Random(0)
    sizes = [(draw.randint(1, 120), draw.randint(1, 120)) for _ in range(5)]
    batch = ask(model, sizes, noise)
    counted = [model.count_tokens(size) for size in sizes]
    found = (batch["input_ids"] == model.config.image_token_id).sum(1).tolist()
    assert found == [counted[0], sum(counted[1:3]), sum(counted[3:]), 0]
    assert torch.isfinite(logits(model, batch)[batch["attention_mask"].bool()]).all()


def test_a_saved_model_answers_alike(model, noise, tmp_path):
    model.save_pretrained(tmp_path)
    again = VLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, ask(again, SIZES, noise)), logits(model, ask(model, SIZES, noise)))


def test_each_row_is_what_it_is_alone(model, noise):
    together = logits(model, ask(model, SIZES, noise))[0, -1]
    row = question([noise(0, SIZES[0])], "say yes")
    alone = logits(model, model.processor.prompts([row.conversation], [row.images]))[0, -1]
    assert (together - alone).abs().max() < 1e-4


def test_the_newline_is_trained_and_stored_where_there_is_one(model):
    assert (model.splice.newline is not None) == model.spec.rule.newline


def test_arranged_by_hand():
    """Two tiles of 2 x 2 beside each other; the outer columns show padding."""
    tiles_END = torch.arange(8.0).view(2, 4, 1)
    box = Box(0, 1, 2, 2, 2, 2, newline=True)
    arranged = arrange(tiles_END, (1, 2), (2, 2), box, torch.tensor([-1.0]))
    assert arranged.flatten().tolist() == [1, 4, -1, 3, 6, -1]
    halved = arrange(tiles_END, (1, 2), (2, 2), Box(0, 0, 2, 4, 1, 2, newline=False))
    assert halved.flatten().tolist() == [1.5, 5.5]


def test_tiles_of_tokens_without_a_grid_are_refused(tiny_vlm, tiny_clip, monkeypatch):
    class Bag(Connector):
        """Three tokens a view, in no order."""

        def __init__(self, vision_widths, text_width, pool):
            super().__init__()
            self.linear = torch.nn.Linear(vision_widths[0], text_width)

        def num_tokens(self, grid):
            return 3

        def forward(self, features, text=None):
            views = [self.linear(view[:3]) for view in features[0].views()]
            return ImageTokens(torch.cat(views), (3,) * len(views))

    monkeypatch.setitem(CONNECTORS, "mlp", Bag)
    with pytest.raises(UsageError, match="the tokens of Bag form none; use a connector that keeps the grid"):
        tiny_vlm(encoder={**tiny_clip, "layout": "anyres"})
