"""plain, vicuna_v1 and llama_2 against LLaVA's own rules, token by token.

The rules are written anew, in short, from github.com/haotian-liu/LLaVA: `llava/conversation.py`
(`get_prompt`), `llava/mm_utils.py` (`tokenizer_image_token`) and `llava/train/train.py`
(`preprocess_multimodal`, `preprocess_plain`, `preprocess_v1`, `preprocess_llama_2`). Where they go wrong, a
test says what is meant.
"""

import pytest

from vlmkit.data.prompts import PROMPTS, VICUNA_SYSTEM
from vlmkit.data.prompts.llava import LLAMA_2_SYSTEM
from vlmkit.data.sample import IMAGE, Message
from vlmkit.data.tokens import tokenize
from vlmkit.errors import UsageError

SEPARATORS = {"vicuna_v1": " ASSISTANT: ", "llama_2": "[/INST] "}


def talk(*texts, system=None):
    """Texts of user and assistant in turn, with `<image>` where an image is."""
    told = [Message("system", (system,))] if system is not None else []
    return (*told, *(Message(("user", "assistant")[i % 2], parts(t)) for i, t in enumerate(texts)))


def parts(text):
    pieces = [p for piece in text.split("<image>") for p in (IMAGE, piece)][1:]
    return tuple(p for p in pieces if p != "") or ("",)


TALKS = {
    "one turn": talk("what shape is it?", "a red circle"),
    "three turns": talk(
        "what shape is it?", "a red circle", "is it small?", "no", "is it red?", "yes, a red one"
    ),
    "system": talk("what shape is it?", "a red circle", "why?", "be brief", system="be brief"),
    "image first": talk("<image>\nwhat shape is it?", "a red circle"),
    "image last": talk("what shape is it?\n<image>", "a red circle", "is it small?", "no"),
    "image in the middle": talk("is <image> red?", "yes"),
    "image alone": talk("<image>", "a red circle"),
    "image in a later turn": talk("is it small?", "no", "<image> is it red?", "yes", "why?", "a circle"),
    "one image a turn": talk("<image>\nis it red?", "yes", "is it?\n<image>", "no"),
    "one letter": talk("<image>\nis it red?", "a", "is it?", "b"),
    "answer starts with a newline": talk("<image>\nwhat is it?", "\na red circle", "is it?", "\n\nyes"),
    "answer starts with spaces": talk("<image>\nwhat is it?", " a red circle", "is it?", "   yes"),
    "answer ends with a space": talk("<image>\nwhat is it?", "a red circle ", "is it?", "yes\n"),
    "question with spaces around": talk("  what is it? ", "a red circle"),
    "unicode": talk("<image>\nwas ist das? 形 😀", "ein roter Kreis, né? 圆 🔴", "?", "👩‍👩‍👧 é"),
}


def moved(text):
    """`preprocess_multimodal`: the image in front, on a line of its own."""
    return ("<image>\n" + text.replace("<image>", "").strip()).strip() if "<image>" in text else text


def written(message):
    return "".join("<image>" if part is IMAGE else part for part in message.parts)


def prompt_text(name, conversation):
    """`get_prompt` over what `preprocess_multimodal` leaves."""
    system = {"vicuna_v1": VICUNA_SYSTEM, "llama_2": LLAMA_2_SYSTEM}[name]
    if conversation[0].role == "system":
        system, conversation = conversation[0].text, conversation[1:]
    texts = [moved(written(m)) for m in conversation]
    rounds = zip(texts[::2], texts[1::2])
    if name == "vicuna_v1":
        said = [f"USER: {q} ASSISTANT:" + (f" {a}</s>" if a else "") for q, a in rounds]
        return f"{system} " + "".join(said)
    said = [f"{q} [/INST]" + (f" {a} </s>" if a else "") for q, a in rounds]
    return f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n" + "<s>[INST] ".join(said)


def image_ids(text, tokenizer):
    """`tokenizer_image_token`: the pieces between images apart, BOS kept once."""
    first, *rest = (tokenizer(piece)["input_ids"] for piece in text.split("<image>"))
    return first + [i for piece in rest for i in (tokenizer.image_token_id, *piece[1:])]


def original(name, conversation, tokenizer):
    """Ids and supervised flags by `preprocess_v1` and `preprocess_llama_2`."""
    text = prompt_text(name, conversation)
    ids = image_ids(text, tokenizer)
    keep, place = [True] * len(ids), 1
    for said in filter(None, text.split("</s>")):
        question, *answers = said.split(SEPARATORS[name])
        if len(answers) != 1:
            break
        asked = len(image_ids(question + SEPARATORS[name], tokenizer)) - 2
        keep[place : place + asked] = [False] * asked
        place += len(image_ids(said, tokenizer))
    keep[0], keep[place:] = False, [False] * len(keep[place:])
    return ids, keep if place == len(ids) else [False] * len(ids)


def ours(name, conversation, tokenizer, generate=False):
    segments = PROMPTS[name].render(conversation, tokenizer, generate=generate)
    slots = sum(s.part is IMAGE for s in segments)
    row = tokenize(segments, tokenizer, tokenizer.image_token_id, [1] * slots)
    return list(row.ids), [w > 0 for w in row.weights]


