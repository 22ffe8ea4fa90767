"""The Q-Former: against BLIP-2's and InstructBLIP's in transformers, and how it reads questions."""

import pytest
import torch
from torch import nn
from transformers import Blip2QFormerConfig, InstructBlipQFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

from vlmkit_connectors import QFormerConnector, VisionFeatures

GRIDS = [(4, 4), (3, 5), (1, 7), (2, 2), (9, 8)]
OWNERS = [0, 0, 1, 2, 2]
V, W, D, Q, DEPTH = 6, 12, 16, 5, 5
SIZES = {
    "hidden_size": W, "num_hidden_layers": DEPTH, "num_attention_heads": 3, "intermediate_size": 24,
    "encoder_hidden_size": V, "cross_attention_frequency": 2,
}  # fmt: skip
OURS = {"num_queries": Q, "depth": DEPTH, "heads": 3, "width": W, "ff_mult": 2}


@pytest.fixture
def seen(features):
    """Five views of three images, all of other grids."""
    made = features(GRIDS, V)
    return VisionFeatures(made.patches_TV, made.grids_I2, torch.tensor(OWNERS))


def attention_of(theirs, name):
    kv = {
        part: [theirs[f"{name}.attention.{k}.{part}"] for k in ("key", "value")]
        for part in ("weight", "bias")
    }
    state = {f"kv.{part}": torch.cat(both) for part, both in kv.items()}
    for part in ("weight", "bias"):
        state[f"q.{part}"] = theirs[f"{name}.attention.query.{part}"]
        state[f"out.{part}"] = theirs[f"{name}.output.dense.{part}"]
        state[f"norm.{part}"] = theirs[f"{name}.output.LayerNorm.{part}"]
    return state


def feed_forward_of(theirs, name, suffix):
    return {
        f"{new}.{part}": theirs[f"{name}.{old}.{part}"]
        for part in ("weight", "bias")
        for new, old in (
            ("layers.0", f"intermediate{suffix}.dense"),
            ("layers.2", f"output{suffix}.dense"),
            ("norm", f"output{suffix}.LayerNorm"),
        )
    }


def layers_of(theirs, question):
    """Weights of the layers under our names; the last one's text part, which goes nowhere, is left out."""
    state = {}
    for i in range(DEPTH):
        name = f"encoder.layer.{i}"
        parts = {"attention": attention_of(theirs, f"{name}.attention")}
        parts["ff_queries"] = feed_forward_of(theirs, name, "_query")
        if i % 2 == 0:
            parts["cross"] = attention_of(theirs, f"{name}.crossattention")
        if question and i < DEPTH - 1:
            parts["ff_text"] = feed_forward_of(theirs, name, "")
        state |= {f"layers.{i}.{part}.{k}": w for part, own in parts.items() for k, w in own.items()}
    return state


def padded(rows):
    """Rows padded at the end with noise, and the mask."""
    longest = max(map(len, rows))
    noise = torch.Generator().manual_seed(9)
    together = torch.randn(len(rows), longest, rows[0].shape[1], generator=noise) * 3
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        together[i, : len(row)], mask[i, : len(row)] = row, 1
    return together, mask


@torch.no_grad()
def test_it_equals_blip2(seen, roughen):
    model = roughen(Blip2QFormerModel(Blip2QFormerConfig(**SIZES))).eval()
    projection = roughen(nn.Linear(W, D), seed=1)
    queries = torch.randn(Q, W, generator=torch.Generator().manual_seed(3))
    patches, mask = padded(seen.views())
    theirs = projection(
        model(
            query_embeds=queries.expand(len(GRIDS), -1, -1),
            encoder_hidden_states=patches,
            encoder_attention_mask=mask,
        ).last_hidden_state
    )
    connector = QFormerConnector([V], D, **OURS)
    state = model.state_dict()
    norm = {f"norm.{part}": state[f"layernorm.{part}"] for part in ("weight", "bias")}
    project = {f"project.{part}": w for part, w in projection.state_dict().items()}
    connector.load_state_dict({"queries": queries, **norm, **project, **layers_of(state, question=False)})
    given = connector([seen])
    assert given.counts == (Q,) * len(GRIDS)
    assert theirs.std(dim=0).mean() > 0.05
    assert (given.tokens_ND.view_as(theirs) - theirs).abs().max() < 1e-5
    connector.layers[2].cross, connector.layers[0].cross = (
        connector.layers[0].cross,
        connector.layers[2].cross,
    )
    assert (connector([seen]).tokens_ND.view_as(theirs) - theirs).abs().max() > 1e-3


@pytest.fixture(scope="module")
def instruct(roughen):
    sizes = {**SIZES, "vocab_size": 20, "max_position_embeddings": 9}
    return roughen(InstructBlipQFormerModel(InstructBlipQFormerConfig(**sizes))).eval()


@pytest.fixture
def reader(instruct):
    """Our connector with InstructBLIP's weights; words go in and queries come out as they are."""
    connector = QFormerConnector([V], W, **OURS, question=True, max_question=9)
    theirs = instruct.state_dict()
    eye, zero = torch.eye(W), torch.zeros(W)
    state = {"queries": torch.randn(Q, W, generator=torch.Generator().manual_seed(3))}
    state |= {f"{part}.weight": eye for part in ("words", "project")}
    state |= {f"{part}.bias": zero for part in ("words", "project")}
    state |= {f"norm.{part}": theirs[f"embeddings.layernorm.{part}"] for part in ("weight", "bias")}
    state["places"] = theirs["embeddings.position_embeddings.weight"]
    connector.load_state_dict(state | layers_of(theirs, question=True))
    return connector


