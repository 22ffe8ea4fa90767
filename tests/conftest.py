"""Tiny models and data for the whole suite, and a process that each test leaves as it found it."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

VIT = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
CLIP = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4, "projection_dim": 8,
}  # fmt: skip
LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
LLMS = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 128},
    "gpt_neox": {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {
        "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 256,
    },
}  # fmt: skip
# Question, images, answer: one image, several, none.
ROWS = [
    ("what color is it?", 1, "red"),
    ("is there a circle in the image?", 1, "no"),
    ("which of them is a blue square?", 2, "the second one"),
    ("what is one and one?", 0, "two"),
    ("how many images are there?", 3, "three of them"),
    ("say yes", 0, "yes"),
]

# Folders of longer trainings.
LONGER = ["end_to_end"]

# Where `make test` puts timm and the torchvision that it imports: out of sight of everything else.
TIMM = Path(__file__).parents[1] / ".timm"
# Modules of both while no test uses them, and operators that stand in for those of another torch.
ASIDE = {}
STANDING_IN = []
OPERATORS = [
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
]


def pytest_runtest_setup(item):
    """To draw the curves takes longer than a tiny training: a run of a test has an empty file in their place.

    Whole ones are drawn by the tests of the folder that trains longer, and by those of the drawing itself.
    """
    run = sys.modules.get("vlmkit.train.run")
    if run is not None:
        own = item.path.parent.name in LONGER
        run.plot_metrics = sys.modules["vlmkit.train.curves"].plot_metrics if own else _no_curves


def _no_curves(metrics, picture):
    picture.touch()


@contextmanager
def timm_in_sight():
    """timm and torchvision can be imported inside; outside they look as if they were not installed.

    Others would use a torchvision that they see, and one from PyPI beside a CPU build of torch is broken for
    them: its compiled operators do not load.
    """
    from transformers.utils import is_timm_available, is_torchvision_available

    # Both remember their first answer.
    assert {is_timm_available(), is_torchvision_available()} <= {True, False}
    path = list(sys.path)
    sys.path.append(str(TIMM))
    sys.modules.update(ASIDE)
    try:
        yield _import_timm()
    finally:
        sys.path[:] = path
        for name in [n for n in sys.modules if n.partition(".")[0] in ("timm", "torchvision")]:
            ASIDE[name] = sys.modules.pop(name)


def _import_timm():
    if not importlib.util.find_spec("timm"):
        pytest.fail("timm is not here; `make test` installs it into .timm (see the Makefile)")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        import torch

        # They are only named: no model of timm calls them.
        STANDING_IN.append(torch.library.Library("torchvision", "DEF"))
        for operator in OPERATORS:
            STANDING_IN[0].define(operator)
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    return importlib.import_module("timm")


@pytest.fixture
def hear():
    """A function: a reporter that keeps the notes that it is told, as `notes`."""
    from vlmkit.train.metrics import Silent

    class Heard(Silent):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    return Heard


@pytest.fixture
def timm():
    """The package timm, for one test."""
    with timm_in_sight() as package:
        yield package


@pytest.fixture(autouse=True)
def global_state():
    """Torch's random state, threads and default type after a test are those from before it."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_rng_state(before[0])
    torch.set_num_threads(before[1])
    torch.set_default_dtype(before[2])


