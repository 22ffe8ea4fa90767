"""A saved run through transformers' auto classes and pipeline: the inputs and the text of `VLM.ask`."""

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

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
    found = pipe(text=[chat(*one) for one in asked], return_full_text=False, **NEW)
    assert [rows[0]["generated_text"].strip() for rows in found] == [model.ask(*one, **NEW) for one in asked]


def test_images_and_text_give_the_text_of_ask(model, pipe, noise, tmp_path):
    noise(1, (40, 24)).save(tmp_path / "image.png")
    text = "<image>what color is it?"
    for image in (noise(1, (40, 24)), str(tmp_path / "image.png")):
        (found,) = pipe(images=image, text=text, **NEW)
        answer = model.ask(image, "what color is it?", **NEW)
        assert found["generated_text"] == f"{text} {answer}"


def test_the_conversation_goes_on_with_the_answer(model, pipe, noise):
    (found,) = pipe(text=chat([noise(1)], "say yes"), **NEW)
    turn = found["generated_text"][-1]
    assert turn["role"] == "assistant" and turn["content"].strip() == model.ask(noise(1), "say yes", **NEW)


def test_a_pipeline_that_batches_gives_the_same_text(model, pipe, noise):
    """Rows of different length with as many images each: the pipeline pads them itself, on the left."""
    asked = [([noise(1)], "what color is it?"), ([noise(2)], "say yes")]
    chats = [chat(*one) for one in asked]
    found = pipe(text=chats, batch_size=2, return_full_text=False, **NEW)
    assert [rows[0]["generated_text"].strip() for rows in found] == [model.ask(*one, **NEW) for one in asked]


def test_beams_are_those_of_generate(model, pipe, asked):
    options = {**NEW, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    for images, text in asked:
        inputs = model_inputs(model, [question(images, text)])
        expected = model.generate(**inputs, **options)
        found = pipe(text=chat(images, text), return_tensors=True, generate_kwargs=options)
        assert found[0]["generated_token_ids"].tolist() == expected[0].tolist()
        best = pipe(text=chat(images, text), return_full_text=False, generate_kwargs=options)[0]
        assert best["generated_text"].strip() == model.ask(images, text, num_beams=3, **NEW)


def test_the_auto_model_takes_what_the_auto_processor_gives(run, model, asked):
    auto, processor = AutoModelForImageTextToText.from_pretrained(run), AutoProcessor.from_pretrained(run)
    inputs = processor.apply_chat_template(
        [chat(*one) for one in asked],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    )
    new = auto.generate(**inputs, do_sample=False, **NEW)[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new, skip_special_tokens=True)
    assert [text.strip() for text in texts] == [model.ask(*one, **NEW) for one in asked]


def test_nothing_is_logged_as_unsupported(run, python):
    done = python(
        "import sys, vlmkit; vlmkit.register_auto_classes(); vlmkit.register_auto_classes();"
        "from transformers import pipeline;"
        "pipe = pipeline('image-text-to-text', model=sys.argv[1]);"
        "print(pipe(text=[{'role': 'user', 'content': 'say yes'}], max_new_tokens=2))",
        str(run),
    )
    assert done.returncode == 0 and "generated_text" in done.stdout, done.stderr
    assert "not supported" not in done.stderr
