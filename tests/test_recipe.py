"""Recipes: every error at once, at its path, with the nearest name; overrides; numbers are numbers."""

import copy

import pytest
import yaml

from vlmkit.assemble import check_blocks
from vlmkit.errors import UsageError
from vlmkit.overrides import apply_overrides
from vlmkit.recipe import load_recipe
from vlmkit.recipe_files import bundled_recipes, find_recipe

GOOD = {
    "name": "good",
    "model": {
        "encoders": [{"type": "vit", "width": 16}],
        "connector": {"type": "mlp"},
        "llm": {"type": "llama", "hidden_size": 16},
    },
    "stages": [
        {"name": "first", "data": {"type": "easy_vqa"}, "train": {"connector": {"lr": 1e-3}}, "steps": 1},
        {"name": "second", "data": {"type": "easy_vqa"}, "train": {"llm": {"lr": 2e-5}}, "steps": 1},
    ],
}


@pytest.fixture
def load(tmp_path):
    """A function: changes as overrides of a good recipe, to the recipe."""

    def read(*overrides, text=None):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(GOOD) if text is None else text)
        return load_recipe(file, overrides, check_blocks)

    return read


def test_a_good_recipe_has_defaults_and_cannot_be_changed(load):
    recipe = load()
    assert (recipe.seed, recipe.precision, str(recipe.run_dir)) == (0, "auto", "runs/good")
    assert recipe.stages[0].train["connector"].lora is None and recipe.stages[0].pack == "none"
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sede=1", "sede: unknown key; did you mean 'seed'?"),
        ("model.conector={type: mlp}", "model.conector: unknown key; did you mean 'connector'?"),
        ("stages.0.batchsize=3", "stages.0.batchsize: unknown key; did you mean 'batch_size'?"),
        ("stages.0.train.connector.wd=1", "stages.0.train.connector.wd: unknown key (known: lora, lr,"),
        ("stages.0.train.lm={lr: 1}", "stages.0.train.lm: Input should be 'encoder', 'connector' or 'llm'"),
        ("stages.0.train.encodr={lr: 1}", "found 'encodr'; did you mean 'encoder'?"),
        ("stages.0.train.llm={lr: 1, lora: {rank: 3}}", "stages.0.train.llm.lora.rank: unknown key"),
        ("stages.0.schedule=cosin", "found 'cosin'; did you mean 'cosine'?"),
        (
            "evaluate={data: {type: easy_vqa}, blnd: true}",
            "evaluate.blnd: unknown key; did you mean 'blind'?",
        ),
        (
            "stages.0.train.connector.lr=0",
            "stages.0.train.connector.lr: Input should be greater than 0; found 0",
        ),
        ("stages.0.train.connector={lr: 1, lora: {}}", "stages.0: 'lora' is possible for the llm only"),
        ("stages.0.train={}", "stages.0.train: Dictionary should have at least 1 item"),
        ("stages.0.objective={}", "stages.0.objective: a name is needed, or finite weights above 0 by name"),
        ("stages.0.objective=5", "{next_token: 1, contrastive: 0.2}; found 5"),
        ("stages.0.objective={next_token: 1, contrastive: -1}", "found {'next_token': 1, 'contrastive': -1}"),
        ("stages.0.objective={next_token: 0}", "stages.0.objective: a name is needed"),
        ("stages.0.objective={next_token: .nan}", "stages.0.objective: a name is needed"),
        ("stages.0.objective={next_token: .inf}", "stages.0.objective: a name is needed"),
        ("stages.0.objective={next_token: much}", "stages.0.objective: a name is needed"),
        ("stages.0.betas=[0.9, 1.0]", "stages.0.betas.1: Input should be less than 1; found 1.0"),
        ("stages.0.betas=[-0.1, 0.9]", "stages.0.betas.0: Input should be greater than or equal to 0; found"),
        ("stages.0.betas=[.nan, 0.9]", "stages.0.betas.0: Input should be"),
        ("stages.0.epochs=1", "stages.0: give either 'steps' or 'epochs'"),
        ("stages.0.steps=null", "stages.0: give either 'steps' or 'epochs'"),
        ("stages.1.name=first", "stages: stage names must differ, found first, first"),
        ("stages=[]", "stages: List should have at least 1 item"),
        (
            "model.llm.weights=./here",
            "model.llm: give either 'weights' (pretrained) or 'type' (from scratch)",
        ),
        (
            "model.llm={weights: a, depth: 3}",
            "model.llm: with 'weights' nothing else can be set; found depth",
        ),
        ("model.splice.row_seperator=true", "row_seperator: unknown key; did you mean 'row_separator'?"),
        ("model.splice.image_end=3", "model.splice.image_end: Input should be a valid boolean"),
        ("model.llm.quantize=nf5", "model.llm.quantize: Input should be 'nf4' or 'fp4'; found 'nf5'"),
        ("model.llm.quantize=nf4", "model.llm.quantize: needs 'weights' or 'init_from'"),
        ("model.llm={weights: a, quantize: nf4}", "stages.1.train.llm: in 4 bits only 'lora' trains"),
        ("name=a/b", "name: String should match pattern"),
        ("model.encoders.0.type=vti", "model.encoders.0.type: unknown encoder 'vti'; did you mean 'vit'?"),
        ("model.encoders.0.widht=3", "model.encoders.0: unknown argument 'widht'; did you mean 'width'?"),
        ("model.encoders.0.width=wide", "model.encoders.0.width: Input should be a valid integer"),
        ("model.encoders.0.width='16'", "model.encoders.0.width: a number is needed, found the text '16'"),
        ("model.encoders.0.stem=cnv", "model.encoders.0.stem: Input should be 'patch' or 'conv'"),
        ("model.encoders.0.type=no.such:Thing", "model.encoders.0.type: 'no.such:Thing' cannot be imported"),
        ("model.connector.type=mpl", "model.connector.type: unknown connector 'mpl'; did you mean 'mlp'?"),
        ("model.connector.text_width=3", "model.connector: unknown argument 'text_width'"),
        ("model.connector.type=pathlib:Path", "'pathlib:Path' is not a subclass"),
        ("model.llm.type=lama", "model.llm: unknown language model 'lama'; did you mean 'llama'?"),
        ("model.llm.hiden_size=3", "model.llm: unknown option of a llama 'hiden_size'; did you mean"),
        ("model.prompt=vicuna", "model.prompt: unknown prompt format 'vicuna'; did you mean 'vicuna_v1'?"),
        ("stages.0.prompt=plane", "stages.0.prompt: unknown prompt format 'plane'; did you mean 'plain'?"),
        ("stages.0.objective=contrast", "stages.0.objective: unknown objective 'contrast'; did you mean"),
        ("stages.0.objective={next_tokn: 1}", "stages.0.objective: unknown objective 'next_tokn'"),
        ("stages.0.data.type=easyvqa", "stages.0.data.type: unknown data format 'easyvqa'; did you mean"),
        ("stages.0.data.splt=val", "stages.0.data: unknown argument 'splt'; did you mean 'split'?"),
        ("stages.0.data={type: llava_json}", "stages.0.data.path: is missing"),
        ("evaluate={data: {type: easy}}", "evaluate.data.type: unknown data format 'easy'"),
    ],
)
def test_an_error_has_its_path_and_the_nearest_name(load, override, says):
    with pytest.raises(UsageError) as raised:
        load(override)
    assert says in str(raised.value)


