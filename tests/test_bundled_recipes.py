"""Every bundled recipe runs from start to end through the real entry point, tiny, without a download."""

import json

import pytest
from PIL import Image

from vlmkit import VLM
from vlmkit.assemble import check_blocks
from vlmkit.cli import main
from vlmkit.encoders import encoder_class
from vlmkit.errors import UsageError
from vlmkit.layouts import build_layout
from vlmkit.recipe import Recipe, load_recipe
from vlmkit.recipe_files import bundled_recipes
from vlmkit.splice import Marks, count_tokens
from vlmkit.tiny import SAMPLE, tiny_runs
from vlmkit_connectors import MLPConnector

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
LAYOUTS_OF_SIZES = [
    {"type": "anyres", "unit": "pixels", "pinpoints": PINPOINTS},
    {"type": "split", "longest_edge": 1536},
    {"type": "longest", "longest_edge": 1024},
    {"type": "qwen", "min_pixels": 3136, "max_pixels": 1_000_000},
    {"type": "qwen"},
    {"type": "native", "max_patches": 4096},
]
HEADINGS = ("Source:", "Needs:", "Cost:", "Run:", "Override:")


@pytest.mark.parametrize("name", bundled_recipes())
def test_it_runs_tiny(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert main(["train", name, "--tiny"]) == 0
    run = tmp_path / f"runs/{load_recipe(name).name}_tiny"
    stated = load_recipe(name)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in rows] == [(s.name, n) for s in stated.stages for n in (1, 2)]
    model = VLM.from_pretrained(run)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert model.config.encoders[0]["type"] == stated.model.encoders[0].type
    if stated.init_from is not None:
        assert (tmp_path / f"runs/{stated.init_from}_tiny/vlmkit.json").exists()


@pytest.mark.parametrize("name", bundled_recipes())
def test_it_says_what_it_is_and_its_override_works(name):
    head = bundled_recipes()[name].read_text().split("\nname:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    positions = [head.index(heading) for heading in HEADINGS]
    assert positions == sorted(positions)
    line = next(line for line in head.splitlines() if "Override:" in line)
    words = line.partition("vlmkit train ")[2].split()
    assert load_recipe(words[0], words[1:], check_blocks) != load_recipe(name)


def test_llava_states_the_published_settings():
    """scripts/v1_5 of github.com/haotian-liu/LLaVA."""
    names = ("llava_stage1", "llava_stage2", "llava_stage2_lora")
    recipes = [load_recipe(name) for name in names]
    stages = [recipe.stages[0] for recipe in recipes]
    assert [s.batch_size for s in stages] == [256, 128, 128]
    assert [s.train["connector"].lr for s in stages] == [1e-3, 2e-5, 2e-5]
    assert [s.train["llm"].lr for s in stages[1:]] == [2e-5, 2e-4]
    lora = stages[2].train["llm"].lora
    assert (lora.r, lora.alpha, lora.dropout) == (128, 256, 0.05)
    assert {(s.epochs, s.warmup, s.schedule, s.max_length, s.clip) for s in stages} == {
        (1, 0.03, "cosine", 2048, 1.0)
    }
    assert [s.prompt or r.model.prompt for s, r in zip(stages, recipes)] == ["plain"] + ["vicuna_v1"] * 2
    assert [r.model.encoders[0].options["layout"] for r in recipes] == ["crop", "pad", "pad"]
    assert all("encoder" not in s.train and r.model.encoders[0].options["layer"] == -2
               for s, r in zip(stages, recipes))  # fmt: skip


class TestTiny:
    def test_the_families_and_what_is_no_size_stay(self):
        before, last = tiny_runs(load_recipe("llava_stage2_qlora", ["output=out/run"]))
        assert (before.output, last.output) == ("out/llava_stage1_tiny", "out/run")
        assert last.init_from == before.output and before.init_from is None
        assert last.model.encoders[0].type == "clip" and last.model.encoders[0].options["layout"] == "pad"
        assert (last.model.llm.type, last.model.llm.quantize) == ("llama", "nf4")
        assert last.stages[0].train["llm"].lora.r == 4 and last.stages[0].train["llm"].lr == 2e-4
        (naflex,) = tiny_runs(load_recipe("siglip2_naflex"))
        assert naflex.model.llm.type == "qwen3" and naflex.model.encoders[0].type == "siglip2_naflex"

    def test_a_recipe_is_not_changed_and_tiny_twice_is_tiny(self):
        recipe = load_recipe("quickstart")
        copy = recipe.model_copy(deep=True)
        (tiny,) = tiny_runs(recipe)
        assert recipe == copy
        assert tiny_runs(tiny.model_copy(update={"output": tiny.output}))[0].model == tiny.model

    @pytest.mark.parametrize("layout", LAYOUTS_OF_SIZES, ids=lambda layout: layout["type"])
    def test_sizes_of_a_layout_are_tiny_too(self, layout):
        """A photo fits into the tiny language model with room for text, and tiny twice is tiny."""
        options = {"image_size": 336, "patch_size": 14, "width": 64, "depth": 2, "heads": 2}
        encoder = {"type": "vit", **options, "layout": layout}
        stated = Recipe.model_validate({
            "name": "sizes",
            "model": {"encoders": [encoder], "connector": {"type": "mlp"}, "llm": {"type": "llama"}},
            "stages": [{"name": "only", "data": {"type": "image_captions", "folder": "photos"},
                        "train": {"connector": {"lr": 1e-3}}, "steps": 1}],
        })  # fmt: skip
        (tiny,) = tiny_runs(stated)
        (block,) = tiny.model.encoders
        spec = encoder_class("vit").from_options(**block.options).spec
        connector = MLPConnector([spec.feature_width], text_width=8)
        sizes = [(640, 480), (1920, 1080), (1700, 2200)]
        counts = [count_tokens([spec], connector, Marks(), (*size, 0)) for size in sizes]
        assert all(0 < count < 1200 for count in counts)
        assert tiny_runs(tiny)[0].model == tiny.model

    def test_pinpoints_in_pixels_keep_their_tiles(self):
        layout = build_layout({"type": "anyres", "unit": "pixels", "pinpoints": PINPOINTS})
        tiles = [[w // 336, h // 336] for w, h in PINPOINTS]
        assert layout.tiny_options() == {"unit": "tiles", "pinpoints": tiles}

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("model.llm={weights: some/llm}", "language model with a tiny twin: 'some/llm'"),
            ("model.encoders.0={type: 'vlmkit.encoders.hf:HFEncoder'}", "HFEncoder states no tiny twin"),
        ],
    )
    def test_a_part_without_a_twin_is_refused(self, override, says):
        with pytest.raises(UsageError, match=says):
            tiny_runs(load_recipe("llava_stage1", [override]))

    def test_the_sample_is_ten_rows_and_small(self):
        rows = json.loads((SAMPLE / "rows.json").read_text())
        files = list(SAMPLE.iterdir())
        assert len(rows) == 10 and sum(f.stat().st_size for f in files) < 10_000
        assert len({Image.open(f).size for f in files if f.suffix == ".png"}) >= 5
