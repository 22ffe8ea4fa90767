"""Samples to batches."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from vlmkit.data.batch import RowImages, image_tensors, pixel_batches, row_images
from vlmkit.data.collate import Collator, TextRules, prompt_batch
from vlmkit.data.prompts import PROMPTS
from vlmkit.data.sample import IMAGE, Message, Sample
from vlmkit.data.tokens import TokenRow
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.llm.words import build_words_tokenizer

SPEC = VisionSpec(image_size=16, patch_size=8, width=4, resample="bilinear")


def png(colour, size=(16, 16)):
    """An image that is black in its left half."""
    image = Image.new("RGB", size, colour)
    image.paste("black", (0, 0, size[0] // 2, size[1]))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def ask(*parts, answer="red"):
    return (Message("user", parts), Message("assistant", (answer,)))


ONE = Sample(
    "one",
    (png("red"),),
    (
        ask(IMAGE, "what shape is in the image?", answer="circle"),
        ask(IMAGE, "is a circle red?", answer="yes"),
    ),
    ("a red circle",),
)
TWO = Sample("two", (png("red"), png("blue", (32, 8))), (ask(IMAGE, "a", IMAGE, "in the image?"),))
TEXT = Sample("text", (), (ask("is red blue?", answer="a"),))


def rules(tokenizer, prompt="chat_template", **kwargs):
    def count(size):
        return 2 if size[0] == size[1] else 3

    return TextRules(tokenizer, PROMPTS[prompt], count, tokenizer.image_token_id, **kwargs)


@pytest.fixture
def collator(words):
    return Collator((SPEC,), rules(words, pack="prefix"))


def test_packed_multi_image_and_text_rows_in_one_batch(collator, words):
    batch = collator([(ONE, 0), (TWO, 0), (TEXT, 0)])
    assert batch.sample_ids == ("one", "two", "text")
    assert batch.captions == (("a red circle",), (), ())
    images = (batch.input_ids_BL == words.image_token_id).sum(1)
    assert images.tolist() == [2, 2 + 3, 0]
    none = [0, 0, 0]
    assert batch.image_sizes.tolist() == [[[16, 16, 0], none], [[16, 16, 0], [32, 8, 0]], [none, none]]
    view = 3 * 16 * 16
    assert batch.pixel_values.shape == (3, 2 * view) and batch.pixel_values.dtype == torch.float32
    second = torch.from_numpy(SPEC.preprocess(TWO.open_images()[1])[0])
    assert torch.equal(batch.pixel_values[1, view:], second.flatten())
    assert not batch.pixel_values[2].any() and not batch.pixel_values[0, view:].any()
    assert batch.branches_BL.amax(1).tolist() == [2, 0, 0]


def test_text_tensors_agree(collator, words):
    batch = collator([(ONE, 0), (TEXT, 0)])
    supervised = batch.labels_BL != -100
    assert torch.equal(supervised, batch.weights_BL > 0)
    assert torch.equal(batch.labels_BL[supervised], batch.input_ids_BL[supervised])
    assert words.decode(batch.labels_BL[0][supervised[0]]) == "circle </s> yes </s>"
    padding = batch.branches_BL == -1
    assert padding.sum(1).tolist()[0] == 0 and padding[1].any()
    assert (batch.input_ids_BL[padding] == words.pad_token_id).all()
    assert not padding[1, :-1][padding[1, 1:].logical_not()].any(), "padding is on the right"
    assert {
        t.dtype for t in (batch.input_ids_BL, batch.labels_BL, batch.positions_BL, batch.branches_BL)
    } == {torch.int64}


def test_without_packing_each_conversation_is_a_row(words):
    batch = Collator((SPEC,), rules(words))([(ONE, 0), (TEXT, 0)])
    assert batch.sample_ids == ("one", "one", "text")
    assert batch.image_sizes.tolist() == [[[16, 16, 0]], [[16, 16, 0]], [[0, 0, 0]]]
    assert torch.equal(batch.pixel_values[0], batch.pixel_values[1])
    assert batch.branches_BL.unique().tolist() == [-1, 0]


@pytest.mark.parametrize("prompt", ["plain", "chat_template"])
def test_images_that_cannot_be_shared_are_not_packed(words, prompt):
    """Answers right behind the image, or questions in front of it: packed, the image would be in twice."""
    captions = (ask(IMAGE, answer="a red circle"), ask(IMAGE, answer="one circle"))
    questions = (ask("what is there?", IMAGE), ask("is a circle red?", IMAGE))
    sample = Sample("s", (png("red"),), captions if prompt == "plain" else questions)
    batch = Collator((SPEC,), rules(words, prompt, pack="prefix"))([(sample, 0)])
    assert batch.sample_ids == ("s", "s")
    assert (batch.input_ids_BL == words.image_token_id).sum(1).tolist() == [2, 2]


def test_without_text_each_sample_is_a_row():
    batch = Collator((SPEC,))([(ONE, 0), (TWO, 0)])
    assert batch.sample_ids == ("one", "two")
    assert batch.input_ids_BL is None and batch.labels_BL is None and batch.branches_BL is None
    assert (batch.image_sizes[..., 0] > 0).tolist() == [[True, False], [True, True]]


def test_without_images_there_are_no_pixels(collator):
    batch = collator([(TEXT, 0)])
    assert batch.pixel_values is None and batch.image_sizes is None


def test_to_moves_all_but_sizes_and_casts_pixels_only(collator):
    batch = collator([(ONE, 0)]).to("meta", torch.bfloat16)
    tensors = [v for v in vars(batch).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 7 and [t.is_meta for t in tensors].count(False) == 1
    assert not batch.image_sizes.is_meta
    assert batch.pixel_values.dtype == torch.bfloat16
    assert batch.weights_BL.dtype == torch.float32
    assert batch.sample_ids == ("one",)


def flipped(collator, sample, epoch):
    right = collator([(sample, epoch)]).pixel_values[0].view(3, 16, 16)[0, :, 8:]
    return bool((right < 0).all())


def test_hflip_depends_on_seed_epoch_and_sample_alone():
    collator = Collator((SPEC,), hflip=0.5, seed=3)
    samples = [dataclasses.replace(ONE, id=str(i)) for i in range(60)]
    first = [flipped(collator, s, 0) for s in samples]
    assert 15 < sum(first) < 45
    assert [flipped(Collator((SPEC,), hflip=0.5, seed=3), s, 0) for s in reversed(samples)] == first[::-1]
    assert [flipped(collator, s, 1) for s in samples] != first
    assert [flipped(Collator((SPEC,), hflip=0.5, seed=4), s, 0) for s in samples] != first
    assert not any(flipped(Collator((SPEC,)), s, 0) for s in samples[:9])
    assert all(flipped(Collator((SPEC,), hflip=1.0), s, 0) for s in samples[:9])


def test_too_long_rows_name_sample_and_both_lengths(words):
    length = Collator((SPEC,), rules(words))([(TEXT, 0)]).input_ids_BL.shape[1]
    Collator((SPEC,), rules(words, max_length=length))([(TEXT, 0)])
    with pytest.raises(VlmkitError, match=f"sample 'text' makes a row of {length} tokens.*{length - 1}"):
        Collator((SPEC,), rules(words, max_length=length - 1))([(TEXT, 0)])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("s", (), ()), "sample 's' has no conversation"),
        (Sample("s", (), ((Message("user", ("red?",)),),)), "sample 's': the roles are"),
        (
            Sample("s", (), ((Message("user", ("red?",)), Message("assistant", ("a",), weight=0.0)),)),
            "sample 's' has no supervised token",
        ),
        (Sample("s", (b"no image",), (ask(IMAGE),)), "sample 's': image bytes cannot be read"),
    ],
)
def test_errors_name_the_sample(collator, sample, message):
    with pytest.raises(VlmkitError, match=message):
        collator([(ONE, 0), (sample, 0)])


@pytest.mark.parametrize("prompt", ["plain", "vicuna_v1", "chat_template"])
@pytest.mark.parametrize(
    ("question", "answer", "says"),
    [
        ("is the gnu red?", "a zebra", "vocabulary lacks: 'gnu', 'zebra'; use"),
        ("is a circle red?</s>", "yes", "user's text contains the tokenizer's special token '</s>'; remove"),
        ("is a circle red?", "<s>yes", "assistant's text contains the tokenizer's special token '<s>'"),
        ("is a circle red?", "<unk>", "assistant's text contains the tokenizer's special token '<unk>'"),
    ],
)
def test_text_that_would_become_something_else_is_refused(words, prompt, question, answer, says):
    sample = Sample("s", (png("red"),), (ask(IMAGE, question, answer=answer),))
    with pytest.raises(UsageError) as raised:
        Collator((SPEC,), rules(words, prompt))([(ONE, 0), (sample, 0)])
    assert str(raised.value).startswith("sample 's': the ") and says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_words_that_a_prompt_format_adds_are_not_the_samples():
    small = build_words_tokenizer(["what shape is in the image? circle is a circle red? yes"])
    batch = Collator((SPEC,), rules(small, "vicuna_v1"))([(ONE, 0)])
    assert (batch.input_ids_BL == small.unk_token_id).any()


def test_a_vocabulary_that_can_write_everything_has_nothing_to_look_up(byte_bpe, monkeypatch):
    monkeypatch.setattr("vlmkit.data.tokens.unknown_words", None)
    Collator((SPEC,), rules(byte_bpe))([(Sample("s", (), (ask("zebra 😀"),)), 0)])
    byte_bpe.unk_token = byte_bpe.eos_token
    Collator((SPEC,), rules(byte_bpe))([(Sample("s", (), (ask("zebra 😀"),)), 0)])


def test_wrong_use_stays_a_usage_error(words):
    words.chat_template = None
    with pytest.raises(UsageError, match="sample 'text': the tokenizer has no chat template"):
        Collator((SPEC,), rules(words))([(TEXT, 0)])
    words.pad_token = None
    with pytest.raises(UsageError, match="no padding token"):
        rules(words)


def test_prompt_batch_pads_on_the_left():
    rows = [TokenRow((1, 9, 9, 7), (0.0,) * 4), TokenRow((1, 5), (0.0,) * 2)]
    images = [row_images(TWO.open_images(), [(16, 16, 0), (32, 8, 0)], [SPEC]), row_images([], [], [SPEC])]
    batch = prompt_batch(rows, images, pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 9, 9, 7], [0, 0, 1, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["image_sizes"].tolist() == [[[16, 16, 0], [32, 8, 0]], [[0, 0, 0]] * 2]
    assert batch["pixel_values"].shape == (2, 2 * 3 * 16 * 16)
    assert set(prompt_batch(rows[1:], images[1:], pad_id=0)) == {"input_ids", "attention_mask"}


def test_a_row_holds_the_views_of_each_encoder_in_turn():
    """Of every image for the first encoder, then of every image for the next, at the stated level."""
    native = VisionSpec(16, 4, 8, layout={"type": "native", "max_patches": 40}, mean=(0.1, 0.2, 0.3))
    pictures = TWO.open_images()
    row = row_images(pictures, [(16, 16, 0), (32, 8, 2)], [SPEC, native])
    parts = [SPEC.preprocess(pictures[0]), SPEC.preprocess(pictures[1])]
    parts += [native.preprocess(pictures[0]), native.preprocess(pictures[1], level=2)]
    assert row.pixels.tolist() == [x for views in parts for view in views for x in view.ravel().tolist()]
    tensors = image_tensors([RowImages(np.zeros(0, np.float32)), row])
    first, second = pixel_batches(tensors["pixel_values"], tensors["image_sizes"], [SPEC, native])
    assert torch.equal(first.pixels_ICHW[1], torch.from_numpy(parts[1][0]))
    assert torch.equal(second.views()[1], torch.from_numpy(parts[3][0]))
    assert second.grids_I2.tolist() == [[6, 6], [2, 8]] and second.image_of_view_I.tolist() == [0, 1]


def test_pixels_that_do_not_fit_the_sizes_are_refused():
    row = row_images(TWO.open_images(), [(16, 16, 0), (32, 8, 0)], [SPEC])
    tensors = image_tensors([row])
    for wrong in (tensors["pixel_values"][:, :-3], tensors["pixel_values"].repeat(1, 2)):
        with pytest.raises(VlmkitError, match=r"have \d+ numbers a row and image_sizes ask for 1536"):
            list(pixel_batches(wrong, tensors["image_sizes"], [SPEC]))


def test_an_image_that_does_not_fit_the_budget_names_the_sample():
    def refuse(sizes):
        raise UsageError("too many tokens")

    with pytest.raises(UsageError, match="sample 'one': too many tokens"):
        Collator((SPEC,), fit=refuse)([(ONE, 0)])
