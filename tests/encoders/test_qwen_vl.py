"""The towers of Qwen2.5-VL and Qwen3-VL against transformers: several sizes at once, weights that matter."""

import json
from itertools import pairwise

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen3VLConfig, Qwen3VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlmkit.encoders.base import pixel_batch
from vlmkit.encoders.packed_layers import rotate
from vlmkit.encoders.packed_views import axial_rope
from vlmkit.encoders.qwen2_5_vl import Qwen25VLEncoder
from vlmkit.encoders.qwen3_vl import Qwen3VLEncoder
from vlmkit.errors import UsageError, VlmkitError

VISION = {
    "hidden_size": 32, "intermediate_size": 48, "depth": 4, "num_heads": 2, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 16,
    "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 20, "head_dim": 8,
}  # fmt: skip
WINDOWS = {"window_size": 16, "fullatt_block_indexes": [1, 3]}
TABLE = {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}
FAMILIES = {
    "qwen2_5_vl": (Qwen25VLEncoder, Qwen2_5_VLModel, Qwen2_5_VLConfig, VISION | WINDOWS),
    "qwen3_vl": (Qwen3VLEncoder, Qwen3VLModel, Qwen3VLConfig, VISION | TABLE),
}
LIMITS = {"shortest_edge": 256, "longest_edge": 2000}
SIZES = [(40, 32), (17, 40), (90, 30), (31, 77), (24, 24), (3, 9), (200, 200)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory, shake):
    """A whole model, as published: its language model is not read."""
    _, model, config, vision = FAMILIES[family]
    folder = tmp_path_factory.mktemp(family)
    shake(model(config(vision_config=vision, text_config=TEXT))).save_pretrained(folder)
    halves = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    Qwen2VLImageProcessorPil(patch_size=4, size=LIMITS, **halves).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def build(family, folder):
    """A function: options to the encoder of the checkpoint."""

    def from_folder(**options):
        return FAMILIES[family][0].from_options(weights=str(folder), **options).eval()

    return from_folder


@pytest.fixture(scope="module")
def encoder(build):
    return build()


@pytest.fixture(scope="module")
def pictures(picture):
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def inputs(folder, pictures):
    return Qwen2VLImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")


