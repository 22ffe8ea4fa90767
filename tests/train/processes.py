"""One process of several: trains stages as a list of jobs says, and leaves gradients and checkpoints.

Started by test_distributed.py and test_deepspeed.py with a file of jobs and a folder. The samples lie so that
of two processes the second one gets text alone.
"""

import gc
import io
import json
import math
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from vlmkit.assemble import assemble
from vlmkit.data.collate import Collator, TextRules
from vlmkit.data.formats.mixture import Mixture, Share
from vlmkit.data.prompts import PROMPTS
from vlmkit.data.sample import IMAGE, Message, Sample
from vlmkit.errors import UsageError
from vlmkit.recipe import Recipe
from vlmkit.train import probe
from vlmkit.train.distribute import make_accelerator, whole
from vlmkit.train.loop import run_stage
from vlmkit.train.metrics import MetricsFile, Silent
from vlmkit.train.module import StageModule
from vlmkit.train.reach import freeze_unreached
from vlmkit.train.schedule import permutation
from vlmkit.train.stage import apply_stage
from vlmkit.train.stage_run import Interrupted, StageRun
from vlmkit.train.steps import StageData
from vlmkit.train.zero import ZeroOptimizer

SAMPLES = 8
QUESTIONS = [("what color is it?", "red"), ("say yes", "yes"), ("how many images are there?", "two of them")]


def sample(place):
    """At even places one to three questions about an image, at odd ones a question without any."""
    if place % 2:
        return Sample(f"text{place}", (), (conversation((), "what is one and one?", "two " * place),))
    png = io.BytesIO()
    pixels = np.random.default_rng(place).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(png, "png")
    asked = tuple(conversation((IMAGE,), *pair) for pair in QUESTIONS[: 1 + place // 2 % 3])
    return Sample(f"image{place}", (png.getvalue(),), asked, (f"picture {place}",))


def conversation(images, question, answer):
    return Message("user", (*images, question)), Message("assistant", (answer,))


def samples():
    """So that position p of the first epoch is `sample(p)`."""
    ordered = [None] * SAMPLES
    for place, number in enumerate(permutation(SAMPLES, 0, 0)):
        ordered[number] = sample(place)
    return ordered


def mixture():
    """Samples with an image, and samples without, as two sources."""
    kinds = {"images": range(0, SAMPLES, 2), "texts": range(1, SAMPLES, 2)}
    firsts = dict(zip(kinds, (0, SAMPLES // 2), strict=True))
    shares = [Share(name, firsts[name], len(places), len(places)) for name, places in kinds.items()]
    return Mixture([[sample(place) for place in places] for places in kinds.values()], shares)


class Tower:
    """A text tower in which each text is a random direction."""

    embed_dim = 8

    def embed(self, texts):
        seeds = (torch.Generator().manual_seed(ord(text[-1])) for text in texts)
        return torch.stack([torch.randn(self.embed_dim, generator=seed) for seed in seeds])


def rough(model):
    """Weights with which each part matters: no gate that is shut."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.vision_encoder._text_tower = Tower()
    return model


def poisoned(ids, gradient=False):
    """A hook that makes the loss of batches with one of these samples no number; that of probes stays.

    With `gradient` the loss is as it was, and its gradient is no number.
    """

    def broken(total):
        return total + 0.0 * (0.0 * total).sqrt() if gradient else total * math.nan

    def hook(module, args, options, losses):
        bad = set(ids) & set(args[0].sample_ids) and not options
        return {name: (broken(total), weight) for name, (total, weight) in losses.items()} if bad else losses

    return hook


def run_job(recipe, job, folder):
    """Train a stage; the last step's gradients, by parameter, are left beside its checkpoints."""
    os.environ |= {
        "ACCELERATE_USE_FSDP": str(job.get("sharded", False)),
        "FSDP_VERSION": job.get("version", "2"),
    }
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": str("zero" in job), "DS_ACCELERATOR": "cpu"}
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = json.dumps(job.get("zero"))
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
    recipe = Recipe.model_validate(recipe)
    stage = recipe.stages[0].model_copy(update=job.get("stage", {}))
    into = folder / job["name"]
    into.mkdir(exist_ok=True)
    model = rough(assemble(recipe))
    try:
        accelerator = make_accelerator(job.get("precision", "no"))
    except UsageError as error:
        (into / "refused.txt").write_text(str(error))
        return
    rows = apply_stage(model, stage)
    module = StageModule(model, stage)
    freeze_unreached(module, rows)
    hook = poisoned(job.get("poison", ()), job.get("gradient", False))
    module.register_forward_hook(hook, with_kwargs=True)
    p = model.processor
    asks = {"pack": stage.pack, "pack_length": stage.pack_length, "questions": p.connector.reads_text}
    rules = TextRules(p.tokenizer, PROMPTS["chat_template"], p.count_fitted, p.image_token_id, **asks)
    data = StageData(mixture() if job.get("mixed") else samples(), Collator(p.specs, rules), seed=0)
    metrics = MetricsFile(into / "metrics.jsonl", accelerator.is_main_process)
    seen = {}

    def keep(optimizer, args, kwargs):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        assert all(p.grad is not None for p in params), "a parameter that trains was not touched"
        kinds = {type(p).__name__ for p in params}
        assert kinds == ({"DTensor"} if job.get("sharded") else {"Parameter"}), kinds
        if job.get("sharded"):
            lent()
        if job.get("stop") and accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.update({str(i): whole(p.grad).clone().contiguous() for i, p in enumerate(params)})

    def lent():
        held = [p.untyped_storage().nbytes() for p in module.parameters()]
        assert max(held) <= 8, "the whole module is in memory beside its shares"

    def keep_shares(optimizer):
        from deepspeed.utils import safe_get_full_grad

        lent()
        if job.get("stop") and accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        found = [safe_get_full_grad(p) for group in optimizer.param_groups for p in group["params"]]
        seen.update({str(i): gradient.clone() for i, gradient in enumerate(found)})
        step(optimizer)

    step = ZeroOptimizer.step
    zero = patch.object(ZeroOptimizer, "step", keep_shares)
    handle = register_optimizer_step_pre_hook(keep) if "zero" not in job else nullcontext()
    frozen = {n: p.detach().clone() for n, p in module.named_parameters() if not p.requires_grad}
    resume = Path(job["resume"]) if "resume" in job else None
    run = StageRun(into, accelerator, metrics, Silent(), stage.clip)
    fewest = patch.object(probe, "FEWEST_SAMPLES", job.get("fewest", probe.FEWEST_SAMPLES))
    try:
        with fewest, zero, handle:
            run_stage(module, stage, data, run, resume)
        assert not job.get("stop"), "the signal to the second process was not seen"
    except Interrupted:
        assert job.get("stop") and accelerator.is_main_process != run.stop
    own = dict(module.named_parameters())
    changed = [name for name, before in frozen.items() if not torch.equal(own[name], before)]
    assert not changed and (frozen or "contrastive" in module.weights), changed
    if accelerator.is_main_process:
        save_file(seen, into / "gradients.safetensors")
        after = {n: p.detach().contiguous() for n, p in module.named_parameters() if p.requires_grad}
        save_file({n: t.clone() for n, t in after.items()}, into / "after.safetensors")
    accelerator.wait_for_everyone()
    accelerator.free_memory()


def main(file, folder):
    torch.set_num_threads(1)
    # What is imported stays: to look through it at the end of each job takes a second.
    gc.freeze()
    for job in json.loads(Path(file).read_text()):
        run_job(job["recipe"], job, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
