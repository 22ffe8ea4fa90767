"""Tokenising segments."""

import pytest
from transformers import PreTrainedTokenizerFast

from vlmkit.data.sample import IMAGE, Message
from vlmkit.data.segments import Segment
from vlmkit.data.tokens import TokenRow, check_supervised, check_vocabulary, tokenize, unknown_words
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.llm import add_image_token


def run(segments, tokenizer, counts=(), **kwargs):
    return tokenize(segments, tokenizer, tokenizer.image_token_id, counts, **kwargs)


def test_images_become_their_counts_without_weight(words):
    row = run([Segment(IMAGE, 1.0), Segment("red", 1.0), Segment(IMAGE), Segment("circle")], words, [2, 3])
    assert words.convert_ids_to_tokens(row.ids) == [
        "<s>",
        *["<image>"] * 2,
        "red",
        *["<image>"] * 3,
        "circle",
    ]
    assert row.weights == (0, 0, 0, 1, 0, 0, 0, 0)


def test_bos_is_there_once_and_only_where_the_tokenizer_adds_one(any_tokenizer):
    bos = any_tokenizer.bos_token_id
    for text in ("red", "<s>red", ""):
        assert run([Segment(text)], any_tokenizer).ids.count(bos) == 1
    from tokenizers import processors

    nothing = processors.TemplateProcessing(single="$A", special_tokens=[])
    any_tokenizer.backend_tokenizer.post_processor = nothing
    assert bos not in run([Segment("red")], any_tokenizer).ids


def pieces(row, tokenizer):
    return list(zip(tokenizer.convert_ids_to_tokens(row.ids), row.weights))


def test_a_token_that_meets_a_supervised_span_is_supervised(byte_bpe):
    row = run([Segment("a"), Segment(" red cir", 1.0), Segment("cle")], byte_bpe)
    assert pieces(row, byte_bpe) == [("<s>", 0.0), ("a", 0.0), ("Ġred", 1.0), ("Ġcircle", 1.0)]


def test_no_token_reaches_from_the_prompt_into_an_answer(byte_bpe):
    """The prompt `a ` ends with a space; tokenised with the answer it would be part of the answer."""
    assert run([Segment("a red", 1.0)], byte_bpe).ids == run([Segment("a red")], byte_bpe).ids
    row = run([Segment("a "), Segment("red", 1.0), Segment(" image "), Segment("red", 1.0)], byte_bpe)
    first = run([Segment("a ")], byte_bpe)
    second = run([Segment("a "), Segment("red", 1.0), Segment(" image ")], byte_bpe)
    assert row.ids[: len(first.ids)] == first.ids
    assert row.ids[: len(second.ids)] == second.ids
    assert byte_bpe.decode(row.ids, skip_special_tokens=True) == "a red image red"
    assert pieces(row, byte_bpe)[1:3] == [("a", 0.0), ("Ġ", 0.0)]


def test_eos_weight_touches_supervised_eos_only(words):
    row = run([Segment("yes</s>"), Segment("red</s>", 2.0)], words, eos_weight=0.25)
    assert row.weights == (0, 0, 0, 2.0, 0.5)
    assert run([Segment("red</s>", 1.0)], words, eos_weight=0.0).weights == (0, 1.0, 0)


def test_slots_and_counts_must_agree(words):
    with pytest.raises(VlmkitError, match="1 image slots and 2 images"):
        run([Segment(IMAGE), Segment("red", 1.0)], words, [1, 1])


def test_the_tokenizer_must_know_the_image_token(words):
    with pytest.raises(UsageError, match=r"does not have '<image>' under the id 99.*add_image_token"):
        tokenize([Segment(IMAGE)], words, 99, [1])
    plain = PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer, eos_token="</s>")
    advised = add_image_token(plain)
    assert tokenize([Segment(IMAGE)], plain, advised, [2]).ids[-2:] == (advised, advised)


def test_a_slow_tokenizer_is_refused(words):
    class Slow:
        is_fast = False

    with pytest.raises(UsageError, match="Slow gives no offsets"):
        tokenize([Segment("red")], Slow(), 4, [])


def test_check_supervised_names_the_sample():
    check_supervised(TokenRow((1, 2), (0.0, 0.5)), "cat")
    with pytest.raises(VlmkitError, match="sample 'cat' has no supervised token among 2"):
        check_supervised(TokenRow((1, 2), (0.0, 0.0)), "cat")


def test_unknown_words(words, byte_bpe):
    assert unknown_words("Is there a PURPLE hexagon? purple!", words) == ["PURPLE", "hexagon", "purple", "!"]
    assert unknown_words("is there a red circle?", words) == []
    assert unknown_words("zebra 😀", byte_bpe) == []


def test_check_vocabulary(words, byte_bpe):
    talk = (Message("user", (IMAGE, "a gnu?")), Message("assistant", ("a red gnu or gecko",)))
    with pytest.raises(UsageError, match="lacks: 'gnu', 'or', 'gecko'; use other words"):
        check_vocabulary(talk, words)
    check_vocabulary(talk, words, ids=(5, 6))
    check_vocabulary(talk, byte_bpe)
    with pytest.raises(UsageError, match="user's text contains the tokenizer's special token '<image>'"):
        check_vocabulary((Message("user", ("<image> red?",)),), byte_bpe, ids=(5, 6))