def row_major(states, grids, group):
    """The reference's order, groups of 2 x 2 one after the other, to rows of patches."""
    views = torch.split(states, [rows * cols for rows, cols in grids])
    shape = [(r // group, c // group, group, group, -1) for r, c in grids]
    return torch.cat([v.view(s).transpose(1, 2).flatten(0, 3) for v, s in zip(views, shape)])


def window_order(grids, group, side):
    """Qwen2.5's order of groups, counted out: windows row by row, and the groups of each row by row."""
    order, first = [], 0
    for rows, cols in ((r // group, c // group) for r, c in grids):
        places = [(r // side, c // side, r, c) for r in range(rows) for c in range(cols)]
        order += [first + r * cols + c for _, _, r, c in sorted(places)]
        first += rows * cols
    return order


@pytest.fixture(scope="module")
def answer(family, folder, inputs):
    """The reference's hidden states, row-major, and its merged tokens."""
    tower = FAMILIES[family][1].from_pretrained(folder, dtype="float32").eval().visual
    seen, grids = [], [(r, c) for _, r, c in inputs["image_grid_thw"].tolist()]
    for block in tower.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        outputs = tower(inputs["pixel_values"], inputs["image_grid_thw"])
    states = [*seen, outputs.last_hidden_state]
    if family == "qwen2_5_vl":
        back = torch.tensor(window_order(grids, 2, 16 // 4 // 2)).argsort()
        states = [state.unflatten(0, (-1, 4))[back].flatten(0, 1) for state in states]
    return [row_major(state, grids, 2) for state in states], outputs.pooler_output


def test_the_checkpoint_is_no_identity(answer):
    for below, above in pairwise(answer[0]):
        assert (above - below).abs().mean() > 0.3 * below.abs().mean()


def test_grids_equal_the_reference(encoder, pictures, inputs):
    batch = pixel_batch(encoder.spec, pictures)
    assert batch.grids_I2.tolist() == inputs["image_grid_thw"][:, 1:].tolist()
    assert len(set(map(tuple, batch.grids_I2.tolist()))) >= 5
    assert (encoder.spec.mean, encoder.spec.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("layer", [-5, -2, -1])
def test_a_batch_of_several_sizes_equals_the_reference(build, pictures, answer, see, gap, layer):
    encoder = build(layer=layer)
    features = see(encoder, pictures)
    assert len(encoder.vision.blocks) == 5 + layer
    assert gap(features.patches_TV, answer[0][layer]) <= 3e-6
    assert features.pooled_BE is None


def test_merged_tokens_equal_the_reference(build, encoder, pictures, answer, see, gap):
    merged = build(merged=True)
    features = see(merged, pictures)
    assert gap(features.patches_TV, answer[1]) <= 3e-6
    assert (merged.spec.patch_size, merged.spec.width) == (8, 16)
    halves = [(rows // 2, cols // 2) for rows, cols in see(encoder, pictures).grids]
    assert features.grids == halves == [(v.rows, v.cols) for p in pictures for v in merged.spec.views(p.size)]


def test_each_picture_alone_is_the_same(encoder, pictures, see, gap):
    alone = torch.cat([see(encoder, [picture]).patches_TV for picture in pictures])
    assert gap(see(encoder, pictures).patches_TV, alone) <= 3e-6


def test_only_what_is_read_is_built(encoder, build):
    names = {name for name, _ in encoder.named_parameters()}
    assert not [name for name in names if "merger" in name]
    assert not [n for n, _ in build(merged=True).named_parameters() if "deepstack" in n]


def swapped(x, rope):
    return rotate(x, tuple(torch.cat(half.chunk(2, -1)[::-1], -1) for half in rope))


def interleaved(x, rope):
    """Neighbouring channels turn together, as in some other rotary positions."""
    mixed = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return rotate(mixed, rope).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def alternating(grids, rows, cols):
    """Frequencies of rows and columns alternate, as Pixtral's do."""
    both = axial_rope(grids, rows, cols)
    return tuple(x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) for x in both)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("packed_layers.rotate", swapped),
        ("packed_layers.rotate", interleaved),
        ("qwen_vl.axial_rope", alternating),
        ("qwen_vl.inverse", lambda order: torch.arange(len(order))),
        ("qwen2_5_vl.windows", lambda r, c, side: (torch.arange(r * c), [r * c])),
        ("qwen3_vl.resized_positions", lambda table, grids, **_: 0),
        ("qwen_vl.patch_grids", lambda batch, side: [(c, r) for r, c in batch.grids_I2.tolist()]),
    ],
)
def test_a_mistake_of_the_code_is_seen(
    family, encoder, pictures, answer, see, gap, monkeypatch, name, mistake
):
    """Rotary positions in another order, windows not undone or not made, no positions, rows for columns."""
    monkeypatch.setattr(f"vlmkit.encoders.{name}", mistake)
    other = {
        "qwen2_5_vl": ["qwen3_vl.resized_positions"],
        "qwen3_vl": ["qwen_vl.inverse", "qwen2_5_vl.windows"],
    }
    difference = gap(see(encoder, pictures).patches_TV, answer[0][-1])
    assert difference <= 3e-6 if name in other[family] else difference > 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.5, 0.5, 0.5]},
        {"resample": "bilinear"},
        {"vision_config": {"hidden_act": "gelu"}},
        {"vision_config": {"rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}}},
    ],
)
def test_a_mistake_is_seen(encoder, pictures, answer, see, gap, changed, change):
    if "vision_config" in change:
        change = {"vision_config": {**encoder.config["vision_config"], **change["vision_config"]}}
    twin = changed(encoder, **change)
    least = 1e-4 if change.get("vision_config", {}).get("hidden_act") == "gelu" else 5e-3
    assert gap(see(twin, pictures).patches_TV, answer[0][-1]) > least


def test_other_windows_are_seen(pictures, picture, see, gap, changed):
    encoder = Qwen25VLEncoder(VISION | WINDOWS, layout=Qwen25VLEncoder.own_layout(2, 256, 2000)).eval()
    for change in ({"window_size": 24}, {"fullatt_block_indexes": [0, 1]}):
        twin = changed(encoder, vision_config={**encoder.config["vision_config"], **change})
        assert gap(see(twin, pictures).patches_TV, see(encoder, pictures).patches_TV) > 1e-3


def test_another_layout_may_be_taken(build, pictures, see):
    features = see(build(layout="square", image_size=40), pictures[:2])
    assert features.grids == [(10, 10), (10, 10)]
    odd = see(build(layout={"type": "native", "max_patches": 35}, image_size=40), pictures[:3])
    assert any(rows % 2 or cols % 2 for rows, cols in odd.grids)


def test_gradients_reach_every_parameter(build, pictures):
    encoder = build(merged=True).train()
    encoder(pixel_batch(encoder.spec, pictures[:4])).patches_TV.square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_there_is_no_vector_and_that_is_said(encoder, pictures):
    with pytest.raises(VlmkitError, match="has no retrieval space"):
        encoder.embed_images(pictures[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooled": True}, "found pooled: true; "),
        ({"merged": True, "layer": -2}, "merged: true with layer -2; the merger reads the last layer"),
        ({"layout": "square"}, "layout 'square' needs an image_size"),
        ({"layout": "square", "image_size": 30}, "image_size 30 is not a multiple of 4 pixels"),
        (
            {"merged": True, "layout": "square", "image_size": 44},
            "image_size 44 is not a multiple of 8 pixels",
        ),
    ],
)
def test_wrong_options_are_explained(build, options, message):
    with pytest.raises(UsageError, match=message):
        build(**options)


def test_a_checkpoint_of_another_kind_is_refused(family, folder):
    other = next(cls for name, (cls, *_) in FAMILIES.items() if name != family)
    with pytest.raises(VlmkitError, match=f"are a '{family}' model; the encoder '{other.family}' takes"):
        other.resolve(weights=str(folder))


def test_a_table_that_is_no_square_is_refused():
    with pytest.raises(UsageError, match="num_position_embeddings 24 is no square"):
        Qwen3VLEncoder(VISION | {"num_position_embeddings": 24})


@pytest.mark.parametrize("name", ["patch_size", "merge_size"])
def test_an_image_processor_that_does_not_fit_is_refused(family, folder, tmp_path, name):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stored = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stored, name: 3}))
    with pytest.raises(UsageError, match=f"the image processor has {name}=3, the encoder "):
        FAMILIES[family][0].resolve(weights=str(tmp_path))


def test_limits_in_pixels_are_read_too(family, folder, tmp_path):
    """As published with Qwen2.5-VL."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    limits = {"min_pixels": 500, "max_pixels": 1500, "patch_size": 4, "merge_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(limits))
    resolved = FAMILIES[family][0].resolve(weights=str(tmp_path), merged=True)
    assert resolved["layout"] == {"type": "qwen", "merge": 1, "min_pixels": 500, "max_pixels": 1500}


def test_the_tower_alone_is_read(family, folder, tmp_path, encoder, pictures, see):
    tower = FAMILIES[family][1].from_pretrained(folder, dtype="float32").visual
    tower.save_pretrained(tmp_path)
    layout = encoder.config["layout"]
    alone = FAMILIES[family][0].from_options(
        weights=str(tmp_path), layout=layout, mean=encoder.spec.mean, std=encoder.spec.std
    )
    assert torch.equal(see(alone.eval(), pictures).patches_TV, see(encoder, pictures).patches_TV)


def test_the_tiny_twin_is_built_and_runs(family, pictures, see):
    cls = FAMILIES[family][0]
    features = see(cls.from_options(**cls.tiny_options()), pictures)
    assert features.patches_TV.shape[1] == 32
