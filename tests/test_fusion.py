"""Several encoders in one model, from the recipe to the answer: each sees its own pixels."""

import pytest
import torch

from vlmkit.assemble import assemble
from vlmkit.errors import UsageError
from vlmkit.inference import question
from vlmkit.recipe import Recipe
from vlmkit.train.module import StageModule
from vlmkit.vlm import VLM

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
DINO = {"type": "dinov2", "vision_config": {**SIZE, "image_size": 24}, "layout": "square"}
SIGLIP = {"type": "siglip", "vision_config": {**SIZE, "intermediate_size": 32, "image_size": 16}}
NATIVE = {
    "type": "siglip2_naflex",
    "vision_config": {**SIZE, "intermediate_size": 32, "num_patches": 16},
    "max_num_patches": 20,
}
FUSIONS = ("concat", "interleave", "groups")
# Tokens of an image of any size: grids of 6 x 6 and 4 x 4, on the first one's grid or on their own.
TOKENS = {"concat": 36, "interleave": 72, "groups": 52}


@pytest.fixture(scope="module")
def build(tiny_recipe, roughen):
    """A function: encoders and fusion to a model with rough weights."""

    def make(encoders, fusion):
        raw = tiny_recipe().model_dump()
        raw["model"] |= {"encoders": encoders, "fusion": fusion, "connector": {"type": "mlp"}}
        return roughen(assemble(Recipe.model_validate(raw))).eval()

    return make


@pytest.fixture(scope="module", params=FUSIONS)
def model(request, build):
    return build([DINO, SIGLIP], request.param)


def prompts(model, noise, sizes=((40, 9), (8, 33), (16, 16))):
    images = [noise(i, size) for i, size in enumerate(sizes)]
    rows = [question(images[:1], "say yes"), question(images[1:], "say yes"), question([], "say yes")]
    return model.processor.prompts([r.conversation for r in rows], [r.images for r in rows])


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def test_tokens_are_counted_and_produced(model, noise):
    batch = prompts(model, noise)
    tokens = TOKENS[model.config.fusion]
    assert model.count_tokens((40, 9)) == tokens
    found = (batch["input_ids"] == model.config.image_token_id).sum(1).tolist()
    assert found == [tokens, 2 * tokens, 0]
    assert torch.isfinite(logits(model, batch)[batch["attention_mask"].bool()]).all()


def test_each_encoder_sees_its_own_preprocessing(model, noise):
    """The features of the model are those of each encoder alone, bit for bit."""
    batch = prompts(model, noise)
    with torch.no_grad():
        together = model.encode_images(batch["pixel_values"], batch["image_sizes"])
        for encoder, seen in zip(model.encoders, together, strict=True):
            images = [noise(i, size) for i, size in enumerate(((40, 9), (8, 33), (16, 16)))]
            views = [torch.from_numpy(view) for image in images for view in encoder.spec.preprocess(image)]
            alone = [model_view(encoder, view) for view in views]
            assert (seen.patches_TV - torch.cat(alone)).abs().max() < 1e-5
    specs = model.specs
    assert specs[0].mean != specs[1].mean and specs[0].image_size != specs[1].image_size


def model_view(encoder, pixels_CHW):
    """Patches of one view, from the tower's own embeddings and blocks."""
    from vlmkit.encoders.batch import PixelBatch

    views = encoder.spec.views((10, 10))
    return encoder(PixelBatch.of(pixels_CHW.flatten(), views, [0])).patches_TV


def test_both_encoders_matter(model, noise):
    before = logits(model, prompts(model, noise))
    for encoder in model.encoders:
        kept = {name: value.clone() for name, value in encoder.state_dict().items()}
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.mul_(1.5)
        assert (logits(model, prompts(model, noise)) - before).abs().max() > 1e-3
        encoder.load_state_dict(kept)
    assert torch.equal(logits(model, prompts(model, noise)), before)


def test_saved_and_loaded_it_is_the_same(model, noise, tmp_path):
    model.save_pretrained(tmp_path)
    again = VLM.from_pretrained(tmp_path).eval()
    assert again.config.fusion == model.config.fusion
    assert torch.equal(logits(again, prompts(again, noise)), logits(model, prompts(model, noise)))
    assert isinstance(again.ask(noise(1, (40, 9)), "say yes", max_new_tokens=2), str)


def test_every_part_trains_with_and_without_images(model, tiny_recipe, rows, collate):
    module = StageModule(model.train(), tiny_recipe().stages[0])
    try:
        for some in (rows, [row for row in rows if not row.images]):
            model.zero_grad()
            loss, weight = module(collate(model, some))["next_token"]
            (loss / weight).backward()
            assert all(p.grad is not None for p in model.connector.parameters())
    finally:
        model.eval()


def test_groups_take_different_layouts(build, noise):
    model = build([DINO, NATIVE], "groups")
    counts = [model.count_tokens(size) for size in ((40, 9), (8, 33), (16, 16))]
    assert counts == [36 + 18, 36 + 18, 36 + 16]
    assert torch.isfinite(logits(model, prompts(model, noise))).any()


def test_native_views_come_to_the_first_one_s_grid(build, noise):
    model = build([DINO, NATIVE], "concat")
    assert model.count_tokens((40, 9)) == 36
    assert torch.isfinite(logits(model, prompts(model, noise))).any()


def tower(side, layout, **more):
    vision = {**SIZE, "intermediate_size": 32, "image_size": side, **more}
    return {"type": "siglip", "vision_config": vision, "layout": layout}


MISFITS = {
    "tiles of two sides choose other canvases": [tower(16, "anyres"), tower(20, "anyres")],
    "several views and one": [tower(16, "tiles"), tower(16, "square")],
    "other rules": [tower(16, "tiles"), tower(16, "anyres")],
    "a part of the image and all of it": [tower(16, "crop"), tower(16, "square")],
    "parts of other sizes": [{**DINO, "layout": "crop", "shortest_edge": 30}, tower(16, "crop")],
}


@pytest.mark.parametrize("fusion", ["concat", "interleave"])
@pytest.mark.parametrize("encoders", MISFITS.values(), ids=MISFITS)
def test_features_of_other_places_are_not_fused(build, encoders, fusion):
    with pytest.raises(UsageError, match=f"fusion '{fusion}' joins what encoders see at the same"):
        build(encoders, fusion)
    build(encoders, "groups")


def test_tiles_of_one_side_are_fused(build, noise):
    model = build([tower(16, "anyres"), tower(16, "anyres", patch_size=8)], "concat")
    assert torch.isfinite(logits(model, prompts(model, noise))).any()
    with pytest.raises(UsageError, match=r"tokens of Interleaved form none; .* without fusion: interleave"):
        build([tower(16, "anyres"), tower(16, "anyres")], "interleave")


def test_a_newline_is_there_for_those_who_write_one(build):
    leads = build([tower(16, "square"), tower(16, "anyres")], "groups")
    assert leads.splice.newline is not None
    assert build([tower(16, "square"), tower(20, "square")], "concat").splice.newline is None


def test_a_connector_s_own_complaint_is_the_users(tiny_recipe):
    recipe = tiny_recipe(connector={"depth": 1, "expansion": 4})
    with pytest.raises(UsageError, match="found expansion=4 with depth=1, which has no hidden layer"):
        assemble(recipe)
