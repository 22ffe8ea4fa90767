"""Rows of several samples: losses and gradients of a row each, and nothing goes from sample to sample."""

import copy
from dataclasses import replace

import pytest
import torch

from vlmkit.data import collate as collate_module
from vlmkit.data.collate import Collator, TextRules
from vlmkit.data.long_rows import first_fit
from vlmkit.data.masks import branch_mask
from vlmkit.data.prompts import PROMPTS
from vlmkit.llm.attend import SEGMENTED, attend_in_segments
from vlmkit.sight import Windows
from vlmkit.train.module import StageModule, batch_weight
from vlmkit.train.stage import apply_stage, finish_stage
from vlmkit.train.steps import StageData, Steps
from vlmkit.vlm import VLM

ROOM = 120
VIT = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
# Words a row: some conversations are longer than the window.
WINDOW = {"sliding_window": 6}
MODELS = {
    "llama": {},
    "qwen2": {},
    "gpt2": {},
    "gpt_neox": {},
    "gemma2 with a window": {"llm": "gemma2", "llm_options": WINDOW},
    "two encoders": {"encoder": VIT, "second": {**VIT, "patch_size": 8}},
    "gated cross-attention": {"connector": {"type": "gated_cross_attention", "pool": None, "heads": 2}},
    "mllama": {"connector": {"type": "mllama", "pool": None, "heads": 2, "every": 1}},
}


@pytest.fixture
def mixed(make_sample, samples):
    """One image with several questions, two and three images, one, and none at the start, inside and last."""
    more = [
        make_sample("last", 0, ("say yes", "yes")),
        make_sample("three", 3, ("which of them is a blue square?", "the second one"), ("say yes", "yes")),
        make_sample("bare", 0, ("what is one and one?", "two")),
    ]
    return [more[0], *samples, *more[1:]]


@pytest.fixture
def build(tiny_recipe, roughen):
    """A function: the name of a model to it, with rough weights and open gates."""
    from vlmkit.assemble import assemble
    from vlmkit.recipe import Recipe

    def make(name):
        options = copy.deepcopy(MODELS[name])
        second = options.pop("second", None)
        connector = options.get("connector") or {}
        if "type" in connector:
            options["connector"] = None
        recipe = tiny_recipe(**{"llm": name if not options else "llama", **options}).model_dump(mode="json")
        if "type" in connector:
            recipe["model"]["connector"] = {k: v for k, v in connector.items() if v is not None}
        if second:
            recipe["model"] |= {"encoders": [*recipe["model"]["encoders"], second], "fusion": "interleave"}
        return roughen(assemble(Recipe.model_validate(recipe))).eval()

    return make


def mean_loss(module, batch):
    """The objectives' weighted mean, with gradients."""
    losses = module(batch)
    module.zero_grad(set_to_none=True)
    total = sum(module.weights[n] * loss / batch_weight(n, batch) for n, (loss, _) in losses.items())
    total.backward()
    return float(total.detach()), {
        n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None
    }


def gap(one, other):
    """Largest difference of two gradients, as a share of the largest one where that is above 1."""
    assert one.keys() == other.keys()
    scale = max(float(g.abs().max()) for g in one.values())
    return max(float((one[n] - other[n]).abs().max()) for n in one) / max(1.0, scale)


@pytest.mark.parametrize("pack", ["none", "prefix"])
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_row_is_worth_its_samples(build, make_stage, mixed, collate, name, pack):
    model = build(name)
    plain = collate(model, mixed, eos_weight=0.5)
    packed = collate(model, mixed, eos_weight=0.5, pack=pack, pack_length=ROOM)
    rows = len(packed.input_ids_BL)
    assert rows <= 4 < len(plain.input_ids_BL) == 13 and int(packed.segments_BL.max()) >= 2
    assert len(packed.sample_ids) == (13 if pack == "none" else 7)
    module = StageModule(model, make_stage())
    loss, wanted = mean_loss(module, plain)
    for on in (False, True):
        attend_in_segments(model.language_model, on)
        packed_loss, found = mean_loss(module, packed)
        assert packed_loss == pytest.approx(loss, abs=1e-5)
        assert gap(wanted, found) <= 1e-6


def logits(model, batch):
    with torch.no_grad():
        features = model.encode_images(batch.pixel_values, batch.image_sizes)
        segments = batch.segments_BL
        read = model.read(batch.input_ids_BL, features, batch.image_sizes, segments=segments)
        placed = {"position_ids": batch.positions_BL, "use_cache": False}
        return model.decode(read, batch.branches_BL, segments, **placed).logits


