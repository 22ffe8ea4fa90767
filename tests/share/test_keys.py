"""Which settings change the key of a stage, and which do not."""

from datetime import date

import pytest
import torch
from accelerate import Accelerator

from vlmkit.assemble import assemble
from vlmkit.errors import VlmkitError
from vlmkit.share import keys
from vlmkit.share.stages import StageWork, stage_key
from vlmkit.train.metrics import MetricsFile, Silent
from vlmkit.train.module import StageModule
from vlmkit.train.run import _stage_data
from vlmkit.train.stage import apply_stage
from vlmkit.train.stage_run import StageRun


class Texts:
    """Stands for a text tower where only its name matters."""

    embed_dim = 384
    fingerprint = "texts"


@pytest.fixture
def key_of(make_recipe, tmp_path):
    """A function: a recipe's options and a change of the model to the key of its first stage."""

    def key(change=None, **options):
        recipe = make_recipe("key", **options)
        model = assemble(recipe)
        model.vision_encoder._text_tower = Texts()
        if change is not None:
            change(model)
        stage = recipe.stages[0]
        data = _stage_data(recipe, stage, model)
        apply_stage(model, stage)
        run = StageRun(tmp_path, Accelerator(), MetricsFile(tmp_path / "m.jsonl"), Silent())
        return stage_key(StageWork(recipe, 0, StageModule(model, stage), data, run))

    return key


def nudge(name):
    """A function that changes one number of one tensor of a model."""

    def change(model):
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] += 1e-6

    return change


def test_what_matters_to_a_contrastive_stage_changes_its_key(key_of, stages, encoder, captioned):
    first, second, _ = stages
    base = key_of()
    same = {
        "connector": {"connector": {"depth": 1}},
        "language model": {"llm_options": {"hidden_size": 16}},
        "prompt": {"stages": [first, {**second, "prompt": "vicuna_v1"}]},
        "checkpoints": {"stages": [{**first, "checkpoint_every": 1, "workers": 1}, second]},
        "weights of the language model": {"change": nudge("language_model.model.norm.weight")},
    }
    assert {what: key_of(**options) == base for what, options in same.items()} == dict.fromkeys(same, True)
    other = {
        "seed": {"seed": 1},
        "lr": {"stages": [{**first, "train": {"encoder": {"lr": 2e-2}}}, second]},
        "data": {"stages": [{**first, "data": {**captioned, "limit": 11}}, second]},
        "layout": {"encoder": {**encoder, "layout": "pad"}},
        "encoder weights": {"change": nudge("encoders.0.positions")},
        "text tower": {"change": lambda m: setattr(m.vision_encoder._text_tower, "fingerprint", "b")},
        "steps": {"stages": [{**first, "steps": 4}, second]},
    }
    found = {what: key_of(**options) for what, options in other.items()}
    assert len({base, *found.values()}) == 1 + len(other), found


def test_everything_matters_to_a_next_token_stage(key_of, stages):
    both = [{**stages[1], "name": "first"}, stages[1]]
    base = key_of(stages=both)
    assert key_of(stages=both) == base
    other = {
        "connector": {"connector": {"depth": 1}},
        "weights of the connector": {"change": lambda m: m.connector.layers[0].bias.data.add_(1e-6)},
        "weights of the language model": {"change": nudge("language_model.model.norm.weight")},
        "language model": {"llm_options": {"rms_norm_eps": 1e-5}},
        "prompt": {"stages": [{**both[0], "prompt": "vicuna_v1"}, both[1]]},
        "rows": {"stages": [{**both[0], "pack_length": 64}, both[1]]},
        "chat template": {"change": lambda m: setattr(m.processor.tokenizer, "chat_template", "x")},
    }
    found = {
        what: key_of(stages=both, **o) if "stages" not in o else key_of(**o) for what, o in other.items()
    }
    assert len({base, *found.values()}) == 1 + len(other), found


def test_a_budget_of_image_tokens_ties_the_pixels_to_the_connector(make_recipe, key_of):
    """The connector counts tokens, and an image that takes too many is made smaller."""
    budget = {"image_tokens": {"per_image": 16}}
    found = {key_of(model_options=budget, connector={"depth": depth}) for depth in (1, 2)}
    assert len(found) == 2


def test_a_template_that_states_the_date_ties_a_next_token_stage_to_its_day(key_of, stages, monkeypatch):
    def dated(model):
        model.processor.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}"

    both, found = [{**stages[1], "name": "first"}, stages[1]], []
    for day in (date(2025, 3, 1), date(2025, 3, 2)):
        monkeypatch.setattr(keys, "today", lambda day=day: day)
        found.append((key_of(stages=both), key_of(dated, stages=both)))
    (plain, first), (same, second) = found
    assert plain == same and first != second


def test_weights_that_were_changed_behind_their_versions_change_the_key(tiny_vlm, encoder):
    """Through `.data` no counter moves, so a fingerprint that is kept would be that of the old weights."""
    vit = tiny_vlm(encoder={k: v for k, v in encoder.items() if k != "text_tower"}).vision_encoder
    stated = vit.fingerprint
    before = keys.encoder_facts(vit)
    vit.positions.data.add_(1.0)
    assert vit.fingerprint == stated, "else nothing is proved"
    assert keys.encoder_facts(vit) != before


@pytest.mark.parametrize("package", ["timm", "torchvision", "bitsandbytes"])
def test_packages_that_compute_are_in_the_key(monkeypatch, package):
    """Encoders of timm, resizing, layers in 4 bits."""
    before = keys.machine(torch.device("cpu"), "no")
    version = keys._version
    monkeypatch.setattr(keys, "_version", lambda name: "0" if name == package else version(name))
    assert keys.machine(torch.device("cpu"), "no") != before


def test_threads_change_the_key(key_of):
    before = key_of()
    torch.set_num_threads(torch.get_num_threads() + 1)
    assert key_of() != before


def test_the_shares_of_a_mixture_are_in_the_key(key_of, stages, captioned):
    """The samples are the same ones in the same order; what an epoch shows of them is not."""

    def of(weights, **options):
        sources = [{"name": f"s{i}", "data": captioned, "weight": w} for i, w in enumerate(weights)]
        mixture = {"type": "mixture", "sources": sources, **options}
        return key_of(stages=[{**stages[0], "data": mixture}, stages[1]])

    found = {of((1, 1)), of((1, 3)), of((3, 1)), of((1, 1), epoch=12), of((1, 3), epoch=12)}
    assert len(found) == 5
    assert of((1, 3)) in found and of((2, 6)) in found


class Rows(list):
    """Samples of which a None cannot be read."""

    def __getitem__(self, number):
        sample = super().__getitem__(number)
        if sample is None:
            raise VlmkitError("row 1 has no text")
        return sample


def test_a_row_that_cannot_be_read_has_its_place_in_the_key(make_sample):
    a, b = (make_sample(name, 1, ("what is it?", "red")) for name in "ab")
    kinds = ([a, b], [a, None, b], [None, a, b], [a, b, None], [a, make_sample("n", 0, ("no", "no")), b])
    assert len({keys.data_hash(Rows(rows)) for rows in kinds}) == len(kinds)