def test_objectives_are_a_name_or_weights(load):
    with pytest.raises(UsageError, match=r"recipe\.yaml: 1 error\n"):
        load("stages.0.objective=5")
    assert load().stages[0].objective == "next_token"
    weights = load("stages.0.objective={next_token: 1, contrastive: 2e-1}").stages[0].objective
    assert weights == {"next_token": 1.0, "contrastive": 0.2}


def test_a_file_that_is_not_utf8_is_one_line(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_bytes("name: größe".encode("latin-1"))
    with pytest.raises(UsageError, match=r"recipe\.yaml is not UTF-8 text \(.*\); give") as raised:
        load_recipe(file)
    assert "\n" not in str(raised.value)


def test_adapters_over_four_bits_are_for_the_last_stage(load):
    four_bits = ["model.llm={weights: a, quantize: nf4}", "stages.1.train.llm.lora={r: 4}"]
    assert load(*four_bits).model.llm.quantize == "nf4"
    with pytest.raises(UsageError, match=r"stages\.0\.train\.llm: in 4 bits only 'lora' trains, in the last"):
        load(*four_bits, "stages.0.train.llm={lr: 1, lora: {r: 4}}")


def test_all_errors_are_reported_at_once(load):
    with pytest.raises(UsageError) as raised:
        load(
            "sede=1",
            "stages.first.setps=1",
            "model.connector.type=mpl",
            "stages.1.train.llm.lr=-1",
            "model.llm=3",
        )
    lines = str(raised.value).splitlines()
    assert lines[0].endswith("recipe.yaml: 5 errors")
    paths = {line.split(":")[0].strip() for line in lines[1:]}
    assert paths == {"sede", "stages.0.setps", "model.connector.type", "stages.1.train.llm.lr", "model.llm"}


@pytest.mark.parametrize("what", ["[1, 2]", "just words", "", "a: [", "\t- x"])
def test_a_file_that_is_no_recipe_is_one_line(load, what):
    with pytest.raises(UsageError, match=r"is not YAML|is not a recipe") as raised:
        load(text=what)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "2.e-5", "0.2e-4", "'2e-5'", "2.0e-05"])