@pytest.mark.parametrize("name", SEPARATORS)
@pytest.mark.parametrize("case", TALKS)
def test_ids_and_supervised_positions_are_llavas(llama_like, name, case):
    ids, keep = original(name, TALKS[case], llama_like)
    assert any(keep), "the original masks this one as a whole; it belongs to the tests below"
    assert ours(name, TALKS[case], llama_like) == (ids, keep)


@pytest.mark.parametrize("turns", [TALKS["image first"], talk("what is it? <image>", "\n a red circle 😀\n")])
def test_plain_is_llavas(llama_like, turns):
    ids = image_ids(f"<image>{turns[1].text}\n", llama_like)
    asked = len(image_ids("<image>", llama_like))
    assert ours("plain", turns, llama_like) == (ids, [i >= asked for i in range(len(ids))])


def spoken(name, answer):
    """What is meant to be supervised of an answer, in words."""
    return f" {answer}</s>" if name == "vicuna_v1" else f" {answer} </s>"


def texts(row, tokenizer):
    """The supervised text, one piece a run of supervised tokens."""
    runs, before = [], False
    for token, kept in zip(*row):
        if kept:
            runs = [*runs, []] if not before else runs
            runs[-1].append(token)
        before = kept
    return [tokenizer.decode(run) for run in runs]


def assert_meant(name, turns, tokenizer):
    """What is supervised is each answer with its end, and nothing else."""
    answers = [m.text for m in turns if m.role == "assistant"]
    assert texts(ours(name, turns, tokenizer), tokenizer) == [spoken(name, a) for a in answers]


@pytest.mark.parametrize("name", SEPARATORS)
def test_llava_loses_a_sample_whose_answer_has_the_headers_words(llama_like, byte_bpe, name):
    turns = talk("say it", "I say ASSISTANT: or [/INST] now", "why?", "yes")
    assert not any(original(name, turns, llama_like)[1])
    assert_meant(name, turns, byte_bpe)


@pytest.mark.parametrize("name", SEPARATORS)
def test_llava_writes_no_end_after_an_empty_answer(llama_like, byte_bpe, name):
    turns, end = talk("what is it?", "", "is it red?", "yes"), llama_like.eos_token_id
    assert original(name, turns, llama_like)[0].count(end) == 1
    assert ours(name, turns, llama_like)[0].count(end) == 2
    assert_meant(name, turns, byte_bpe)


@pytest.mark.parametrize("name", SEPARATORS)
def test_llava_makes_one_image_of_several_in_a_turn(llama_like, byte_bpe, name):
    turns, image = talk("<image> and <image>, are they red?", "yes"), llama_like.image_token_id
    assert original(name, turns, llama_like)[0].count(image) == 1
    assert ours(name, turns, llama_like)[0].count(image) == 2
    assert_meant(name, turns, byte_bpe)


def test_llava_loses_a_sample_where_a_round_alone_has_other_tokens(unigram):
    """A tokenizer that marks only the very first word with a space (Llama's, not `legacy`) and has rounds."""
    turns = TALKS["three turns"]
    ids, keep = original("vicuna_v1", turns, unigram)
    found, kept = ours("vicuna_v1", turns, unigram)
    assert found == ids and not any(keep)
    tokens = "".join(unigram.convert_ids_to_tokens([i for i, k in zip(found, kept) if k]))
    assert tokens.replace("▁", " ") == "".join(spoken("vicuna_v1", turns[i].text) for i in (1, 3, 5))


@pytest.mark.parametrize("name", SEPARATORS)
def test_llava_is_off_by_one_where_a_space_is_no_token(words, name):
    """It takes two off a question's length, for BOS and the last space; that space has no token here."""
    ids, keep = original(name, TALKS["image first"], words)
    found, kept = ours(name, TALKS["image first"], words)
    assert found == ids
    assert texts((found, kept), words) == ["a red circle </s>"]
    assert sum(keep) == sum(kept) + 1 and keep[kept.index(True) - 1]


@pytest.mark.parametrize("name", SEPARATORS)
def test_weights_by_turn(any_tokenizer, name):
    low, high = Message("assistant", ("a red circle",), 0.25), Message("assistant", ("yes",), 2.0)
    unseen = Message("assistant", ("no",), 0.0)
    ask = Message("user", ("is it red?",))
    turns = (ask, low, ask, unseen, ask, high)
    segments = PROMPTS[name].render(turns, any_tokenizer)
    row = tokenize(segments, any_tokenizer, any_tokenizer.image_token_id, [])
    order = [w for i, w in enumerate(row.weights) if w and w != row.weights[i - 1]]
    assert order == [0.25, 2.0]
    ends = [w for i, w in zip(row.ids, row.weights) if i == any_tokenizer.eos_token_id]
    assert ends == [0.25, 0.0, 2.0]


def test_llama_2_needs_a_bos(byte_bpe):
    byte_bpe.bos_token = None
    with pytest.raises(UsageError, match="llama_2 writes BOS before each round and the tokenizer has none"):
        ours("llama_2", TALKS["one turn"], byte_bpe)
