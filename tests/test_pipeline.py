"""A saved run through transformers' auto classes and pipeline: the inputs and the text of `VLM.ask`."""

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, pipeline

from vlmkit import VLM
from vlmkit.inference import model_inputs, question

NEW = {"max_new_tokens": 6}
MODELS = {"vit-llama": ("llama", False), "clip-llama": ("llama", True), "vit-gpt2": ("gpt2", False)}


def chat(images, text):
    """What a user of transformers writes."""
    return [{"role": "user", "content": [*({"type": "image", "image": i} for i in images), say(text)]}]


def say(text):
    return {"type": "text", "text": text}


@pytest.fixture(scope="module", params=MODELS)
def run(request, tiny_vlm, tiny_clip, tmp_path_factory):
    """A saved model that does not stop early."""
    llm, clip = MODELS[request.param]
    model = tiny_vlm(llm, **({"encoder": tiny_clip} if clip else {}))
    model.generation_config.eos_token_id = None
    folder = tmp_path_factory.mktemp("run")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(run):
    return VLM.from_pretrained(run).eval()


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline("image-text-to-text", model=str(run))


@pytest.fixture
def asked(noise):
    """Images and questions of several lengths: one image, several of several sizes, none."""
    return [
        ([noise(1, (40, 24))], "what color is it?"),
        ([noise(2), noise(3, (9, 30))], "which of them is a blue square?"),
        ([], "say yes"),
    ]


def test_messages_give_the_text_of_ask(model, pipe, asked):
    for images, text in asked:
        (found,) = pipe(text=chat(images, text), return_full_text=False, **NEW)
        answer = model.ask(images, text, **NEW)
        assert answer and found["generated_text"].strip() == answer
    chats = [chat(*one) for one in asked]
    together = pipe(text=chats, return_full_text=False, **NEW)
    assert [rows[0]["generated_text"].strip() for rows in together] == [
        model.ask(*one, **NEW) for one in asked
    ]