QUESTIONS = [[3, 7, 1, 4], [5], [9, 2, 6, 5, 3, 8, 11, 12, 1]]


def embedded(instruct, questions=QUESTIONS):
    return [instruct.embeddings.word_embeddings(torch.tensor(own, dtype=torch.long)) for own in questions]


def instructed(instruct, reader, seen):
    """Queries of each view in transformers, its image's question padded."""
    longest = max(map(len, QUESTIONS))
    ids = torch.tensor([QUESTIONS[i] + [13] * (longest - len(QUESTIONS[i])) for i in OWNERS])
    there = torch.tensor(
        [[1] * (Q + len(QUESTIONS[i])) + [0] * (longest - len(QUESTIONS[i])) for i in OWNERS]
    )
    patches, mask = padded(seen.views())
    return instruct(
        input_ids=ids,
        attention_mask=there,
        query_embeds=reader.queries.expand(len(OWNERS), -1, -1),
        encoder_hidden_states=patches,
        encoder_attention_mask=mask,
    ).last_hidden_state[:, :Q]


@torch.no_grad()
def test_it_equals_instructblip_with_questions_padded_there(instruct, reader, seen):
    theirs = instructed(instruct, reader, seen)
    given = reader([seen], embedded(instruct)).tokens_ND.view_as(theirs)
    assert (given - theirs).abs().max() < 1e-5
    assert (given - reader([seen], embedded(instruct)[::-1]).tokens_ND.view_as(theirs)).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("mistake", ["places", "text", "words"])
def test_mistakes_are_seen(mistake, instruct, reader, seen):
    theirs = instructed(instruct, reader, seen)
    if mistake == "places":
        reader.places.copy_(reader.places.roll(1, 0))
    elif mistake == "text":
        reader.layers[1].ff_text = reader.layers[1].ff_queries
    else:
        reader.words.weight.mul_(1.1)
    given = reader([seen], embedded(instruct)).tokens_ND.view_as(theirs)
    assert (given - theirs).abs().max() > 1e-3


@torch.no_grad()
def test_questions_of_other_lengths_go_together_as_alone(instruct, reader, seen):
    questions = embedded(instruct, [[3, 7, 1, 4], [], [9, 2, 6, 5, 3, 8, 11, 12, 1]])
    together = reader([seen], questions).tokens_ND.view(len(OWNERS), Q, W)
    for view, (grid, image) in enumerate(zip(GRIDS, OWNERS)):
        own = VisionFeatures(seen.views()[view], torch.tensor([grid]), torch.tensor([0]))
        alone = reader([own], [questions[image]]).tokens_ND
        assert (alone - together[view]).abs().max() < 2e-6


@torch.no_grad()
def test_an_empty_question_is_none(reader, seen):
    """Nothing to look at: the queries come out as from a Q-Former without question."""
    silent = QFormerConnector([V], W, **OURS)
    own = {name: w for name, w in reader.state_dict().items() if name in silent.state_dict()}
    silent.load_state_dict(own)
    empty = [torch.empty(0, W)] * 3
    assert (reader([seen], empty).tokens_ND - silent([seen]).tokens_ND).abs().max() < 1e-6


@torch.no_grad()
def test_each_view_reads_the_question_of_its_image(instruct, reader, seen):
    before = reader([seen], embedded(instruct)).tokens_ND.view(len(OWNERS), -1)
    other = embedded(instruct, [QUESTIONS[0], [8], QUESTIONS[2]])
    changed = (reader([seen], other).tokens_ND.view_as(before) - before).abs().amax(1)
    assert [float(c) > 1e-3 for c in changed] == [image == 1 for image in OWNERS]


@torch.no_grad()
def test_a_question_is_embedded_once(instruct, reader, seen):
    """That of a row serves all of its images; all go through the linear layer together, empty ones too."""
    first, second = embedded(instruct, [QUESTIONS[0], []])
    calls = []
    reader.words.register_forward_hook(lambda _, given, out: calls.append(len(given[0])))
    shared = reader([seen], [first, second, first]).tokens_ND
    assert calls == [len(QUESTIONS[0])]
    assert (shared - reader([seen], [first, second, first.clone()]).tokens_ND).abs().max() < 2e-6
    assert calls[1:] == [2 * len(QUESTIONS[0])]


def test_words_come_from_the_width_of_the_language_model(seen):
    connector = QFormerConnector([V], D, **OURS, question=True)
    assert connector.words.weight.shape == (W, D) and connector.places.shape == (512, W)
    assert connector.reads_text and not QFormerConnector([V], D, **OURS).reads_text
    assert connector([seen], [torch.randn(n, D) for n in (2, 3, 1)]).tokens_ND.shape == (5 * Q, D)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "found no questions for 3 images; give one an image, or question=False"),
        ([torch.zeros(2, W)] * 2, "found 2 questions for 3 images"),
        (
            [torch.zeros(n, W) for n in (9, 10, 1)],
            "found a question of 10 tokens and max_question=9; give .*=10",
        ),
    ],
)
def test_questions_that_do_not_fit_are_refused(text, message, reader, seen):
    with pytest.raises(ValueError, match=f"^qformer connector: .*{message}"):
        reader([seen], text)


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_every_so_many_layers_look_at_the_patches(every):
    connector = QFormerConnector([V], D, **OURS, cross_every=every)
    looking = [i for i, layer in enumerate(connector.layers) if layer.cross is not None]
    assert looking == list(range(0, DEPTH, every))


def test_queries_and_places_begin_with_a_small_deviation():
    connector = QFormerConnector([64], D, num_queries=200, question=True)
    for table in (connector.queries, connector.places):
        assert table.std().item() == pytest.approx(0.02, rel=0.05)
