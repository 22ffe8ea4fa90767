"""Every connector with every kind of encoder: trained through the real entry, saved, loaded, asked.

A connector that is added to `CONNECTORS` is tested here without an edit, with its `tiny_options`.
"""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from vlmkit.assemble import assemble
from vlmkit.errors import UsageError
from vlmkit.inference import model_inputs, question
from vlmkit.recipe import Recipe
from vlmkit.train import run as train_run
from vlmkit.train.metrics import Silent
from vlmkit.vlm import VLM
from vlmkit_connectors import CONNECTORS, LayerInjection

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
WITH_MLP = {**SIZE, "intermediate_size": 32}
VIT = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
NATIVE = {
    "type": "siglip2_naflex",
    "vision_config": {**WITH_MLP, "num_patches": 16},
    "max_num_patches": 20,
}
DINO = {"type": "dinov2", "vision_config": {**SIZE, "image_size": 24}, "layout": "square"}
SIGLIP = {"type": "siglip", "vision_config": {**WITH_MLP, "image_size": 16}}
VISION = {"fixed": [VIT], "native": [NATIVE], "two fused": [DINO, SIGLIP]}
NEW = {"max_new_tokens": 6}
# Other forms of a connector, by options over its tiny ones.
ALSO = [
    ("mllama", {"resampler": "perceiver", "num_latents": 4, "depth": 1}),
    ("qformer", {"question": True}),
]
FORMS = [*((name, {}) for name in CONNECTORS), *ALSO]
FORM_NAMES = [" ".join([name, *map(str, own.values())][:2]) for name, own in FORMS]


class Watch(Silent):
    """Keeps what trains in a stage, and a run's tensors when the stage starts and after each of its steps."""

    def __init__(self):
        self.model, self.name, self.states, self.trains = None, "", {}, {}

    def stage(self, name, rows, note):
        self.name = name
        self.trains[name] = {name for name, own in self.model.named_parameters() if own.requires_grad}
        self.states[name, 0] = self.now()

    def step(self, step, values):
        assert math.isfinite(values["loss"])
        self.states[self.name, step] = self.now()

    def now(self):
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def moved(self, stage, steps, part):
        """Names of the tensors of a part that differ after so many steps of a stage."""
        before, after = self.states[stage, 0], self.states[stage, steps]
        names = [name for name in before if name.startswith(f"{part}.")]
        assert names
        return {name for name in names if not torch.equal(before[name], after[name])}


def recipe_of(tiny_recipe, form, vision, output, splice=None):
    """Two steps of the connector alone, then two of all parts, each on all rows."""
    rate = {"lr": 1e-2}
    stage = {"steps": 2, "batch_size": 6, "warmup": 0, "schedule": "constant", "checkpoint_every": 0}
    alone = {**stage, "name": "alone", "train": {"connector": rate}}
    together = {**stage, "name": "together", "train": dict.fromkeys(("encoder", "connector", "llm"), rate)}
    raw = tiny_recipe(stages=[alone, together], output=str(output), splice=splice).model_dump()
    connector, own = form
    options = CONNECTORS[connector].tiny_options() | own
    raw["model"] |= {"encoders": VISION[vision], "connector": {"type": connector, **options}}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module", params=VISION)
def vision(request):
    return request.param


@pytest.fixture(scope="module", params=FORMS, ids=FORM_NAMES)
def run(request, vision, tiny_recipe, tmp_path_factory, roughen):
    """A finished run: what moved while it trained, its model, the model loaded, and one with rough weights.

    After two steps a gate or a latent hardly matters; with rough weights all do.
    """
    watch = Watch()

    def kept(recipe):
        watch.model = assemble(recipe)
        return watch.model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run, "assemble", kept)
        recipe = recipe_of(tiny_recipe, request.param, vision, tmp_path_factory.mktemp("run") / "run")
        path = train_run.train_recipe(recipe, reporter=watch).path
    loaded = VLM.from_pretrained(path).eval()
    rough = roughen(copy.deepcopy(loaded))
    # No row ends early, so that every comparison runs over all steps.
    rough.generation_config.eos_token_id = None
    return SimpleNamespace(watch=watch, trained=watch.model.eval(), loaded=loaded, rough=rough)


@pytest.fixture
def queries(noise):
    """Prompts of several lengths with one image, none and several, of several sizes."""
    return [
        question([noise(1, (40, 9))], "what color is it?"),
        question([], "say yes"),
        question([noise(2), noise(3, (8, 33))], "which of them is a blue square?"),
    ]