def own_tokens(packed, name):
    """(B, L): True at the tokens of a sample, in whichever segments they are."""
    names, found_BL = iter(packed.sample_ids), torch.zeros_like(packed.segments_BL, dtype=torch.bool)
    for row, own_L in enumerate(packed.segments_BL):
        for segment in range(int(own_L.max()) + 1):
            found_BL[row] |= (own_L == segment) & (next(names) == name)
    return found_BL


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("pack", ["none", "prefix"])
@pytest.mark.parametrize("name", ["llama", "gemma2 with a window", "gated cross-attention", "mllama"])
def test_what_a_sample_says_and_shows_changes_no_other_one(
    build, make_sample, mixed, collate, name, pack, on
):
    """The words of each sample in turn, then its images: the others' logits are the same, bit for bit."""
    model = build(name)
    attend_in_segments(model.language_model, on)
    rows = {"pack": pack, "pack_length": 500}
    packed = collate(model, mixed, **rows)
    assert len(packed.input_ids_BL) == 1
    before, image = logits(model, packed), model.config.image_token_id
    for place, sample in enumerate(mixed):
        own_BL = own_tokens(packed, sample.id)
        ids_BL = packed.input_ids_BL.clone()
        ids_BL[own_BL & (ids_BL != image)] = 5 + place
        changes = [replace(packed, input_ids_BL=ids_BL)]
        if sample.images:
            shown = replace(sample, images=make_sample("other", len(sample.images)).images)
            changes.append(collate(model, [*mixed[:place], shown, *mixed[place + 1 :]], **rows))
        for changed in changes:
            after = logits(model, changed)
            assert torch.equal(before[~own_BL], after[~own_BL])
            assert (before[own_BL] - after[own_BL]).abs().max() > 1e-3


MISTAKES = {
    "no segments in the mask": ("llama", "vlmkit.vlm.branch_mask", lambda b, s: branch_mask(b)),
    "no segments in what blocks see": (
        "gated cross-attention",
        "vlmkit.sight.Windows.then",
        lambda self, marker_BL, run, segments, then=Windows.then: then(self, marker_BL, run),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_deliberate_leak_is_seen(build, make_stage, mixed, collate, monkeypatch, mistake):
    name, where, wrong = MISTAKES[mistake]
    module = StageModule(build(name), make_stage())
    right = mean_loss(module, collate(module.vlm, mixed, pack_length=ROOM))
    monkeypatch.setattr(where, wrong)
    leaking = mean_loss(module, collate(module.vlm, mixed, pack_length=ROOM))
    assert abs(right[0] - leaking[0]) > 1e-3 and gap(right[1], leaking[1]) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_positions_that_go_on_are_seen(build, make_stage, mixed, collate, name):
    """Of relative positions (llama) nothing is, where the mask is right: they are counted from anywhere."""
    module = StageModule(build(name), make_stage())
    packed = collate(module.vlm, mixed, pack_length=ROOM)
    going_on_BL = torch.arange(packed.positions_BL.shape[1]).expand_as(packed.positions_BL).contiguous()
    right = mean_loss(module, packed)
    wrong = mean_loss(module, replace(packed, positions_BL=going_on_BL))
    assert (abs(right[0] - wrong[0]) > 1e-3) is (name == "gpt2")
    assert (gap(right[1], wrong[1]) > 1e-3) is (name == "gpt2")


def test_a_label_that_another_sample_would_predict_is_seen(build, make_stage, mixed, collate):
    module = StageModule(build("llama"), make_stage())
    packed = collate(module.vlm, mixed, pack_length=ROOM)
    starts_BL = (packed.positions_BL == 0) & (packed.segments_BL > 0)
    assert starts_BL.any() and (packed.labels_BL[starts_BL] == -100).all()


@pytest.mark.parametrize("on", [False, True])
def test_micro_batches_and_processes_change_nothing(build, make_stage, mixed, on):
    """The losses' sums and gradients of a step, in any split of its samples."""
    model = build("llama")
    attend_in_segments(model.language_model, on)
    p = model.processor
    rules = TextRules(
        p.tokenizer, PROMPTS["chat_template"], p.count_fitted, p.image_token_id, pack_length=ROOM
    )
    data = StageData(mixed, Collator(p.specs, rules), seed=0)
    found = []
    for micro, world in ((7, 1), (4, 1), (3, 1), (1, 1), (4, 2), (2, 2)):
        stage = make_stage(batch_size=7, micro_batch_size=micro, pack_length=ROOM)
        module = StageModule(model, stage)
        batches = [b for rank in range(world) for b in Steps(stage, data, rank, world)[0]]
        weight = sum(batch_weight("next_token", b) for b in batches)
        module.zero_grad(set_to_none=True)
        total = sum(module(b)["next_token"][0] / weight for b in batches)
        total.backward()
        tokens = sum(int((b.branches_BL >= 0).sum()) for b in batches)
        images = sum(int((b.image_sizes[..., 0] > 0).sum()) for b in batches if b.image_sizes is not None)
        grads = {n: q.grad.clone() for n, q in module.named_parameters() if q.grad is not None}
        found.append((float(total.detach()), weight, tokens, images, grads))
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0], abs=1e-6)
        assert other[1:4] == pytest.approx(found[0][1:4]) and gap(found[0][4], other[4]) <= 1e-6


