"""Prefix packing against one question a row: questions per CPU second of training, same model and questions.

    python benchmarks/packing.py

Both sides run in turn in one process; prints the ratio and writes benchmarks/results/packing.md.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import statistics
import time
from pathlib import Path

import torch

from vlmkit import load_recipe
from vlmkit.assemble import assemble, build_data, check_blocks
from vlmkit.data.collate import Collator, TextRules
from vlmkit.data.prompts import PROMPTS
from vlmkit.train.module import StageModule, batch_weight
from vlmkit.train.stage import apply_stage

RESULTS = Path(__file__).parent / "results" / "packing.md"
IMAGES, ROUNDS = 32, 8


def step_seconds(module, batch):
    """CPU seconds of forward and backward, after which gradients are dropped."""
    began = time.process_time()
    losses = module(batch)
    sum(total / batch_weight(name, batch) for name, (total, _) in losses.items()).backward()
    module.zero_grad(set_to_none=True)
    return time.process_time() - began


def main():
    """Time both sides in turn and write the table."""
    recipe = load_recipe("quickstart", ["stages.vqa.objective=next_token"], check_blocks)
    stage = recipe.stages[1]
    model = assemble(recipe)
    apply_stage(model, stage)
    module = StageModule(model, stage)
    samples = build_data(stage.data)
    processor = model.processor
    common = (
        processor.tokenizer,
        PROMPTS["chat_template"],
        processor.count_fitted,
        processor.image_token_id,
        0.05,
    )
    collators = {pack: Collator(processor.specs, TextRules(*common, pack)) for pack in ("prefix", "none")}
    seconds = {pack: [] for pack in collators}
    questions = 0
    for turn in range(ROUNDS + 1):
        chosen = [(samples[i], 0) for i in range(turn * IMAGES, (turn + 1) * IMAGES)]
        for pack, collate in collators.items():
            took = step_seconds(module, collate(chosen))
            if turn:
                seconds[pack].append(took)
        questions += sum(len(s.conversations) for s, _ in chosen) if turn else 0
    rates = {pack: questions / sum(took) for pack, took in seconds.items()}
    ratio = statistics.median(b / a for a, b in zip(seconds["prefix"], seconds["none"]))
    text = (
        "# Prefix packing\n\n`python benchmarks/packing.py`: quickstart model, forward and backward, "
        f"{IMAGES} images a step with all their questions, {ROUNDS} steps of each in turn.\n\n"
        "| rows | questions per CPU second |\n| --- | --- |\n"
        f"| one question a row | {rates['none']:.0f} |\n| prefix packed | {rates['prefix']:.0f} |\n\n"
        f"Median ratio: {ratio:.2f}x. Losses are equal (tests/train).\n"
    )
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
