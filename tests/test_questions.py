"""A connector that reads the question: which text it gets, in training, in a batch, and at every turn."""

import pytest
import torch

from vlmkit.assemble import assemble, check_fit
from vlmkit.data.sample import IMAGE, Message
from vlmkit.data.tokens import question_ids
from vlmkit.errors import UsageError
from vlmkit.recipe import Recipe
from vlmkit.vlm import VLM

QFORMER = {"type": "qformer", "num_queries": 3, "depth": 2, "heads": 2, "question": True}
ASKED = Message("user", (IMAGE, "what color is it?"))
SAID = Message("assistant", ("red",))
AGAIN = Message("user", ("is there a circle in the image?",))


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    """A function: options of a stage to a recipe whose connector reads the question."""

    def make(**stage):
        raw = tiny_recipe(stages=[stage]).model_dump()
        raw["model"]["connector"] = QFORMER
        return Recipe.model_validate(raw)

    return make


@pytest.fixture(scope="module")
def model(recipe, roughen):
    return roughen(assemble(recipe())).eval()


@pytest.fixture
def asked(model, noise):
    """A function: texts of questions about one image each to inputs."""

    def make(*texts):
        rows = [(Message("user", (IMAGE, text)),) for text in texts]
        return model.processor.prompts(rows, [[noise(i)] for i in range(len(texts))])

    return make


def tokens(model, batch):
    with torch.no_grad():
        seen = model.encode_images(batch["pixel_values"], batch["image_sizes"])
        asked = model._questions(batch["question_ids"])
        return [torch.cat(row) for row in model.image_tokens(seen, batch["image_sizes"], asked)]


def test_the_question_decides_about_the_image_tokens(model, asked):
    one, other = asked("what color is it?"), asked("say yes")
    assert torch.equal(one["pixel_values"], other["pixel_values"])
    assert (tokens(model, one)[0] - tokens(model, other)[0]).abs().max() > 1e-3


def test_questions_of_a_batch_do_not_meet(model, asked):
    texts = ("what color is it?", "say yes", "is there a circle in the image?")
    together = asked(*texts)
    assert sorted((together["question_ids"] >= 0).sum(1).tolist()) == [2, 5, 8]
    for i, run in enumerate(tokens(model, together)):
        alone = {k: together[k][i : i + 1] for k in ("pixel_values", "image_sizes", "question_ids")}
        assert (tokens(model, alone)[0] - run).abs().max() < 1e-5


def test_no_answer_is_in_it_and_a_chat_keeps_it(model):
    tokenizer = model.processor.tokenizer
    first = question_ids((ASKED,), tokenizer)
    assert tokenizer.decode(first) == "what color is it ?"
    assert question_ids((ASKED, SAID, AGAIN), tokenizer) == first
    assert question_ids((Message("system", ("say yes",)), ASKED), tokenizer) == first


def test_training_and_asking_give_the_same_question(model, noise, collate, make_sample):
    batch = collate(
        model, [make_sample("a", 1, ("say yes", "yes"), ("what color is it?", "red"))], questions=True
    )
    prompts = [(Message("user", (IMAGE, text)),) for text in ("say yes", "what color is it?")]
    inputs = model.processor.prompts(prompts, [[noise(0)], [noise(0)]])
    assert batch.question_ids_BQ.tolist() == inputs["question_ids"].tolist()


def test_generation_with_a_cache_is_generation_without(model, asked):
    batch = asked("what color is it?", "say yes")
    given = {"max_new_tokens": 5, "min_new_tokens": 5}
    assert torch.equal(model.generate(**batch, **given), model.generate(**batch, **given, use_cache=False))


def test_it_is_saved_and_loaded_and_asked(model, asked, noise, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = VLM.from_pretrained(tmp_path)
    batch = asked("say yes")
    assert torch.equal(tokens(loaded, batch)[0], tokens(model, batch)[0])
    image = noise(5)
    turns = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "say yes"}]}
    ]
    assert loaded.ask(image, "say yes", max_new_tokens=3) == loaded.chat(turns, max_new_tokens=3)


def test_questions_cannot_share_an_image(recipe, model):
    with pytest.raises(UsageError, match=r"depend on the question.*pack: none"):
        check_fit(recipe(pack="prefix"), model)


def test_rendered_text_is_refused(model, noise):
    with pytest.raises(UsageError, match="apply_chat_template"):
        model.processor(images=noise(1), text="<image> say yes")


def test_inputs_without_a_question_are_refused(model, asked):
    batch = {k: v for k, v in asked("say yes").items() if k != "question_ids"}
    with pytest.raises(UsageError, match="no question_ids"):
        model(**batch)
