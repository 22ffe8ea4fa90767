"""What a stage trains is what its objectives reach, with images and without: nobody waits for the rest."""

import dataclasses

import pytest
import torch

from vlmkit.assemble import assemble
from vlmkit.data.batch import Batch
from vlmkit.objectives import IGNORE
from vlmkit.recipe import Recipe
from vlmkit.train.module import StageModule
from vlmkit.train.reach import freeze_unreached, leaves
from vlmkit.train.stage import apply_stage
from vlmkit.train.steps import StageData, Steps, unsupervised
from vlmkit_connectors import CONNECTORS

VIT = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 3, "heads": 2}
HEADED = {**VIT, "layer": -2, "embed_dim": 8, "text_tower": "words"}


def trained(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


def reached(module, batch):
    """Names of the parameters that the losses of a batch depend on."""
    ids = {id(p) for p in leaves(loss for loss, _ in module(batch).values())}
    return {name for name, p in module.named_parameters() if id(p) in ids}


@pytest.fixture
def make_module(tiny_recipe, make_stage):
    """A function: an encoder, a connector and options of a stage to the stage's module and its table."""

    def make(encoder=HEADED, connector="mlp", splice=None, **options):
        raw = tiny_recipe(encoder=encoder, splice=splice).model_dump()
        raw["model"]["connector"] = {"type": connector, **CONNECTORS[connector].tiny_options()}
        model, stage = assemble(Recipe.model_validate(raw)), make_stage(**options)
        rows = apply_stage(model, stage)
        module = StageModule(model, stage)
        return module, freeze_unreached(module, rows)

    return make


@pytest.mark.parametrize("connector", CONNECTORS)
def test_every_batch_reaches_all_that_trains(make_module, samples, collate, connector):
    """Of every connector, with images, without any, and where no token is supervised."""
    module, _ = make_module(connector=connector)
    questions = module.vlm.connector.reads_text
    for batch in ([samples[0]], [samples[2]], samples):
        made = collate(module.vlm, batch, questions=questions)
        assert reached(module, made) == trained(module)
        assert reached(module, unsupervised(made)) == trained(module)


def test_tokens_that_only_large_images_have_are_reached_by_small_ones(make_module, samples, collate):
    """A layout's newline and the marks around an image."""
    layout = {"type": "anyres", "pinpoints": [[32, 16], [16, 32]]}
    for encoder, splice in (
        ({**VIT, "layout": layout}, {"image_start": True, "image_end": True}),
        (VIT, {"row_separator": True}),
    ):
        module, _ = make_module(encoder, splice=splice)
        assert any(".splice." in name for name in trained(module))
        for batch in ([samples[0]], [samples[2]]):
            assert reached(module, collate(module.vlm, batch)) == trained(module)


LEFT = {"next_token": {"head", "blocks.2"}, "contrastive": {"connector", "language_model"}}


@pytest.mark.parametrize("objective, left", LEFT.items())
def test_what_an_objective_does_not_reach_stays(make_module, objective, left):
    """The retrieval head and what lies behind the layer that is read; the table counts the rest."""
    module, rows = make_module(objective=objective)
    frozen = {name for name, p in module.vlm.named_parameters() if not p.requires_grad}
    assert frozen
    for name in left:
        assert any(name in parameter for parameter in frozen), name
    if objective == "next_token":
        assert all(name.startswith("encoders.") for name in frozen)
    counted = sum(p.numel() for p in module.vlm.parameters() if p.requires_grad)
    assert sum(row.trainable for row in rows) == counted


def test_looking_for_it_draws_nothing_and_leaves_the_modes(make_module):
    module, rows = make_module()
    modes = [part.training for part in module.train().modules()]
    state = torch.get_rng_state()
    freeze_unreached(module, rows)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [part.training for part in module.modules()]


def test_processes_make_as_many_passes_where_samples_do_not_divide(make_stage, samples, collating):
    """The last of three processes has a sample less, and passes one on that no loss asks about."""
    stage = make_stage(batch_size=5, micro_batch_size=1)

    def collate(items):
        ids = tuple(sample.id for sample, _ in items)
        ones = torch.ones(len(ids), 2, dtype=torch.long)
        return Batch(ids, ((),) * len(ids), labels_BL=ones)

    data = StageData(samples, collating(collate), seed=0)
    shares = [Steps(stage, data, rank, 3)[0] for rank in range(3)]
    assert [[batch.sample_ids != () for batch in share] for share in shares] == [[True] * 2] * 2 + [
        [True, False]
    ]
    assert (shares[2][1].labels_BL == IGNORE).all() and dataclasses.is_dataclass(shares[2][1])