def test_a_run_in_longer_rows_is_the_run(build, make_stage, mixed, run_steps, monkeypatch):
    """Through the loop, with LoRA: losses, tokens and images of each step, and attention as it was after."""
    lora = {"llm": {"lr": 1e-3, "lora": {"r": 2}}, "connector": {"lr": 1e-3}}
    found, groups = {}, []
    monkeypatch.setattr(collate_module, "first_fit", lambda *a: groups.append(first_fit(*a)) or groups[-1])
    for room in (None, ROOM):
        model = build("llama")
        stage = make_stage(
            batch_size=4,
            micro_batch_size=2,
            steps=3,
            pack_length=room,
            train=lora,
            gradient_checkpointing=True,
        )
        torch.manual_seed(0)
        found[room] = run_steps(model, stage, mixed)
        kind = model.language_model.config._attn_implementation
        assert kind == ("sdpa" if room is None else SEGMENTED)
        finish_stage(model)
        assert model.language_model.config._attn_implementation == "sdpa"
    assert len(groups) == 6 and any(len(group) > 1 for own in groups for group in own)
    for plain, packed in zip(found[None], found[ROOM], strict=True):
        assert packed["loss"] == pytest.approx(plain["loss"], abs=1e-5)
        assert (packed["tokens"], packed["images"]) == (plain["tokens"], plain["images"])


def test_eager_attention_stays_eager(build, make_stage, mixed, collate):
    model = build("llama")
    module, batch = StageModule(model, make_stage()), collate(model, mixed, pack_length=ROOM)
    loss = mean_loss(module, batch)
    model.language_model.set_attn_implementation("eager")
    apply_stage(model, make_stage(pack_length=ROOM))
    assert model.language_model.config._attn_implementation == "eager"
    other = mean_loss(module, batch)
    assert other[0] == pytest.approx(loss[0], abs=1e-5) and gap(loss[1], other[1]) <= 1e-6


def test_captions_keep_their_images(two_headed, make_stage, mixed, collate):
    """Both objectives: the images of a row belong to its samples in order."""
    captioned = [replace(s, captions=(f"a {s.id}",) if i % 3 else ()) for i, s in enumerate(mixed)]
    module = StageModule(two_headed, make_stage(objective={"next_token": 1.0, "contrastive": 0.5}))
    plain = mean_loss(module, collate(two_headed, captioned))
    packed = collate(two_headed, captioned, pack_length=ROOM)
    found = mean_loss(module, packed)
    assert found[0] == pytest.approx(plain[0], abs=1e-5) and gap(plain[1], found[1]) <= 1e-6
    wrong = mean_loss(module, replace(packed, image_counts=packed.image_counts[::-1]))
    assert abs(wrong[0] - plain[0]) > 1e-3


def test_the_saved_rows_work_through_the_models_own_forward(build, mixed, collate):
    model = build("llama")
    assert isinstance(model, VLM)
    plain, packed = collate(model, mixed), collate(model, mixed, pack_length=ROOM)
    losses = [
        float(
            model(
                input_ids=b.input_ids_BL, pixel_values=b.pixel_values, image_sizes=b.image_sizes,
                position_ids=b.positions_BL, branches=b.branches_BL, segments=b.segments_BL,
                labels=b.labels_BL, loss_weights=b.weights_BL, use_cache=False,
            ).loss
        )
        for b in (plain, packed)
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
