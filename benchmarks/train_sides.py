"""One side of `train.py` in a process of its own: trains, and writes what each step took."""

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import datasets
import torch
from PIL import Image
from train_data import read_chats
from train_models import model_block
from transformers import (
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from vlmkit import VLM, train_recipe
from vlmkit.recipe import Recipe
from vlmkit.train.metrics import Silent, read_metrics
from vlmkit.train.schedule import permutation

# Longer than all tokens of a batch: one row, and no padding.
LONG = 4096
BATCH, LR, DECAY, SEED, IGNORE = 8, 1e-3, 0.01, 0, -100


class Clock:
    """Wall and CPU seconds at the end of each step, and the peak of resident memory."""

    def __init__(self):
        self.steps, self.start = [], resident("VmRSS")

    def tick(self):
        """A step is done."""
        self.steps.append((time.perf_counter(), time.process_time()))

    def report(self, losses, tokens, positions):
        """What the driver reads."""
        peak = resident("VmHWM")
        return {
            "steps": self.steps,
            "peak": peak,
            "above": peak - self.start,
            "losses": losses,
            "tokens": tokens,
            "positions": positions,
        }


def resident(field):
    """Bytes of this process from Linux: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def transformers_side(folder, steps, grouped=False, flipped=False):
    """`LlavaForConditionalGeneration` and `Trainer`, the tower frozen."""
    clock = Clock()
    processor = LlavaProcessor.from_pretrained(folder / "hf")
    model = LlavaForConditionalGeneration.from_pretrained(folder / "hf", dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    collate = Collate(processor, folder, flipped)
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        weight_decay=DECAY,
        lr_scheduler_type="cosine",
        train_sampling_strategy="group_by_length" if grouped else "sequential",
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=SEED,
    )
    trainer = Recorded(
        model=model,
        args=arguments,
        train_dataset=table(folder),
        data_collator=collate,
        processing_class=processor,
        callbacks=[Ticks(clock)],
    )
    trainer.train()
    return clock.report([float(loss) for loss in trainer.losses], collate.tokens, collate.positions)


class Recorded(Trainer):
    """Keeps each step's loss, which the log rounds and averages."""

    losses = ()

    def compute_loss(self, *args, **kwargs):
        """See `Trainer`."""
        loss = super().compute_loss(*args, **kwargs)
        self.losses = [*self.losses, loss.detach()]
        return loss


class Ticks(TrainerCallback):
    """Tells the clock of each step."""

    def __init__(self, clock):
        self.clock = clock

    def on_step_end(self, *args, **kwargs):
        """See `TrainerCallback`."""
        self.clock.tick()


class Collate:
    """Chats and images through the processor, padded to the longest; answers are supervised.

    With its rows reversed a batch is the same to mathematics, and other to rounding: the measure of noise.
    """

    def __init__(self, processor, folder, flipped):
        self.processor, self.folder, self.flipped = processor, folder, flipped
        self.tokens = self.positions = 0
        tokenizer = processor.tokenizer
        self.head = tokenizer("<|im_start|>assistant\n").input_ids
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def __call__(self, rows):
        """A batch of the model's inputs."""
        rows = rows[::-1] if self.flipped else rows
        texts = [self.processor.apply_chat_template(json.loads(row["chat"])) for row in rows]
        images = [self.open(row["image"]) for row in rows if row["image"]]
        batch = self.processor(text=texts, images=images or None, padding=True, return_tensors="pt")
        supervised = torch.tensor([self.answers(ids) for ids in batch["input_ids"].tolist()])
        batch["labels"] = batch["input_ids"].where(supervised, IGNORE)
        self.tokens += int(batch["attention_mask"].sum())
        self.positions += batch["input_ids"].numel()
        return batch

    def answers(self, ids):
        """Which tokens are an answer's, with its end; faster than the processor's `assistant_masks`."""
        found, place, size = [False] * len(ids), 0, len(self.head)
        while place < len(ids):
            if ids[place : place + size] == self.head:
                start, place = place + size, ids.index(self.end, place) + 1
                found[start:place] = [True] * (place - start)
            else:
                place += 1
        return found

    def open(self, name):
        """An image."""
        with Image.open(self.folder / name) as image:
            return image.convert("RGB")


def table(folder):
    """The rows in vlmkit's order, with the lengths by which `Trainer` groups."""
    chats = read_chats(folder)
    rows = []
    for i in permutation(len(chats), SEED, 0):
        messages, image = chats[i]
        text = json.dumps(messages)
        rows.append({"chat": text, "image": image, "length": len(text) // 5 + 49 * bool(image)})
    return datasets.Dataset.from_list(rows)


def vlmkit_side(folder, steps, **options):
    """The same as a recipe: starts from the saved model, trains connector and language model."""
    clock = Clock()
    trained = {"lr": LR, "weight_decay": DECAY}
    stage = {
        "name": "train",
        "data": {"type": "llava_json", "path": str(folder / "rows.json"), "image_folder": str(folder)},
        "train": {"connector": trained, "llm": trained},
        "batch_size": BATCH,
        "steps": steps,
        "warmup": 0,
        "checkpoint_every": 0,
        **options,
    }
    made = {"name": "train", "init_from": str(folder / "vlmkit"), "model": model_block(folder)}
    output = str(folder / "out" / str(time.time_ns()))
    recipe = Recipe.model_validate(
        {**made, "seed": SEED, "precision": "fp32", "output": output, "stages": [stage]}
    )
    reporter, shapes = Reports(clock), []
    with seen_rows(shapes):
        run = train_recipe(recipe, reporter=reporter)
    rows = read_metrics(run.path / "metrics.jsonl")
    return {
        **reporter.report,
        "losses": [r["loss"] for r in rows],
        "tokens": sum(r["tokens"] for r in rows),
        "positions": sum(shape.numel() for shape in shapes),
    }


@contextmanager
def seen_rows(shapes):
    """Inside, the shape of each batch that the language model gets is appended to `shapes`."""
    decode = VLM.decode

    def noted(model, read, *args, **kwargs):
        shapes.append(read.embeds_BLD.shape[:2])
        return decode(model, read, *args, **kwargs)

    VLM.decode = noted
    try:
        yield
    finally:
        VLM.decode = decode


class Reports(Silent):
    """Tells the clock of each step; the peak is that of training, not of saving."""

    def __init__(self, clock):
        self.clock, self.report = clock, {}

    def step(self, step, values):
        """See `Reporter`."""
        self.clock.tick()
        self.report = self.clock.report([], 0, 0)


SIDES = {
    "transformers": transformers_side,
    "transformers, rows reversed": lambda folder, steps: transformers_side(folder, steps, flipped=True),
    "transformers, grouped": lambda folder, steps: transformers_side(folder, steps, grouped=True),
    "vlmkit": vlmkit_side,
    "vlmkit, grouped": lambda folder, steps: vlmkit_side(folder, steps, group="modality_length"),
    "vlmkit, packed": lambda folder, steps: vlmkit_side(folder, steps, pack_length=LONG),
}

if __name__ == "__main__":
    name, folder, steps, file = sys.argv[1:]
    report = SIDES[name](Path(folder), int(steps))
    Path(file).write_text(json.dumps(report))
