"""SigLIP 2 NaFlex against transformers: fifty proportions at once and alone, with weights that matter."""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Siglip2Config, Siglip2Model, Siglip2Tokenizer
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    get_image_size_for_max_num_patches,
)
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from vlmkit.encoders.base import PixelBatch, pixel_batch
from vlmkit.encoders.packed_views import resized_positions
from vlmkit.encoders.siglip2_naflex import NaFlexEncoder, flat_patches
from vlmkit.encoders.siglip_text import SigLIPTextTower
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.layouts.native import native_grid

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
VISION = {**SIZE, "patch_size": 4, "num_patches": 25}
BUDGET = 30
TEXTS = ["a cat", "A Dog", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shake):
    folder = tmp_path_factory.mktemp("naflex")
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    words = Siglip2Tokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[])
    text = {**SIZE, "vocab_size": len(words), "max_position_embeddings": 12}
    shake(Siglip2Model(Siglip2Config(text_config=text, vision_config=VISION))).save_pretrained(folder)
    words.save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=4, max_num_patches=BUDGET).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    """Transformers' own but for grids of one column, see `upright`."""
    model = Siglip2Model.from_pretrained(folder, dtype="float32").eval()
    model.vision_model.embeddings.resize_positional_embeddings = upright
    return model


def upright(positional_embeddings, spatial_shapes, max_length):
    """Its positions; one column is one row of the turned table, since torch 2.13 on a CPU repeats a row."""
    plain = Siglip2VisionEmbeddings.resize_positional_embeddings
    resized = plain(positional_embeddings, spatial_shapes, max_length)
    for own, (rows, cols) in zip(resized, spatial_shapes.tolist()):
        if cols == 1:
            turned = positional_embeddings.transpose(0, 1)
            own[:rows] = plain(turned, torch.tensor([[1, rows]]), rows)[0]
    return resized


@pytest.fixture(scope="module")
def naflex(folder):
    return NaFlexEncoder.from_options(weights=str(folder)).eval()


@pytest.fixture(scope="module")
def pictures(picture):
    """Fifty proportions from 1:20 to 20:1, small and large; none 1 or 3 high, where transformers errs."""
    draw = random.Random(0)
    ratios = np.geomspace(1 / 20, 20, 50)
    areas = [draw.choice([350, 1000, 5000, 40000]) for _ in ratios]
    sizes = [(max(1, int((a * r) ** 0.5)), max(1, int((a / r) ** 0.5))) for a, r in zip(areas, ratios)]
    return [picture(size, seed) for seed, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def processor(folder):
    return Siglip2ImageProcessorPil.from_pretrained(folder)


def answer(reference, inputs):
    """The reference's outputs, and the same tokens without padding in the form of `patches_TV`."""
    with torch.no_grad():
        outputs = reference.vision_model(**inputs, output_hidden_states=True)
    there = inputs["pixel_attention_mask"].bool()
    return outputs, [state[there] for state in outputs.hidden_states]


def test_the_checkpoint_is_no_identity(reference, processor, pictures):
    _, states = answer(reference, processor(pictures, return_tensors="pt"))
    for below, above in pairwise(states):
        assert (above - below).abs().mean() > 0.3 * below.abs().mean()


def test_grids_and_pixels_equal_the_reference(naflex, processor, pictures):
    """Ours are pictures, theirs patches padded to the budget: the same numbers."""
    theirs = processor(pictures, return_tensors="pt")
    batch = pixel_batch(naflex.spec, pictures)
    assert batch.grids_I2.tolist() == theirs["spatial_shapes"].tolist()
    assert len(set(map(tuple, batch.grids_I2.tolist()))) >= 15
    wanted = theirs["pixel_values"][theirs["pixel_attention_mask"].bool()]
    assert torch.equal(flat_patches(batch, 4), wanted)


@pytest.mark.parametrize("budget", [1, 16, 128, 256, 576, 784, 1024])
def test_grids_of_any_size_equal_the_reference(budget):
    draw = random.Random(budget)
    for _ in range(100):
        width, height = (int(2 ** draw.uniform(0, 13)) for _ in range(2))
        height_px, width_px = get_image_size_for_max_num_patches(height, width, 16, budget)
        assert native_grid((width, height), 16, budget) == (height_px // 16, width_px // 16)


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((640, 480), [(14, 18), (21, 27), (27, 36)]),
        ((1920, 1080), [(12, 21), (18, 32), (24, 42)]),
        ((1600, 100), [(4, 64), (6, 96), (8, 128)]),
        ((64, 64), [(16, 16), (24, 24), (32, 32)]),
    ],
)
def test_common_sizes(size, grids):
    assert [native_grid(size, 16, budget) for budget in (256, 576, 1024)] == grids


