"""Questions to answers: cached, batched, in beams and as a stream, the answer is the same."""

import threading

import pytest
import torch
from transformers import StoppingCriteria

from vlmkit.errors import UsageError, VlmkitError
from vlmkit.inference import conversation, model_inputs, question

LLMS = ["llama", "gpt2", "opt", "gemma2"]
NEW = {"max_new_tokens": 8}


@pytest.fixture
def queries(noise):
    """Prompts of several lengths with one image, several and none."""
    return [
        question([noise(1)], "what color is it?"),
        question([], "say yes"),
        question([noise(2), noise(3)], "which of them is a blue square?"),
        question([noise(4), noise(5), noise(6)], "yes"),
        question([noise(7)], "is there a circle in the image?"),
    ]


def ungreedy(model):
    """Let no row end early, so that every comparison runs over all steps."""
    model.generation_config.eos_token_id = None
    return model


@torch.no_grad()
def generate(model, queries, **options):
    """New tokens of each row, and the logits that chose them."""
    inputs = model_inputs(model, queries)
    out = model.generate(
        **inputs, **{**NEW, **options}, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


@pytest.mark.parametrize("llm", LLMS)
def test_the_cache_changes_nothing(tiny_vlm, queries, llm):
    model = ungreedy(tiny_vlm(llm))
    cached, cached_logits = generate(model, queries)
    plain, plain_logits = generate(model, queries, use_cache=False)
    assert cached.tolist() == plain.tolist()
    assert (cached_logits - plain_logits).abs().max() <= 1e-5


@pytest.mark.parametrize("llm", LLMS)
def test_a_left_padded_batch_equals_one_by_one(tiny_vlm, queries, llm):
    """Among them models with absolute positions, which must not count the padding."""
    model = ungreedy(tiny_vlm(llm))
    together, logits = generate(model, queries)
    for row, query in enumerate(queries):
        alone, alone_logits = generate(model, [query])
        assert together[row].tolist() == alone[0].tolist()
        assert (logits[row] - alone_logits[0]).abs().max() <= 1e-5


def test_the_encoder_runs_once_an_answer(tiny_vlm, queries):
    model, calls = ungreedy(tiny_vlm()), []
    model.vision_encoder.register_forward_hook(lambda *args: calls.append(1))
    generate(model, queries)
    assert len(calls) == 1


def test_beams_with_several_images_a_row(tiny_vlm, queries):
    model = ungreedy(tiny_vlm())
    options = {"num_beams": 2, "num_return_sequences": 2}
    together, _ = generate(model, queries, **options)
    assert len(together) == 2 * len(queries)
    for row, query in enumerate(queries):
        alone, _ = generate(model, [query], **options)
        assert together[2 * row : 2 * row + 2].tolist() == alone.tolist()


def test_several_samples_of_a_row_see_its_own_images(tiny_vlm, queries):
    model = ungreedy(tiny_vlm())
    greedy, _ = generate(model, queries)
    inputs = model_inputs(model, queries)
    # The most likely token alone is left to sample from: each sample must be the greedy answer.
    sampled = model.generate(**inputs, **NEW, do_sample=True, top_k=1, num_return_sequences=3)
    new = sampled[:, inputs["input_ids"].shape[1] :]
    assert new.tolist() == greedy.repeat_interleave(3, 0).tolist()


def test_an_image_token_is_never_generated(tiny_vlm, queries):
    model = ungreedy(tiny_vlm())
    image, head = model.config.image_token_id, model.get_output_embeddings()
    with torch.no_grad():
        head.weight[image] = head.weight.abs().sum(0)
        raw = model(**model_inputs(model, queries[:1])).logits[0, -1]
        bias = 1000 * (torch.arange(len(raw)) == image)
    head.register_forward_hook(lambda module, args, output: output + bias)
    new, logits = generate(model, queries)
    assert (logits.argmax(-1) == image).all()
    assert image not in new


def test_the_stream_joins_to_the_answer(tiny_vlm, noise):
    model = ungreedy(tiny_vlm())
    asked = ([noise(2), noise(3)], "which of them is a blue square?")
    pieces = list(model.stream(*asked, **NEW))
    assert len([p for p in pieces if p]) > 2
    assert "".join(pieces).strip() == model.ask(*asked, **NEW)


def test_an_error_while_streaming_is_raised(tiny_vlm, noise):
    model = tiny_vlm()
    with pytest.raises(ValueError, match="no_such_option"):
        list(model.stream(noise(1), "say yes", no_such_option=1))


def test_streaming_leaves_the_mode(tiny_vlm, noise):
    model = tiny_vlm().train()
    for _ in model.stream(noise(1), "say yes", **NEW):
        assert not model.training
    assert model.training
    for options, text in (({"no_such_option": 1}, "say yes"), ({}, "a gnu?")):
        with pytest.raises(ValueError, match=r"no_such_option|gnu"):
            list(model.stream(noise(1), text, **options))
        assert model.training


@pytest.mark.parametrize("drop", [lambda stream: stream.close(), lambda stream: None], ids=["close", "drop"])
def test_a_stream_that_nobody_reads_stops_generating(tiny_vlm, noise, waited_for, drop):
    """The tenth step of 200 waits until who closes the stream waits for its end: there is no eleventh."""
    model, steps = ungreedy(tiny_vlm()).train(), []

    def held(*_):
        steps.append(len(steps) < 9 or waited_for.wait(60))

    model.get_output_embeddings().register_forward_hook(held)
    threads = set(threading.enumerate())
    stream = model.stream(noise(1), "say yes", max_new_tokens=200)
    next(stream)
    drop(stream)
    del stream
    assert set(threading.enumerate()) <= threads and model.training
    assert len(steps) <= 10 and all(steps)


def test_a_stream_takes_stopping_criteria_of_the_caller(tiny_vlm, noise):
    model = ungreedy(tiny_vlm())
    lengths = []

    class Third(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            lengths.append(input_ids.shape[1])
            return torch.full(input_ids.shape[:1], len(lengths) == 3)

    list(model.stream(noise(1), "say yes", **NEW, stopping_criteria=[Third()]))
    assert len(lengths) == 3


def test_ask_each_equals_ask(tiny_vlm, noise, monkeypatch):
    monkeypatch.setattr("vlmkit.inference.BATCH", 2)
    model = ungreedy(tiny_vlm())
    images = [noise(i) for i in range(5)]
    each = model.ask_each(images, "what color is it?", **NEW)
    assert each == [model.ask(image, "what color is it?", **NEW) for image in images]
    assert len(set(each)) > 1
    assert model.ask_each([], "what color is it?") == []


def test_a_chat_is_asked_with_its_history(tiny_vlm, noise, tmp_path):
    model = ungreedy(tiny_vlm())
    noise(1).save(tmp_path / "one.png")
    image = {"type": "image", "image": tmp_path / "one.png"}
    first = {"role": "user", "content": [image, {"type": "text", "text": "what color is it?"}]}
    assert model.chat([first], **NEW) == model.ask(noise(1), "what color is it?", **NEW)
    history = [first, {"role": "assistant", "content": "red"}, {"role": "user", "content": "say yes"}]
    assert model.chat(history, **NEW) != model.chat(history[2:], **NEW)


def test_asking_leaves_the_mode(tiny_vlm, noise):
    model = tiny_vlm().train()
    model.ask(noise(1), "say yes", **NEW)
    with pytest.raises(ValueError, match="no_such_option"):
        model.ask(noise(1), "say yes", no_such_option=1)
    assert model.training


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "nothing to answer"),
        ([{"role": "assistant", "content": "yes"}], "last message must be the user's"),
        ([{"content": "yes"}], "needs 'role' and 'content', found: content"),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], "'video'.* is not possible"),
        ([{"role": "user", "content": [{"type": "image"}]}], "is not possible"),
    ],
)
def test_a_conversation_that_makes_no_sense_is_explained(messages, says):
    with pytest.raises(UsageError, match=says):
        conversation(messages)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (" ", "question is empty"),
        ("what is <image>?", "'<image>'"),
        ("yes</s>", "'</s>'"),
        ("is there a giraffe or a gnu?", "'giraffe', 'or', 'gnu'"),
    ],
)
def test_a_question_that_the_model_cannot_take_is_explained(tiny_vlm, noise, text, says):
    with pytest.raises(UsageError, match=says) as raised:
        tiny_vlm().ask(noise(1), text)
    assert "\n" not in str(raised.value)


def test_an_image_that_is_not_there_is_named(tiny_vlm):
    with pytest.raises(VlmkitError, match=r"none\.png does not exist"):
        tiny_vlm().ask("none.png", "say yes")
