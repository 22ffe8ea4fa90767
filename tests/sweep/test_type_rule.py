"""Another type has other options: those of the old one go, and nothing that was set goes unsaid."""

import pytest

from vlmkit.assemble import check_blocks
from vlmkit.errors import UsageError
from vlmkit.overrides import apply_overrides
from vlmkit.recipe import load_recipe


def raw():
    return {
        "model": {
            "connector": {"type": "mlp", "depth": 2, "pool": 2},
            "llm": {"type": "llama", "hidden_size": 16},
            "encoders": [{"type": "vit", "width": 16, "layout": {"type": "pad", "size": 3}}],
        },
        "stages": [{"name": "one", "data": {"type": "easy_vqa", "split": "val"}}],
    }


def changed(*overrides):
    made = raw()
    apply_overrides(made, overrides)
    return made


def test_another_type_drops_the_options_of_the_old_one():
    assert changed("model.connector.type=perceiver")["model"]["connector"] == {"type": "perceiver"}
    assert changed("model.encoders.0.type=clip")["model"]["encoders"] == [{"type": "clip"}]
    assert changed("stages.one.data.type=rows")["stages"][0]["data"] == {"type": "rows"}
    assert changed("model.encoders.0.layout.type=tiles")["model"]["encoders"][0] == {
        "type": "vit", "width": 16, "layout": {"type": "tiles"},
    }  # fmt: skip


def test_the_same_type_keeps_them():
    assert changed("model.connector.type=mlp") == raw()


def test_options_that_follow_are_of_the_new_type():
    connector = changed("model.connector.type=perceiver", "model.connector.num_latents=4")["model"][
        "connector"
    ]
    assert connector == {"type": "perceiver", "num_latents": 4}


def test_families_of_language_models_share_their_sizes():
    assert changed("model.llm.type=qwen2")["model"]["llm"] == {"type": "qwen2", "hidden_size": 16}


@pytest.mark.parametrize(
    "first",
    [
        "model.connector.depth=3",
        "model.connector={type: mlp, depth: 3}",
        "model={connector: {type: mlp, depth: 3}}",
    ],
)
def test_an_option_that_was_set_is_not_dropped_unsaid(first):
    """Alone, with its block, or with what the block is in."""
    with pytest.raises(
        UsageError, match=r"drops model\.connector\.depth, which is set before it; set the type"
    ):
        changed(first, "model.connector.type=perceiver")


def test_a_block_that_was_set_without_options_loses_none():
    made = changed("model.connector={type: mlp}", "model.connector.type=x")
    assert made["model"]["connector"] == {"type": "x"}


def test_a_list_item_by_name_and_by_number_is_the_same_item():
    with pytest.raises(UsageError, match=r"drops stages\.0\.data\.limit"):
        changed("stages.one.data.limit=3", "stages.0.data.type=rows")


def test_a_bundled_recipe_takes_another_connector_in_one_line():
    """The quickstart's connector has options that a linear one of one's own does not know."""
    other = "vlmkit_connectors.mlp:MLPConnector"
    recipe = load_recipe("quickstart", [f"model.connector.type={other}"], check_blocks)
    assert recipe.model.connector.model_dump() == {"type": other}