@pytest.mark.parametrize("layer", [-5, -2, -1])
def test_a_batch_of_all_proportions_equals_the_reference(
    naflex, reference, processor, pictures, see, gap, changed, layer
):
    outputs, states = answer(reference, processor(pictures, return_tensors="pt"))
    features = see(changed(naflex, layer=layer), pictures)
    assert gap(features.patches_TV, states[layer]) <= 1e-6
    assert gap(features.pooled_BE, outputs.pooler_output) <= 1e-6


@pytest.mark.parametrize("mistake", [None, "order"])
def test_budgets_may_differ_within_a_batch(naflex, reference, pictures, gap, mistake):
    """Packed, against the same views padded to the longest one of the batch."""
    spec, levels = naflex.spec, [0, 1, 0, 2, 1, 1, 0, 2]
    chosen = list(zip(pictures[::6], levels))
    views = [spec.views(picture.size, level)[0] for picture, level in chosen]
    pixels = [torch.from_numpy(spec.preprocess(picture, level)[0]) for picture, level in chosen]
    batch = PixelBatch.of(torch.cat([p.flatten() for p in pixels]), views, range(len(views)))
    lengths = batch.grids_I2.prod(dim=1)
    assert len(set(lengths.tolist())) >= 5
    inputs = {
        "pixel_values": pad_sequence(flat_patches(batch, 4).split(lengths.tolist()), batch_first=True),
        "pixel_attention_mask": (torch.arange(lengths.max()) < lengths[:, None]).long(),
        "spatial_shapes": batch.grids_I2 if mistake is None else batch.grids_I2.flip(0),
    }
    outputs, states = answer(reference, inputs)
    with torch.no_grad():
        features = naflex(batch)
    gaps = [gap(features.patches_TV, states[-2]), gap(features.pooled_BE, outputs.pooler_output)]
    assert min(gaps) > 1e-2 if mistake else max(gaps) <= 1e-6


def test_each_picture_alone_equals_the_reference(naflex, reference, processor, pictures, see, gap):
    """The reference pads to the budget and masks, ours has no padding: the same sums in another order."""
    for picture in pictures[::2]:
        outputs, states = answer(reference, processor(picture, return_tensors="pt"))
        features = see(naflex, [picture])
        assert gap(features.patches_TV, states[-2]) <= 1e-6
        assert gap(features.pooled_BE, outputs.pooler_output) <= 1e-6


def test_the_attention_of_transformers_is_not_asked(naflex, pictures, see, gap, changed):
    """`set_attn_implementation` on a model that holds the tower does not change what is masked."""
    twin = changed(naflex)
    twin.vision.config._attn_implementation = "eager"
    assert gap(see(twin, pictures).patches_TV, see(naflex, pictures).patches_TV) == 0


def test_the_patches_of_one_column_have_positions_of_their_own(naflex, pictures, see):
    """The same pixels in every row: what differs is the position. Transformers on a CPU has one for all.

    A ramp of four rows stays one between the outermost centres, and two places are tents of 3 3 1 sevenths.
    """
    column = see(naflex, [pictures[0].resize((1, 1)).resize((4, 80))])
    assert column.grids == [(20, 1)]
    assert torch.pdist(column.patches_TV[2:-2]).min() > 1e-2
    ramp = torch.arange(4.0)[:, None, None].expand(4, 4, 3)
    found = resized_positions(ramp, [(8, 1), (2, 1)], antialias=True)[:, 0].tolist()
    assert found == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3, 5 / 7, 16 / 7])


