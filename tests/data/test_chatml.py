"""chatml against LLaVA-NeXT's rule for Qwen, token by token.

The rule is written anew from github.com/LLaVA-VL/LLaVA-NeXT, `llava/train/train.py`
(`preprocess_multimodal`, `preprocess_qwen`): each message is tokenised alone; supervised are the assistant's
messages with their headers, and every newline, `<|im_start|>` and `<|im_end|>` of the row. What is meant:
answers and their ends.
"""

import pytest

from vlmkit.data.prompts import PROMPTS
from vlmkit.data.sample import IMAGE, Message
from vlmkit.data.tokens import check_vocabulary, tokenize
from vlmkit.errors import UsageError, VlmkitError

START, END = "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module")
def qwen(build_newline_runs):
    """A vocabulary with Qwen's control tokens, and runs of newlines as tokens of their own."""
    return build_newline_runs(
        ["<|endoftext|>", START, END, "<image>"],
        eos_token=END,
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<image>", "start": START},
    )


def talk(*texts, system=None):
    told = [Message("system", (system,))] if system is not None else []
    return (*told, *(Message(("user", "assistant")[i % 2], parts(t)) for i, t in enumerate(texts)))


def parts(text):
    pieces = [p for piece in text.split("<image>") for p in (IMAGE, piece)][1:]
    return tuple(p for p in pieces if p != "") or ("",)


TALKS = {
    "one turn": talk("what shape is it?", "a red circle"),
    "three turns": talk("what shape is it?", "a red circle", "is it small?", "no", "why?", "yes"),
    "system": talk("what shape is it?", "a red circle", "why?", "be brief", system="be brief"),
    "empty system": talk("what shape is it?", "a red circle", system=""),
    "image first": talk("<image>\nwhat shape is it?", "a red circle"),
    "image first, no newline": talk("<image>what shape is it?", "a red circle"),
    "image last": talk("what shape is it? <image>", "a red circle", "is it small?", "no"),
    "image in the middle": talk("is <image> red?", "yes"),
    "image alone": talk("<image>", "a red circle"),
    "two images": talk("is <image> like <image>?", "yes", "why?", "a circle"),
    "empty answer": talk("what is it?", "", "is it red?", "yes"),
    "answer of newlines inside": talk("what\nis it?", "a\n\nred\ncircle"),
    "answer starts with a space": talk("what is it?", " a red circle", "is it?", "  yes "),
    "unicode": talk("<image>\nwas ist das? 形 😀", "ein roter Kreis, né? 圆 🔴", "?", "👩‍👩‍👧 é"),
}


def moved(message):
    """`preprocess_multimodal`: a turn's only image goes to the front, unless it is there."""
    text = "".join("<image>" if part is IMAGE else part for part in message.parts)
    if text.count("<image>") == 1 and not text.startswith("<image>"):
        text = ("<image>\n" + text.replace("<image>", "").strip()).strip()
    return text


def original(conversation, tokenizer):
    """Ids, the flags of `preprocess_qwen`, and those that are meant."""
    if conversation[0].role != "system":
        conversation = (Message("system", ("You are a helpful assistant.",)), *conversation)
    ids, flags, meant = [], [], []
    for message in conversation:
        head = tokenizer(f"{START}{message.role}\n")["input_ids"]
        whole = tokenizer(f"{START}{message.role}\n{moved(message)}{END}\n")["input_ids"]
        answer = message.role == "assistant"
        ids += whole
        flags += [answer] * len(whole)
        # The newline behind the end is never generated, the header always given.
        meant += [answer and len(head) <= i < len(whole) - 1 for i in range(len(whole))]
    loud = tokenizer.convert_tokens_to_ids(["Ċ", START, END])
    return ids, [flag or i in loud for i, flag in zip(ids, flags)], meant


def ours(conversation, tokenizer, **kwargs):
    segments = PROMPTS["chatml"].render(conversation, tokenizer, **kwargs)
    slots = sum(s.part is IMAGE for s in segments)
    row = tokenize(segments, tokenizer, tokenizer.image_token_id, [1] * slots)
    return list(row.ids), [w > 0 for w in row.weights]


@pytest.mark.parametrize("case", TALKS)
def test_ids_are_llava_nexts_and_answers_with_their_ends_are_supervised(qwen, case):
    ids, flags, meant = original(TALKS[case], qwen)
    found, kept = ours(TALKS[case], qwen)
    assert found == ids
    assert kept == meant
    too_many = [i for i, flag, right in zip(ids, flags, meant) if flag and not right]
    assert set(too_many) >= set(qwen.convert_tokens_to_ids([START, "Ċ", END]))
    assert all(flag for flag, right in zip(flags, meant) if right)


def test_llava_next_joins_header_and_answer_where_the_answer_starts_with_a_newline(qwen):
    turns = talk("what is it?", "\na red circle", "why?", "\n\nyes")
    prompt = ours(turns[:1], qwen, generate=True)[0]
    assert original(turns, qwen)[0][: len(prompt)] != prompt
    found, kept = ours(turns, qwen)
    assert found[: len(prompt)] == prompt
    assert qwen.decode([i for i, k in zip(found, kept) if k]) == f"\na red circle{END}\n\nyes{END}"


def test_control_tokens_in_text_are_refused(qwen):
    for role, token in (("user", START), ("assistant", END), ("user", "<|endoftext|>")):
        text = f"a {token} b"
        turns = talk(text, "yes") if role == "user" else talk("is it?", text)
        with pytest.raises(UsageError, match=f"the {role}'s text contains the tokenizer's special token"):
            check_vocabulary(turns, qwen, ids=(5,))
    with pytest.raises(VlmkitError, match="contains the image placeholder"):
        ours((Message("user", ("<image> written",)), Message("assistant", ("yes",))), qwen)


def test_a_tokenizer_without_chatml_is_refused(byte_bpe):
    with pytest.raises(UsageError, match=r"chatml needs the token <\|im_end\|>, which"):
        ours(TALKS["one turn"], byte_bpe)
