"""The recipe with the packaged SmolLM2: valid, and never a look at the test split."""

from pathlib import Path

from vlmkit.assemble import check_blocks
from vlmkit.recipe import load_recipe


def test_the_recipe_is_valid_and_holds_the_test_split_back():
    recipe = load_recipe(Path(__file__).parents[2] / "recipes/smollm_vqa.yaml", check=check_blocks)
    assert [stage.data.options["split"] for stage in recipe.stages] == ["train"] * 3
    assert recipe.evaluate.data.options["split"] == "val"
    assert [sorted(stage.train) for stage in recipe.stages[1:]] == [
        ["connector", "encoder"],
        ["connector", "encoder", "llm"],
    ]
    assert recipe.stages[-1].train["llm"].lora.r == 8
