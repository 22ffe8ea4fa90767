"""Padded rows against grouped and packed ones: tokens per CPU second of training, padding not counted.

    python benchmarks/long_rows.py

Samples are of mixed lengths, with no image, one or two. All sides take steps in turn in one process; prints
the ratios and writes benchmarks/results/long_rows.md.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import random
import time
from pathlib import Path

import torch
from PIL import Image

from vlmkit.assemble import assemble, text_rules
from vlmkit.data.collate import Collator
from vlmkit.data.sample import IMAGE, Message, Sample
from vlmkit.llm.attend import attend_in_segments
from vlmkit.recipe import Recipe
from vlmkit.train.module import StageModule, batch_weight
from vlmkit.train.stage import apply_stage
from vlmkit.train.steps import StageData, Steps

RESULTS = Path(__file__).parent / "results" / "long_rows.md"
SAMPLES, BATCH, STEPS, ROOM = 768, 16, 6, 2048
LLM = {
    "type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
RECIPE = {
    "name": "long_rows",
    "precision": "fp32",
    "model": {
        "encoders": [
            {"type": "vit", "image_size": 128, "patch_size": 16, "width": 128, "depth": 2, "heads": 4}
        ],
        "connector": {"type": "mlp"},
        "llm": LLM,
    },
    "stages": [
        {
            "name": "only",
            "data": {"type": "easy_vqa", "limit": 200},
            "train": {part: {"lr": 1e-3} for part in ("connector", "llm")},
            "batch_size": BATCH,
            "steps": STEPS,
        }
    ],
}
SIDES = {
    "padded": {},
    "grouped by modality and length": {"group": "modality_length"},
    f"packed, {ROOM} tokens a row": {"pack_length": ROOM},
    f"packed, {ROOM} tokens a row, one call with a mask": {"pack_length": ROOM},
}


def mixed_samples():
    """Answers of log-normal length, 55 words in the middle, 800 at most; a third of samples has no image."""
    draw = random.Random(0)
    image = Image.new("RGB", (128, 128), (200, 30, 30))
    samples = []
    for number in range(SAMPLES):
        images = draw.choice([0, 1, 1, 1, 2, 0])
        length = min(800, max(3, int(draw.lognormvariate(4.0, 1.0))))
        answer = " ".join(draw.choices(["what", "color", "is", "the", "circle", "in", "image"], k=length))
        turns = Message("user", (*[IMAGE] * images, "what is in the image")), Message("assistant", (answer,))
        samples.append(Sample(f"sample{number}", (image,) * images, (turns,)))
    return samples


def step_seconds(module, batches):
    """CPU seconds of forward and backward of a step, after which gradients are dropped."""
    began = time.process_time()
    weight = sum(batch_weight("next_token", batch) for batch in batches)
    for batch in batches:
        (module(batch)["next_token"][0] / weight).backward()
    module.zero_grad(set_to_none=True)
    return time.process_time() - began


def main():
    """Time all sides in turn."""
    recipe = Recipe.model_validate(RECIPE)
    model, samples = assemble(recipe), mixed_samples()
    stages = {name: recipe.stages[0].model_copy(update=change) for name, change in SIDES.items()}
    apply_stage(model, recipe.stages[0])
    module = StageModule(model, recipe.stages[0])
    steps = {}
    for name, stage in stages.items():
        collate = Collator(model.processor.specs, text_rules(stage, "chat_template", model.processor))
        steps[name] = Steps(stage, StageData(samples, collate, seed=0), 0, 1)
    seconds, held, computed = (dict.fromkeys(SIDES, 0.0) for _ in range(3))
    for turn in range(-1, STEPS):
        for name in SIDES:
            batches = steps[name][max(turn, 0)]
            attend_in_segments(model.language_model, name.endswith("a row"))
            took = step_seconds(module, batches)
            if turn >= 0:
                seconds[name] += took
                held[name] += sum(int((b.branches_BL >= 0).sum()) for b in batches)
                computed[name] += sum(b.branches_BL.numel() for b in batches)
    write({name: held[name] / took for name, took in seconds.items()}, held, computed)


def write(rates, held, computed):
    """The table."""
    lines = [
        f"| {name} | {rate:.0f} | {rate / rates['padded']:.2f}x | {1 - held[name] / computed[name]:.0%} |"
        for name, rate in rates.items()
    ]
    text = (
        "# Rows of several samples\n\n`python benchmarks/long_rows.py`: forward and backward of a small "
        f"model (4 layers of width 256), {STEPS} steps of {BATCH} samples of mixed lengths, all sides in "
        "turn. Tokens are those of text and images, without padding.\n\n"
        "| rows | tokens per CPU second | ratio | padding |\n| --- | --- | --- | --- |\n"
        + "\n".join(lines)
        + "\n\nLosses and gradients are equal (tests/train/test_packing.py).\n"
    )
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