def test_positions_are_interpolated_once_a_grid(naflex, pictures, see, monkeypatch):
    sizes, interpolate = [], torch.nn.functional.interpolate

    def count(table, size, **options):
        sizes.append(size)
        return interpolate(table, size, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", count)
    grids = see(naflex, pictures).grids
    # One column goes as one row.
    assert sizes == [(1, rows) if cols == 1 else (rows, cols) for rows, cols in dict.fromkeys(grids)]
    assert len(sizes) < len(grids)


@pytest.mark.parametrize("layer", [-5, -3, -1])
def test_without_a_vector_less_is_built_and_loaded(folder, naflex, pictures, see, gap, changed, layer):
    small = NaFlexEncoder.from_options(weights=str(folder), layer=layer, pooled=False).eval()
    names = {name for name, _ in small.named_parameters()}
    assert len(small.vision.encoder.layers) == 5 + layer
    assert not [name for name in names if "head" in name or "post_layernorm" in name]
    features = see(small, pictures[::7])
    assert gap(features.patches_TV, see(changed(naflex, layer=layer), pictures[::7]).patches_TV) <= 1e-6
    assert (features.pooled_BE, small.embed_dim, small.text_tower_ref) == (None, 0, None)
    with pytest.raises(VlmkitError, match="has no retrieval space"):
        small.embed_images(pictures[:1])


def test_a_tower_without_a_head_has_no_vector(folder, naflex, pictures, see, gap):
    config = {**naflex.config["vision_config"], "vision_use_head": False}
    headless = NaFlexEncoder(config, max_num_patches=BUDGET).eval()
    headless.load(str(folder))
    features = see(headless, pictures[:5])
    assert (features.pooled_BE, len(headless.vision.encoder.layers)) == (None, 3)
    assert gap(features.patches_TV, see(naflex, pictures[:5]).patches_TV) <= 1e-6


def test_gradient_checkpointing_changes_no_gradient(naflex, pictures, changed, gap):
    gradients = []
    for on in (False, True):
        encoder = changed(naflex).train()
        if on:
            new = hasattr(encoder.vision, "activation_checkpointing_enable")
            getattr(encoder.vision, f"{'activation' if new else 'gradient'}_checkpointing_enable")()
        encoder(pixel_batch(encoder.spec, pictures[:3])).patches_TV.square().sum().backward()
        gradients.append(encoder.vision.encoder.layers[0].self_attn.q_proj.weight.grad)
    assert gap(*gradients) <= 1e-6


def test_lora_reaches_the_attention(naflex, pictures, see, gap, changed):
    """An adapter of the projections is used, and merging it into them changes nothing."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "out_proj"], init_lora_weights=False)
    twin = changed(naflex)
    adapted = inject_adapter_in_model(config, twin)
    with_lora = see(adapted.eval(), pictures[:4]).patches_TV
    assert gap(with_lora, see(naflex, pictures[:4]).patches_TV) > 1e-2
    for module in adapted.modules():
        if isinstance(module, lora.Linear):
            module.merge()
    assert gap(see(adapted, pictures[:4]).patches_TV, with_lora) <= 1e-5


def test_attention_dropout_is_for_training_only(naflex, pictures, see, gap, changed):
    dropping = changed(naflex, vision_config={**naflex.config["vision_config"], "attention_dropout": 0.5})
    assert gap(see(dropping, pictures[:4]).patches_TV, see(naflex, pictures[:4]).patches_TV) == 0
    assert gap(see(dropping.train(), pictures[:4]).patches_TV, see(naflex, pictures[:4]).patches_TV) > 1e-2


def test_the_tiny_twin_is_built_and_runs(pictures, see):
    features = see(NaFlexEncoder.from_options(**NaFlexEncoder.tiny_options()), pictures[:3])
    assert features.pooled_BE.shape == (3, 32)


@pytest.mark.parametrize("change", [{"layer": -1}, {"mean": [0.48, 0.46, 0.41]}, {"resample": "bicubic"}])
def test_a_mistake_is_seen(naflex, reference, processor, pictures, see, gap, changed, change):
    _, states = answer(reference, processor(pictures, return_tensors="pt"))
    assert gap(see(changed(naflex, **change), pictures).patches_TV, states[-2]) > 5e-3


@pytest.mark.parametrize("broken", ["mask", "shapes", "channels first", "gelu"])
def test_another_reference_is_seen(naflex, reference, processor, pictures, see, gap, changed, broken):
    """What an adapter can forget or confuse, done to the inputs of the reference."""
    inputs = processor(pictures, return_tensors="pt")
    there, encoder = inputs["pixel_attention_mask"].bool(), naflex
    if broken == "mask":
        inputs["pixel_attention_mask"] = torch.ones_like(inputs["pixel_attention_mask"])
    if broken == "shapes":
        inputs["spatial_shapes"] = inputs["spatial_shapes"].flip(1)
    if broken == "channels first":
        inputs["pixel_values"] = inputs["pixel_values"].unflatten(2, (-1, 3)).transpose(2, 3).flatten(2)
    if broken == "gelu":
        encoder = changed(naflex, vision_config={**VISION, "hidden_act": "gelu"})
    outputs, _ = answer(reference, inputs)
    features = see(encoder, pictures)
    least = 1e-4 if broken == "gelu" else 1e-2
    assert gap(features.patches_TV, outputs.hidden_states[-2][there]) > least
    assert gap(features.pooled_BE, outputs.pooler_output) > least


def test_the_first_view_gives_the_retrieval_vector(naflex, pictures, gap):
    plain = pixel_batch(naflex.spec, pictures[20:23])
    shared = replace(plain, image_of_view_I=torch.tensor([0, 0, 1]))
    with torch.no_grad():
        assert gap(naflex(shared).pooled_BE, naflex(plain).pooled_BE[[0, 2]]) < 1e-6


@pytest.mark.parametrize("budget", [9, 100])
def test_the_budget_can_be_set(folder, processor, reference, pictures, see, gap, budget):
    encoder = NaFlexEncoder.from_options(weights=str(folder), max_num_patches=budget).eval()
    inputs = processor(pictures[::7], max_num_patches=budget, return_tensors="pt")
    _, states = answer(reference, inputs)
    features = see(encoder, pictures[::7])
    assert gap(features.patches_TV, states[-2]) <= 1e-6
    assert max(rows * cols for rows, cols in features.grids) <= budget


def test_text_equals_the_reference(naflex, folder, reference, gap):
    words = AutoTokenizer.from_pretrained(folder, padding_side="right")
    ids = words([t.lower() for t in TEXTS], padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        wanted = reference.get_text_features(ids["input_ids"]).pooler_output
    assert isinstance(naflex.text_tower(), SigLIPTextTower)
    assert gap(naflex.text_tower().embed(TEXTS), wanted) == 0


def test_every_parameter_gets_a_gradient(naflex, pictures, changed):
    encoder = changed(naflex, layer=-1).train()
    features = encoder(pixel_batch(encoder.spec, pictures[:4]))
    (features.patches_TV.square().sum() + features.pooled_BE.square().sum()).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "google/siglip2-base-patch16-224"}, "are for the encoder 'siglip'"),
        (
            {"vision_config": {}, "max_num_patches": 0},
            "found max_num_patches 0; give a whole number of 1 or more",
        ),
        ({"vision_config": {"image_size": 224}}, "unknown siglip2_naflex vision_config field 'image_size'"),
        ({"vision_config": {"num_patches": 250}}, "num_patches 250 is no square; "),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(VlmkitError, match=message):
        NaFlexEncoder.from_options(**options)


def test_a_processor_with_other_patches_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Siglip2ImageProcessorPil(patch_size=8).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="patch_size=8, the encoder 4"):
        NaFlexEncoder.resolve(weights=str(tmp_path))
