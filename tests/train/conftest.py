"""Stages of tiny models: a fake text tower, and one way to run steps."""

import pytest
import torch

VIT = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}


class WordTower:
    """A text tower in which each word is a random direction, and a text the sum of its words."""

    embed_dim = 8
    fingerprint = "words"

    def embed(self, texts):
        return torch.stack([sum(self._word(w) for w in text.split()) for text in texts])

    def _word(self, word):
        generator = torch.Generator().manual_seed(sum(map(ord, word)))
        return torch.randn(self.embed_dim, generator=generator)


@pytest.fixture
def two_headed(tiny_vlm):
    """A model whose encoder has a retrieval space, with the fake text tower in it."""
    model = tiny_vlm(encoder={**VIT, "embed_dim": 8, "text_tower": "words"})
    model.vision_encoder._text_tower = WordTower()
    return model


@pytest.fixture
def make_stage(tiny_recipe):
    """A function: options to a stage that trains every part."""
    parts = {part: {"lr": 1e-2} for part in ("encoder", "connector", "llm")}
    base = {"train": parts, "warmup": 0, "schedule": "constant", "clip": 1e9}
    return lambda **options: tiny_recipe(stages=[{**base, **options}]).stages[0]


@pytest.fixture
def samples(make_sample):
    """Several questions about one image, one about several, and one about none."""
    return [
        make_sample(
            "four", 1, *[(q, a) for q in ("what color is it?", "which image?") for a in ("red", "two")]
        ),
        make_sample("pair", 2, ("how many images are there?", "two of them"), ("say yes", "yes")),
        make_sample("text", 0, ("what is one and one?", "two"), ("say yes", "the second one")),
        make_sample("one", 1, ("is there a circle in the image?", "no")),
    ]


@pytest.fixture
def run_steps(tmp_path):
    """A function: train a model on samples as a stage says; returns the rows of metrics.jsonl."""
    from accelerate import Accelerator

    from vlmkit.data.collate import Collator, TextRules
    from vlmkit.data.prompts import PROMPTS
    from vlmkit.train.loop import run_stage
    from vlmkit.train.metrics import MetricsFile, Silent, read_metrics
    from vlmkit.train.module import StageModule
    from vlmkit.train.stage import apply_stage
    from vlmkit.train.stage_run import StageRun
    from vlmkit.train.steps import StageData

    def run(model, stage, samples, text=True):
        p = model.processor
        packing = {"pack": stage.pack, "pack_length": stage.pack_length}
        rules = TextRules(p.tokenizer, PROMPTS["chat_template"], p.count_fitted, p.image_token_id, **packing)
        data = StageData(samples, Collator(p.specs, rules if text else None), seed=0)
        apply_stage(model, stage)
        metrics = MetricsFile(tmp_path / "metrics.jsonl")
        into = StageRun(tmp_path, Accelerator(), metrics, Silent(), stage.clip)
        run_stage(StageModule(model, stage), stage, data, into, None)
        return read_metrics(metrics.path)

    return run
