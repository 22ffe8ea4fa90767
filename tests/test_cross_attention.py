"""Blocks inside the language model: what they see, that they leak nothing, and all that runs through them."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.trainer_pt_utils import get_module_class_from_name

from vlmkit.assemble import assemble
from vlmkit.data.sample import IMAGE, Message
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.inject import decoder_layers
from vlmkit.objectives import token_loss
from vlmkit.recipe import Recipe, Stage
from vlmkit.sight import Windows
from vlmkit.splice import Marks, count_given
from vlmkit.train.module import StageModule
from vlmkit.train.stage import apply_stage, finish_stage, recompute_activations
from vlmkit.vlm import VLM
from vlmkit_connectors import CONNECTORS, LayerInjection

NAMES = [name for name, cls in CONNECTORS.items() if issubclass(cls, LayerInjection)]
SIZES = {
    "gated_cross_attention": {"every": 1, "num_latents": 3, "depth": 1, "heads": 2, "head_dim": 4},
    "mllama": {"every": 1, "start": 0, "heads": 4, "kv_heads": 2},
}
FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "gpt2", "opt")
NATIVE = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2,
          "layout": {"type": "native", "max_patches": 20}}  # fmt: skip


@pytest.fixture(scope="module")
def fresh(tiny_recipe):
    """A function: connector, language model and further options to an assembled model as it starts."""

    def make(name, llm="llama", **options):
        raw = tiny_recipe(llm, **options).model_dump()
        raw["model"]["connector"] = {"type": name, **SIZES[name]}
        return assemble(Recipe.model_validate(raw)).eval()

    return make


@pytest.fixture(scope="module", params=NAMES)
def model(request, fresh, roughen):
    """With gates that are open, and images of several numbers of tokens."""
    return roughen(fresh(request.param, encoder=NATIVE))


def asked(model, noise, *rows):
    """Inputs of rows of (images, text before, between and after them)."""
    conversations, images = [], []
    for sizes, text in rows:
        parts = [part for words in text for part in (words, IMAGE)][:-1]
        conversations.append((Message("user", tuple(p for p in parts if p != "")),))
        images.append([noise(seed, size) for seed, size in sizes])
    return model.processor.prompts(conversations, images)


TWO = ([(1, (16, 16)), (2, (30, 9))], ["what is", "color of", "say yes"])
SIDE_BY_SIDE = ([(3, (20, 8)), (4, (8, 20))], ["", "", "which of them is red?"])
NONE = ([], ["what is one and one?"])


@torch.no_grad()
def logits(model, batch, **kwargs):
    return model(**batch, **kwargs).logits


def replaced(batch, other, row=0):
    """The batch with the pixels of another one's row."""
    pixels = batch["pixel_values"].clone()
    pixels[row] = other["pixel_values"][row]
    return {**batch, "pixel_values": pixels}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_at_the_start_it_is_the_text_model(fresh, noise, name, family):
    model = fresh(name, family)
    batch = asked(model, noise, TWO, NONE, SIDE_BY_SIDE)
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}
    places = (text["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = model.language_model(**text, position_ids=places).logits
    difference = (logits(model, batch, position_ids=places) - alone)[text["attention_mask"].bool()]
    assert difference.abs().max() == 0.0
    plain = AutoModelForCausalLM.from_config(model.config.text_config)
    assert list(model.language_model.state_dict()) == list(plain.state_dict())
    assert isinstance(decoder_layers(model.language_model)[0], type(decoder_layers(plain)[0]))


def test_an_image_is_one_marker(model, noise):
    batch = asked(model, noise, TWO, NONE)
    assert (batch["input_ids"] == model.config.image_token_id).sum(1).tolist() == [2, 0]
    for size in ((16, 16), (30, 9), (90, 5)):
        assert model.count_tokens(size) == 1
        given = count_given(model.specs, model.connector, Marks(), (*size, 0))
        assert given == sum(model.connector.num_tokens((v.rows, v.cols)) for v in model.spec.features(size))


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("row", [TWO, SIDE_BY_SIDE])
def test_no_text_sees_an_image_that_comes_after_it(model, noise, row, changed):
    sizes, text = row
    other = [(seed + 50 * (i == changed), size) for i, (seed, size) in enumerate(sizes)]
    one, two = asked(model, noise, row), asked(model, noise, (other, text))
    marker = (one["input_ids"][0] == model.config.image_token_id).nonzero()[changed].item()
    difference = (logits(model, one) - logits(model, two))[0].abs().amax(1)
    assert difference[:marker].max() == 0.0 if marker else True
    assert difference[marker] > 1e-4
    if changed == 1 or model.connector.sees_run or row is TWO:
        assert difference[marker + 1 :].max() > 1e-4


def test_text_without_images_does_not_depend_on_the_batch(model, noise):
    rows = [TWO, NONE, SIDE_BY_SIDE]
    together = asked(model, noise, *rows)
    for i, row in enumerate(rows):
        alone = asked(model, noise, row)
        length = alone["input_ids"].shape[1]
        places = {"position_ids": (together["attention_mask"].cumsum(1) - 1).clamp(min=0)}
        found = logits(model, together, **places)[i, -length:]
        assert (found - logits(model, alone)[0]).abs().max() < 1e-5


def test_windows_with_numbers():
    """Markers at 1, 2 and 4: the latest image, and the latest run of images."""
    markers = torch.tensor([[0, 1, 1, 0, 1, 0]]).bool()
    latest = [(0, 0), (0, 1), (1, 2), (1, 2), (2, 3), (2, 3)]
    run = [(0, 0), (0, 1), (0, 2), (0, 2), (2, 3), (2, 3)]
    for sees_run, wanted in ((False, latest), (True, run)):
        for cut in range(7):
            found = Windows.start(1, markers.device)
            for part in (markers[:, :cut], markers[:, cut:]):
                found = found.then(part, sees_run)
            assert list(zip(*found.first_BL[:, 1:].tolist(), *found.stop_BL[:, 1:].tolist())) == wanted


@pytest.mark.parametrize("cut", range(1, 9))
def test_cached_text_and_images_are_those_of_one_pass(model, noise, cut):
    """The text is cut anywhere: images before and after the cut, or both, even in a run."""
    batch = asked(model, noise, SIDE_BY_SIDE)
    whole = logits(model, batch)
    ids = batch["input_ids"]
    before = int((ids[:, :cut] == model.config.image_token_id).sum())
    with torch.no_grad():
        parts = [rows_of(model, batch, slice(0, before)), rows_of(model, batch, slice(before, 2))]
        first = model(input_ids=ids[:, :cut], use_cache=True, **parts[0])
        second = model(input_ids=ids[:, cut:], past_key_values=first.past_key_values, **parts[1])
    found = torch.cat([first.logits, second.logits], dim=1)
    assert (found - whole).abs().max() < 1e-5


def rows_of(model, batch, images):
    """Pixels of some images of a batch of one row."""
    sizes = batch["image_sizes"][:, images]
    numbers = [3 * v.height * v.width for w, h, level in batch["image_sizes"][0].tolist()
               for v in model.spec.views((w, h), level)]  # fmt: skip
    start, stop = sum(numbers[: images.start]), sum(numbers[: images.stop])
    if not sizes.numel():
        return {}
    return {"pixel_values": batch["pixel_values"][:, start:stop], "image_sizes": sizes}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generation_with_a_cache_is_generation_without(model, noise, options):
    batch = asked(model, noise, TWO, NONE, SIDE_BY_SIDE)
    given = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **options}
    assert torch.equal(model.generate(**batch, **given), model.generate(**batch, **given, use_cache=False))


def test_keys_and_values_are_computed_once(model, noise, monkeypatch):
    block = next(iter(model.connector.each().values()))
    calls = []
    remember = type(block).remember
    monkeypatch.setattr(type(block), "remember", lambda self, t: calls.append(1) or remember(self, t))
    model.generate(**asked(model, noise, TWO), max_new_tokens=5, min_new_tokens=5)
    assert len(calls) == len(model.connector.blocks)


def loss(model, noise, *rows):
    output = model(**asked(model, noise, *rows))
    return output.logits.float().logsumexp(-1).sum()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_recomputed_activations_give_the_same_gradients(model, noise):
    """Two passes before one backward: a block must be computed again from what its own pass saw."""
    model = copy.deepcopy(model)

    def grads():
        model.zero_grad()
        (loss(model, noise, TWO) + loss(model, noise, SIDE_BY_SIDE)).backward()
        return gradients(model)

    calls = []
    for block in model.connector.each().values():
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    model.train()
    plain = grads()
    passes = len(calls)
    recompute_activations(model.language_model, True)
    again = grads()
    assert len(calls) == 3 * passes
    assert plain.keys() == again.keys()
    assert all((plain[n] - again[n]).abs().max() <= 1e-5 * (1 + plain[n].abs().max()) for n in plain)


def test_adapters_go_into_the_language_model_alone(model, noise, tiny_recipe):
    model = copy.deepcopy(model)
    batch = asked(model, noise, TWO)
    before = logits(model, batch)
    part = {"lr": 1e-3, "lora": {"r": 2, "targets": ["q_proj", "v_proj"]}}
    apply_stage(model, tiny_recipe(stages=[{"train": {"llm": part}}]).stages[0])
    assert torch.equal(logits(model, batch), before)
    assert not any("lora" in name for name, _ in model.connector.named_parameters())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    adapted = logits(model, batch)
    assert (adapted - before).abs().max() > 1e-3
    finish_stage(model)
    assert (logits(model, batch) - adapted).abs().max() < 1e-4


def test_all_layers_are_of_one_class(model):
    """By their class FSDP wraps them one by one."""
    layers = decoder_layers(model.language_model)
    assert len({type(layer) for layer in layers}) == 1
    named = get_module_class_from_name(model, type(layers[0]).__name__)
    assert all(isinstance(layer, named) for layer in layers)


def test_a_connector_that_peft_trains_whole_is_the_one_that_sees(model, noise):
    batch = asked(model, noise, TWO)
    before = logits(model, batch)
    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["connector"])
    wrapped = get_peft_model(copy.deepcopy(model), settings)
    assert torch.equal(logits(wrapped, batch), before)
    wrapped(**batch).logits.sum().backward()
    trained = {name for name, p in wrapped.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("modules_to_save" in name and ".blocks." in name for name in trained)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.zero_()
    assert (logits(wrapped, batch) - before).abs().max() > 1e-3
    assert wrapped.base_model.model.count_tokens((16, 16)) == 1


def test_a_pickle_is_the_same_model(model, noise, tmp_path):
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    batch = asked(model, noise, TWO)
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_a_language_model_can_be_taken_over(model, noise):
    """One that has blocks already gets those of its new model."""
    batch = asked(model, noise, TWO)
    taken = copy.deepcopy(model)
    other = VLM(taken.config, list(taken.encoders), taken.language_model).eval()
    other.connector.load_state_dict(model.connector.state_dict())
    assert torch.equal(logits(other, batch), logits(model, batch))


def test_blocks_may_compute_in_another_type_than_the_text(model, noise):
    mixed = copy.deepcopy(model)
    mixed.language_model.bfloat16()
    batch = asked(model, noise, TWO)
    found = logits(mixed, batch)
    assert found.dtype == torch.bfloat16
    assert (found.float() - logits(model, batch)).abs().mean() < 0.1


def test_a_copy_has_blocks_of_its_own(model, noise):
    twin = copy.deepcopy(model)
    batch = asked(model, noise, TWO)
    before = logits(model, batch)
    with torch.no_grad():
        for parameter in twin.connector.parameters():
            parameter.zero_()
    assert torch.equal(logits(model, batch), before)
    assert (logits(twin, batch) - before).abs().max() > 1e-3


def test_it_is_saved_and_loaded(model, noise, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = VLM.from_pretrained(tmp_path)
    batch = asked(model, noise, TWO, NONE)
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_in_four_bits_the_blocks_stay_whole(fresh, roughen, noise, tmp_path):
    from vlmkit.quantize import count_quantized, load_quantized

    sizes = {"hidden_size": 64, "intermediate_size": 64}
    for name in NAMES:
        model = roughen(fresh(name, llm_options=sizes))
        model.save_pretrained(tmp_path / name)
        small = load_quantized(tmp_path / name, "nf4").eval()
        assert count_quantized(small)["connector"] == 0 and count_quantized(small)["llm"] > 0
        batch = asked(model, noise, TWO)
        other = asked(model, noise, ([(9, (16, 16)), (8, (30, 9))], TWO[1]))
        assert (logits(small, batch) - logits(small, other)).abs().max() > 1e-3
        assert small.generate(**batch, max_new_tokens=3).shape[1] > batch["input_ids"].shape[1]


def test_packed_conversations_have_the_losses_of_their_own_rows(model, make_sample, collate):
    pairs = [("what color is it?", "red"), ("say yes", "yes"), ("is there a circle in the image?", "no")]
    samples = [make_sample("three", 1, *pairs), make_sample("two", 2, *pairs[:2])]

    def losses(pack):
        batch = collate(model, samples, pack=pack)
        with torch.no_grad():
            features = model.encode_images(batch.pixel_values, batch.image_sizes)
            read = model.read(batch.input_ids_BL, features, batch.image_sizes)
            out = model.decode(read, batch.branches_BL, position_ids=batch.positions_BL, use_cache=False)
        return len(batch.sample_ids), token_loss(out.logits, batch.labels_BL, batch.weights_BL)[0]

    (rows, packed), (more, unpacked) = losses("prefix"), losses("none")
    assert (rows, more) == (2, 5)
    assert abs(float(packed - unpacked)) < 1e-4


def test_rows_without_images_touch_every_parameter(model, make_sample, collate):
    batch = collate(model, [make_sample("text", 0, ("say yes", "yes"))])
    train = {part: {"lr": 1e-3} for part in ("encoder", "connector", "llm")}
    module = StageModule(model, Stage(name="s", data={"type": "easy_vqa"}, train=train, steps=1))
    model.zero_grad()
    total, _ = module(batch)["next_token"]
    total.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    model.zero_grad()
    module(collate(model, [make_sample("one", 1, ("say yes", "yes"))]))["next_token"][0].backward()
    assert without <= {name for name, p in model.named_parameters() if p.grad is None}


@pytest.mark.parametrize("kept", range(1, 7))
def test_a_cache_that_was_cut_forgets_what_came_after(model, noise, kept):
    """The text goes on with other images than those that were cut off, or with none."""
    batch = asked(model, noise, SIDE_BY_SIDE)
    ids = batch["input_ids"]
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
        cache.crop(kept - cache.get_seq_length())
        seen = int((ids[:, :kept] == model.config.image_token_id).sum())
        rest = model(input_ids=ids[:, kept:], past_key_values=cache, **rows_of(model, batch, slice(seen, 2)))
        assert (rest.logits - logits(model, batch)[:, kept:]).abs().max() < 1e-5
        cache.crop(kept - cache.get_seq_length())
        text = ids[:, -2:]
        found = model(input_ids=text, past_key_values=cache).logits
        whole = {"input_ids": torch.cat([ids[:, :kept], text], 1), **rows_of(model, batch, slice(0, seen))}
        assert (found - logits(model, whole)[:, -2:]).abs().max() < 1e-5


def test_a_cache_that_knows_no_images_is_refused(model, noise):
    batch = asked(model, noise, TWO)
    with torch.no_grad():
        cache = model.language_model(input_ids=batch["input_ids"], use_cache=True).past_key_values
    with pytest.raises(VlmkitError, match="does not say which images"):
        model(input_ids=batch["input_ids"][:, -1:], past_key_values=cache)


def test_rows_that_were_selected_in_the_cache_are_refused(model, noise):
    batch = asked(model, noise, TWO, NONE)
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
    cache.batch_select_indices(torch.tensor([0]))
    with pytest.raises(VlmkitError, match="rows of images"):
        model(input_ids=batch["input_ids"][:1, -1:], past_key_values=cache)


def test_markers_and_images_are_compared(model, noise):
    batch = asked(model, noise, TWO)
    with pytest.raises(VlmkitError, match="row 0 has 2 image placeholders"):
        model(input_ids=batch["input_ids"])


@pytest.mark.parametrize("fusion", ["groups", "interleave"])
def test_several_encoders_are_joined_by_channels_only(fresh, tiny_recipe, fusion):
    raw = tiny_recipe().model_dump()
    raw["model"] |= {"encoders": raw["model"]["encoders"] * 2, "fusion": fusion,
                     "connector": {"type": NAMES[0]}}  # fmt: skip
    with pytest.raises(UsageError, match="one set of blocks"):
        assemble(Recipe.model_validate(raw))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mark", ["row_separator", "image_start", "image_end"])
def test_marks_in_the_sequence_are_refused(tiny_recipe, name, mark):
    raw = tiny_recipe().model_dump()
    raw["model"] |= {"connector": {"type": name, **SIZES[name]}, "splice": {mark: True}}
    with pytest.raises(UsageError, match=f"{mark}.*not in the sequence"):
        assemble(Recipe.model_validate(raw))


@pytest.mark.parametrize("name", ["gated_cross_attention", "mllama"])
def test_latents_form_no_grid_for_a_mosaic(tiny_recipe, name):
    """Said when the model is built, not with the first image; patches form one."""
    raw = tiny_recipe().model_dump()
    raw["model"]["encoders"][0]["layout"] = {"type": "anyres", "newline": False}
    wrong = r"layout puts tiles together .* form none; .*\(mllama|with resampler: none, or the layout tiles"
    with pytest.raises(UsageError, match=wrong):
        raw["model"]["connector"] = {"type": name, "every": 1, "resampler": "perceiver"}
        assemble(Recipe.model_validate(raw))
    raw["model"]["connector"]["resampler"] = "none"
    assert assemble(Recipe.model_validate(raw)).count_given((32, 16)) > 16


def test_a_question_about_attention_is_refused(model, noise):
    from vlmkit.look.answer import looked_at
    from vlmkit.look.attention import NotPossible

    with pytest.raises(NotPossible, match="not in the sequence"):
        looked_at(model, [noise(1)], "say yes")


def test_ask_takes_it(model, noise):
    assert isinstance(model.ask([noise(1), noise(2)], "say yes", max_new_tokens=2), str)
