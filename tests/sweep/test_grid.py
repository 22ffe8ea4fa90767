"""Requests and grids: everything is checked before anything trains."""

import json

import pytest

from vlmkit.errors import UsageError
from vlmkit.sweep.blocks import resolved_blocks
from vlmkit.sweep.grid import make_grid
from vlmkit.sweep.request import Request, refuse_other, remember

VALIDATION = ["evaluate.data.split=val"]
POOLS = {"model.connector.pool": [1, 2]}
RATES = {"stages.last.train.connector.lr": [1e-3, 1e-2]}


def test_the_product_of_values_and_seeds(recipe_file):
    request = Request(
        str(recipe_file), ["stages.first.steps=2"], {**POOLS, "stages.last.steps": [1, 2, 3]}, 2
    )
    grid = make_grid(request)
    jobs = [job for runs in grid.runs for job in runs]
    assert len(jobs) == 12 and len({job.name for job in jobs}) == 12
    assert [job.recipe.seed for job in grid.runs[0]] == [3, 4]
    assert all(job.recipe.stages[0].steps == 2 for job in jobs)
    pairs = {(job.recipe.model.connector.options["pool"], job.recipe.stages[1].steps) for job in jobs}
    assert pairs == {(pool, steps) for pool in (1, 2) for steps in (1, 2, 3)}


def test_blocks_whose_type_varies_are_shown_as_they_will_be(recipe_file):
    vary = {"model.encoders.0.type": ["vit", "clip"], "stages.last.data.type": ["easy_vqa"]}
    grid = make_grid(Request(str(recipe_file), (), vary))
    vit, clip = (resolved_blocks(runs[0]) for runs in grid.runs)
    assert vit["connector"] == clip["connector"] == "mlp depth=1 pool=2"
    assert vit["encoders.0"].startswith("vit depth=1 heads=2") and clip["encoders.0"] == "clip"
    assert vit["data"] == "easy_vqa limit=20"


def test_all_errors_of_all_recipes_come_together(recipe_file):
    vary = {"model.connector.type": ["mlp", "mpl"], "stages.last.batch_size": [4, 0]}
    with pytest.raises(UsageError) as raised:
        make_grid(Request(str(recipe_file), (), vary, 2))
    said = str(raised.value)
    assert "did you mean 'mlp'" in said and "stages.1.batch_size" in said
    assert 'model.connector.type="mlp", stages.last.batch_size=0' in said


def test_values_that_would_share_a_folder_are_refused(recipe_file):
    vary = {"stages.last.batch_size": [4, "4"]}
    with pytest.raises(UsageError) as raised:
        make_grid(Request(str(recipe_file), (), vary))
    said = str(raised.value)
    assert 'stages.last.batch_size=4 and stages.last.batch_size="4"' in said and "batch_size-4_seed-3" in said


def test_candidates_are_of_the_first_seed_and_on_validation_data(recipe_file):
    grid = make_grid(Request(str(recipe_file), (), POOLS, 3, RATES, VALIDATION))
    assert [len(tried) for tried in grid.candidates] == [2, 2]
    jobs = [job for tried in grid.candidates for job in tried]
    assert {job.recipe.seed for job in jobs} == {3}
    assert {job.recipe.evaluate.data.options["split"] for job in jobs} == {"val"}
    assert {j.recipe.evaluate.data.options["split"] for runs in grid.runs for j in runs} == {"test"}


@pytest.mark.parametrize("on_top", [[], ["evaluate.data.limit=1"], ["stages.last.steps=1"]])
def test_tuning_never_looks_at_the_test_data(recipe_file, on_top):
    with pytest.raises(UsageError, match=r"choose by the data of the final evaluation.*split=val"):
        make_grid(Request(str(recipe_file), (), POOLS, 1, RATES, on_top))


def test_tuning_never_looks_at_some_of_the_test_data(recipe_file):
    """Blocks that differ may name the same questions; the first image of `val` has nine."""
    overrides = ["evaluate.data.split=val", "evaluate.data.limit=1"]
    both = Request(str(recipe_file), overrides, POOLS, 1, RATES, ["evaluate.data.split=train+val"])
    with pytest.raises(
        UsageError, match=r"final evaluation .*: (\d+) of its \1 questions are in .*train\+val"
    ):
        make_grid(both)
    apart = Request(str(recipe_file), overrides, POOLS, 1, RATES, ["evaluate.data.split=train"])
    assert len(make_grid(apart).candidates) == 2


def test_tuning_is_compared_with_the_test_data_or_refused(recipe_file):
    on_top = ["evaluate.data={type: llava_json, path: missing.json, image_folder: .}"]
    with pytest.raises(UsageError, match=r"cannot be looked for .*missing\.json"):
        make_grid(Request(str(recipe_file), (), POOLS, 1, RATES, on_top))


def test_tuning_needs_an_evaluation(recipe_file):
    with pytest.raises(UsageError, match="the recipe has none"):
        make_grid(Request(str(recipe_file), ["evaluate=null"], POOLS, 1, RATES, ["stages.last.steps=1"]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seeds": 0}, "--seeds 0"),
        ({"tune_set": VALIDATION}, "--tune-set is of --tune"),
        ({"vary": POOLS, "tune": POOLS}, "in --vary and in --tune"),
        ({"vary": {"seed": [1, 2]}}, "use --seeds"),
        ({"overrides": ["output=here"]}, "use --output"),
        ({"tune": RATES, "tune_set": ["seed=1"]}, "use --seeds"),
    ],
)
def test_contradictions_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        Request("quickstart", **options)


class TestTheSameFolder:
    @pytest.fixture
    def folder(self, tmp_path, recipe_file):
        remember(tmp_path, Request(str(recipe_file), ["stages.first.steps=2"], POOLS, 2, RATES, VALIDATION))
        return tmp_path

    @pytest.fixture
    def ask(self, folder, recipe_file):
        def again(overrides=("stages.first.steps=2",), vary=POOLS, seeds=2, tune=RATES, tune_set=VALIDATION):
            refuse_other(folder, Request(str(recipe_file), overrides, vary, seeds, tune, tune_set))

        return again

    def test_the_same_and_more_are_taken(self, ask):
        ask()
        ask(vary={"model.connector.pool": [4, 2, 1]}, seeds=3)
        ask(overrides=["stages.0.steps=2"])

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"overrides": ["seed=1"]}, "the recipe differs in seed, stages"),
            ({"vary": {"model.connector.pool": [1, 3]}}, "--vary model.connector.pool had also 2"),
            ({"vary": {"seed_": [1]}}, "--vary was of model.connector.pool, is of seed_"),
            ({"seeds": 1}, "--seeds was 2, is 1"),
            ({"tune": {**RATES, "stages.last.warmup": [0]}}, "--tune was"),
            ({"tune_set": ["evaluate.data.split=train"]}, "--tune-set was"),
        ],
    )
    def test_another_request_is_named_by_what_differs(self, ask, options, says):
        with pytest.raises(UsageError) as raised:
            ask(**options)
        assert says in str(raised.value) and "--output" in str(raised.value)

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path, recipe_file):
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(UsageError, match="holds no sweep"):
            refuse_other(tmp_path, Request(str(recipe_file)))

    def test_the_file_holds_the_whole_request(self, folder):
        stored = json.loads((folder / "sweep.json").read_text())
        assert stored["vary"] == POOLS and stored["seeds"] == 2 and stored["tune_set"] == VALIDATION
        assert stored["recipe"]["stages"][0]["steps"] == 2