def test_numbers_with_an_exponent_are_numbers(load, text):
    """PyYAML reads `2e-5` as text."""
    assert load(f"stages.1.train.llm.lr={text}").stages[1].train["llm"].lr == 2e-5
    block = load(f"model.llm.rms_norm_eps={text.strip(chr(39))}").model.llm.options
    assert block["rms_norm_eps"] == 2e-5


@pytest.mark.parametrize("text", ["1e", "e5", "0x1e5", "v1e5", "1.2.3e4"])
def test_what_only_looks_like_a_number_stays_what_it_was(text):
    raw = {}
    apply_overrides(raw, [f"key={text}"])
    assert raw["key"] == yaml.safe_load(text)


class TestOverrides:
    def test_items_of_lists_by_index_and_by_name(self, load):
        recipe = load("stages.0.steps=7", "stages.second.steps=8", "model.encoders.0.width=32", "seed=3")
        assert [stage.steps for stage in recipe.stages] == [7, 8]
        assert recipe.model.encoders[0].options == {"width": 32} and recipe.seed == 3

    def test_missing_sections_are_made(self, load):
        assert load("stages.second.train.llm.lora.r=4").stages[1].train["llm"].lora.r == 4

    def test_values_are_yaml(self, load):
        recipe = load("stages.0.data={type: easy_vqa, split: val}", "output=a=b", "stages.0.betas=[0.8, 0.9]")
        assert recipe.stages[0].data.options == {"split": "val"}
        assert recipe.output == "a=b" and recipe.stages[0].betas == (0.8, 0.9)

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("steps", "'steps' is not key=value"),
            ("stages.third.steps=1", "no item 'third' (known: 0, 1, first, second)"),
            ("stages.2.steps=1", "no item '2' (known: 0, 1, first, second)"),
            ("name.x=1", "'name' holds a value, it has no parts"),
            ("name=[", "'[' is not YAML"),
        ],
    )
    def test_one_that_leads_nowhere_is_explained(self, override, says):
        with pytest.raises(UsageError) as raised:
            apply_overrides(copy.deepcopy(GOOD), [override])
        assert says in str(raised.value) and "\n" not in str(raised.value)


class TestFiles:
    def test_a_file_wins_over_a_bundled_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert (
            find_recipe("quickstart")
            == find_recipe("recipes/quickstart.yaml")
            == bundled_recipes()["quickstart"]
        )
        (tmp_path / "quickstart").write_text("mine")
        assert find_recipe("quickstart").read_text() == "mine"

    def test_a_misspelt_name_is_answered_with_the_nearest(self):
        with pytest.raises(UsageError, match="unknown recipe 'quickstat'; did you mean 'quickstart'"):
            find_recipe("quickstat")

    def test_a_bundled_name_elsewhere_is_no_bundled_recipe(self, tmp_path):
        with pytest.raises(UsageError, match="unknown recipe"):
            find_recipe(tmp_path / "quickstart.yaml")