@pytest.fixture
def made():
    """A context that sees what tensors are made in it; `most` is the size of the largest that has numbers."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Made(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, call, types, args=(), kwargs=None):
            found = call(*args, **(kwargs or {}))
            tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor) and not leaf.is_meta]
            self.most = max([self.most, *(tensor.numel() for tensor in tensors)])
            return found

    return Made()


@pytest.fixture
def waited_for(monkeypatch):
    """An event that is set when one thread begins to wait for the end of another."""
    event, join = threading.Event(), threading.Thread.join

    def told(thread, timeout=None):
        event.set()
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", told)
    return event


@pytest.fixture(scope="session")
def python():
    """A function: run code in a process of its own, which finds the packages as the tests do."""
    root = Path(__file__).parents[1]
    path = os.pathsep.join(str(root / folder) for folder in (".", "connectors", "retrieval"))

    def run(code, *arguments):
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})

    return run


@pytest.fixture(scope="session")
def noise():
    """A function: seed to an image of noise, with the size it is asked for."""

    def draw(seed, size=(16, 16)):
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        return Image.fromarray(pixels)

    return draw


@pytest.fixture(scope="session")
def make_sample(noise):
    """A function: name, number of images and (question, answer) pairs to a sample with images of its own."""
    from vlmkit.data.sample import IMAGE, Message, Sample

    def make(name, images, *pairs, captions=(), weight=1.0):
        sources = []
        for i in range(images):
            png = io.BytesIO()
            noise(hash_of(name) + i).save(png, "png")
            sources.append(png.getvalue())
        conversations = tuple(
            (Message("user", (*[IMAGE] * images, question)), Message("assistant", (answer,), weight))
            for question, answer in pairs
        )
        return Sample(name, tuple(sources), conversations, captions)

    def hash_of(name):
        return sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31

    return make


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory, noise):
    """`ROWS` as a LLaVA data set: one image, several, none."""
    folder = tmp_path_factory.mktemp("rows")
    rows = []
    for i, (question, images, answer) in enumerate(ROWS):
        names = [f"{i}-{j}.png" for j in range(images)]
        for j, name in enumerate(names):
            noise(10 * i + j).save(folder / name)
        asked = {"from": "human", "value": "<image>" * images + question}
        turns = [asked, {"from": "gpt", "value": answer}]
        rows.append({"id": f"row{i}", "conversations": turns} | ({"image": names} if names else {}))
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture
def rows(rows_file):
    """The samples of `rows_file`."""
    from vlmkit.data.formats import DATA_FORMATS

    return DATA_FORMATS["llava_json"](rows_file, rows_file.parent)


@pytest.fixture(scope="session")
def tiny_recipe(rows_file):
    """A function to a recipe: tiny ViT or other encoder, MLP connector, tiny LLM, stages on `rows_file`."""
    from vlmkit.recipe import Recipe

    data = {"type": "llava_json", "path": str(rows_file), "image_folder": str(rows_file.parent)}

    def make(llm="llama", encoder=None, connector=None, llm_options=None, stages=None, splice=None, **others):
        stage = {
            "name": "only",
            "data": data,
            "train": {"connector": {"lr": 1e-3}},
            "steps": 1,
            "batch_size": 2,
        }
        return Recipe.model_validate(
            {
                "name": "tiny",
                "precision": "fp32",
                "model": {
                    "encoders": [encoder or {"type": "vit", **VIT}],
                    "connector": {"type": "mlp", "pool": 2, **(connector or {})},
                    "llm": {"type": llm, **LLMS[llm], **(llm_options or {})},
                    "splice": splice or {},
                },
                "stages": [{**stage, **changes} for changes in stages or [{}]],
                **others,
            }
        )

    return make


@pytest.fixture(scope="session")
def roughen():
    """A function that gives a model weights with which each part matters: no zero bias, no flat logits."""

    def fill(model, seed=0):
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                random = torch.randn(parameter.shape, generator=generator)
                scale = 1.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
                parameter.copy_(random * scale + (parameter.ndim == 1 and "norm" in name.lower()))
        return model

    return fill


@pytest.fixture(scope="session")
def tiny_vlm(tiny_recipe, roughen):
    """A function: what `tiny_recipe` takes to the assembled model with rough weights, in evaluation mode."""
    from vlmkit.assemble import assemble

    return lambda *args, seed=0, **options: roughen(assemble(tiny_recipe(*args, **options)), seed).eval()


@pytest.fixture(scope="session")
def tiny_clip():
    """The block of a tiny CLIP encoder, LLaVA's hidden state."""
    return {"type": "clip", "vision_config": CLIP, "layer": -2}


@pytest.fixture
def collating():
    """A collator that gives the (sample, epoch) pairs of a micro-batch to a function."""
    return lambda batch=list: SimpleNamespace(prepare=lambda sample, epoch: (sample, epoch), batch=batch)


@pytest.fixture
def collate():
    """A function: a model and samples to the batch of a training step, with the options of `TextRules`."""
    from vlmkit.data.collate import Collator, TextRules
    from vlmkit.data.prompts import PROMPTS

    def make(model, samples, prompt="chat_template", text=True, **options):
        p = model.processor
        rules = TextRules(p.tokenizer, PROMPTS[prompt], p.count_fitted, p.image_token_id, **options)
        return Collator(p.specs, rules if text else None)([(sample, 0) for sample in samples])

    return make