@torch.no_grad()
def logits(model, queries):
    inputs = model_inputs(model, queries)
    return model(**inputs).logits[inputs["attention_mask"].bool()]


@torch.no_grad()
def generate(model, queries, **options):
    """New tokens of each row, and the logits that chose them."""
    inputs = model_inputs(model, queries)
    told = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**inputs, **NEW, **options, **told)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


def test_gradients_reach_the_connector_and_nothing_else(run):
    """Every parameter of the connector moves in two steps, and no other tensor by a bit."""
    for part in ("encoders", "language_model"):
        assert run.watch.moved("alone", 2, part) == set()
    trained = {f"connector.{name}" for name, _ in run.trained.connector.named_parameters()}
    assert trained == run.watch.trains["alone"]
    assert trained and trained - run.watch.moved("alone", 2, "connector") == set()


def test_blocks_with_closed_gates_open_these_first(run):
    """What was not zero gets no gradient before a gate is open; other connectors have no gates."""
    moved = run.watch.moved("alone", 1, "connector")
    start = run.watch.states["alone", 0]
    zeros = {name for name in moved if not start[name].any()}
    assert moved and (moved == zeros) is isinstance(run.trained.connector, LayerInjection)


def test_all_parts_train_where_all_should(run):
    encoders = [f"encoders.{number}" for number in range(len(run.trained.encoders))]
    for part in ("connector", "language_model", *encoders):
        assert run.watch.moved("together", 2, part)


def test_loaded_it_is_the_trained_model(run, queries, noise):
    assert (logits(run.loaded, queries) - logits(run.trained, queries)).abs().max() <= 1e-6
    for size in ((16, 16), (40, 9)):
        asked = noise(5, size), "what color is it?"
        answer = run.loaded.ask(*asked, **NEW)
        assert isinstance(answer, str) and answer == run.trained.ask(*asked, **NEW)


def test_the_image_is_seen(run, noise):
    seen = [logits(run.rough, [question([noise(i)], "say yes")]) for i in (1, 2)]
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_the_cache_changes_nothing(run, queries):
    cached, cached_logits = generate(run.rough, queries)
    plain, plain_logits = generate(run.rough, queries, use_cache=False)
    assert cached.tolist() == plain.tolist()
    assert (cached_logits - plain_logits).abs().max() <= 1e-5


def test_a_left_padded_batch_equals_one_by_one(run, queries):
    together, scores = generate(run.rough, queries)
    for row, query in enumerate(queries):
        alone, own = generate(run.rough, [query])
        assert together[row].tolist() == alone[0].tolist()
        assert (scores[row] - own[0]).abs().max() <= 1e-5


MARKS = {"row_separator": True, "image_start": True, "image_end": True}


@pytest.mark.parametrize("connector", CONNECTORS)
def test_marks_go_with_every_connector(tiny_recipe, tmp_path, queries, connector):
    """The model compares what is counted with what is produced. Rows need a grid, and marks a sequence."""
    marked = [recipe_of(tiny_recipe, (connector, {}), "native", tmp_path, own) for own in (None, MARKS)]
    plain = assemble(marked[0])
    if isinstance(plain.connector, LayerInjection) or plain.connector.token_grid((4, 5)) is None:
        with pytest.raises(UsageError, match=r"model\.splice|not in the sequence"):
            assemble(marked[1])
        return
    model = assemble(marked[1]).eval()
    rows = plain.connector.token_grid((4, 5))[0]
    assert model.count_tokens((50, 40)) == plain.count_tokens((50, 40)) + rows + 2
    assert torch.isfinite(logits(model, queries)).all()


@pytest.mark.parametrize("fusion", ["interleave", "groups"])
@pytest.mark.parametrize("form", FORMS, ids=FORM_NAMES)
def test_what_is_counted_is_produced_by_fused_encoders(tiny_recipe, tmp_path, queries, form, fusion):
    """For views of several kinds; the model compares both. Blocks in the language model take one run."""
    raw = recipe_of(tiny_recipe, form, "native", tmp_path).model_dump()
    for layout in ("square", "native", {"type": "tiles", "max_tiles": 3}):
        raw["model"] |= {"fusion": fusion, "encoders": [{**NATIVE, "layout": layout}] * 2}
        if issubclass(CONNECTORS[form[0]], LayerInjection):
            with pytest.raises(UsageError, match=f"fusion.*{fusion}"):
                assemble(Recipe.model_validate(raw))
            continue
        model = assemble(Recipe.model_validate(raw)).eval()
        assert torch.isfinite(logits(model, queries)).all()
