"""Tokenizers' own chat templates: what is supervised, and that it is what generation has to write.

The templates are the models' own, as the package `trl` keeps them (`trl/chat_templates/*.jinja`; its README
says which checkpoint each comes from); nothing of trl is imported. The tokenizers are small stand-ins with
each family's control tokens. What a template should make of a conversation is said by hand, in `FAMILIES`.
"""

import importlib.util
import random
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest
from tokenizers import AddedToken, processors
from transformers.utils import chat_template_utils

from vlmkit.data.prompts import PROMPTS
from vlmkit.data.sample import IMAGE, Message
from vlmkit.data.tokens import check_vocabulary, tokenize
from vlmkit.errors import UsageError, VlmkitError

TEMPLATES = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
CHAT = PROMPTS["chat_template"]
TODAY = datetime(2026, 1, 31, 23, 59)


@dataclass(frozen=True)
class Family:
    """What a template writes: `{}` is a message's text, and in `system` the system's text."""

    controls: str  # with spaces between
    eos: str
    user: str
    ask: str
    end: str
    bos: str | None = None
    head: str | None = ""  # None: long, and not supervised; taken from the template
    system: str | None = None  # None: the template refuses system messages
    answer: str = "{}"
    gap: str = ""  # between an answer's end and what follows
    last: str = ""  # at the very end, if no answer is asked for
    strip: bool = False
    swallow: bool = False  # control tokens take the spaces behind them
    earlier: str | None = None  # an earlier answer with its end, where it is rendered in another way
    newlines_first: bool = True  # False: those in front of the last answer go
    system_in_question: bool = False  # the system's text opens the first question


def chatml(**changes):
    made = Family("<|im_start|> <|im_end|> <|endoftext|>", "<|im_end|>",
                  "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>",
                  system="<|im_start|>system\n{}<|im_end|>\n", gap="\n")  # fmt: skip
    return replace(made, **changes)


def llama(**changes):
    made = Family(
        "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>", "<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", strip=True,
        bos="<|begin_of_text|>", head="<|begin_of_text|>",
        system="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>")  # fmt: skip
    return replace(made, **changes)


LLAMA_3_2 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 31 Jan 2026\n\n{}<|eot_id|>"
)
QWEN_2_5 = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
)
GEMMA = Family(
    "<bos> <eos> <start_of_turn> <end_of_turn>", "<eos>", "<start_of_turn>user\n{}<end_of_turn>\n",
    "<start_of_turn>model\n", "<end_of_turn>", "<bos>", "<bos>", gap="\n", strip=True)  # fmt: skip
TURN = "<|START_OF_TURN_TOKEN|>"
COHERE = Family(
    f"<BOS_TOKEN> {TURN} <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>", TURN + "<|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>", TURN + "<|CHATBOT_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "<BOS_TOKEN>", strip=True,
    system=f"<BOS_TOKEN>{TURN}<|SYSTEM_TOKEN|>{{}}<|END_OF_TURN_TOKEN|>")  # fmt: skip

FAMILIES = {
    "llama3": llama(),
    "llama3_2": llama(head=LLAMA_3_2.format(""), system=LLAMA_3_2),
    "qwen2_5": chatml(head=QWEN_2_5),
    "qwen3": chatml(answer="<think>\n\n</think>\n\n{}", earlier="{}<|im_end|>", newlines_first=False),
    "qwen3_instruct_2507": chatml(),
    "lfm2": chatml(controls="<|startoftext|> <|im_start|> <|im_end|>", bos="<|startoftext|>",
                   head="<|startoftext|>", system="<|startoftext|><|im_start|>system\n{}<|im_end|>\n"),
    "gemma": GEMMA,
    "gemma3": replace(GEMMA, system="<bos>", system_in_question=True),
    "phi3_5": Family("<|endoftext|> <|user|> <|assistant|> <|system|> <|end|>", "<|endoftext|>",
                     "<|user|>\n{}<|end|>\n", "<|assistant|>\n", "<|end|>", system="<|system|>\n{}<|end|>\n",
                     gap="\n", last="<|endoftext|>", swallow=True),
    "cohere": COHERE,
    "cohere2": replace(COHERE, controls=COHERE.controls + " <|START_RESPONSE|> <|END_RESPONSE|>", head=None,
                       ask=TURN + "<|CHATBOT_TOKEN|><|START_RESPONSE|>", strip=False, system="",
                       end="<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "gptoss": Family("<|start|> <|message|> <|channel|> <|end|> <|return|>", "<|return|>",
                     "<|start|>user<|message|>{}<|end|>", "<|start|>assistant", "<|return|>", head=None,
                     system="", answer="<|channel|>final<|message|>{}",
                     earlier="<|channel|>final<|message|>{}<|end|>"),
}  # fmt: skip
REFUSED = {
    # The generation prompt opens a thinking block that the answer is rendered without.
    "deepseek_r1_distill": (
        Family("<bos> <eos> <｜User｜> <｜Assistant｜>", "<eos>", "", "", "", "<bos>"),
        "changes earlier text",
    ),
    # What ends a turn is the next turn's header; the last answer of a conversation has no end.
    "glm4moe": (
        Family("[gMASK] <sop> <|user|> <|assistant|> <|system|> <eos>", "<eos>", "", "", ""),
        "writes nothing behind an answer",
    ),
}


@pytest.fixture(autouse=True)
def today(monkeypatch):
    """A day for the templates that write it."""

    class Clock:
        now = staticmethod(lambda: TODAY)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.fixture(scope="module")
def tokenizer_of(build_newline_runs):
    """A function: a family's name to its stand-in, which adds BOS if the family has one."""
    made = {}

    def build(name, family):
        marks = [
            AddedToken(token, rstrip=family.swallow, normalized=False, special=True)
            for token in (*family.controls.split(), "<image>")
        ]
        tokenizer = build_newline_runs(
            marks,
            bos_token=family.bos,
            eos_token=family.eos,
            extra_special_tokens={"image_token": "<image>"},
            chat_template=(TEMPLATES / f"{name}.jinja").read_text(),
        )
        if family.bos is not None:
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=["BOS:0", "$A:0"],
                special_tokens=[{"id": "BOS", "ids": [tokenizer.bos_token_id], "tokens": [family.bos]}],
            )
        return tokenizer

    def get(name):
        if name not in made:
            made[name] = build(name, FAMILIES[name] if name in FAMILIES else REFUSED[name][0])
        return made[name]

    return get


def talk(*texts, system=None, weights=()):
    told = [Message("system", (system,))] if system is not None else []
    given = dict(enumerate(weights))
    said = [
        Message(("user", "assistant")[i % 2], parts(t), given.get(i // 2, 1.0)) for i, t in enumerate(texts)
    ]
    return (*told, *said)


def parts(text):
    pieces = [p for piece in text.split("<image>") for p in (IMAGE, piece)][1:]
    return tuple(p for p in pieces if p != "") or ("",)


def written(message, family):
    text = "".join("<image>" if part is IMAGE else part for part in message.parts)
    return text.strip() if family.strip else text


TALKS = {
    "one turn": talk("what shape is it?", "a red circle"),
    "three turns": talk("what shape is it?", "a red circle", "is it small?", "no", "why?", "yes"),
    "system": talk("what shape is it?", "a red circle", "why?", "be brief", system="be brief"),
    "image first": talk("<image>\nwhat shape is it?", "a red circle"),
    "image last, two turns": talk("what shape is it?\n<image>", "a red circle", "is it small?", "no"),
    "image in the middle": talk("is <image> red?", "yes"),
    "two images": talk("<image> is like <image>?", "yes", "and <image>?", "a circle"),
    "image alone": talk("<image>", "a red circle"),
    "empty answer": talk("what is it?", "", "is it red?", "yes"),
    "a letter": talk("what is it?", "a"),
    "newline first": talk("what is it?", "\na red\n\ncircle", "is it?", "\n\nyes"),
    "spaces around": talk(" what is it? ", "  a red circle ", "is it?", " yes\n"),
    "unicode": talk("<image>\nwas ist das? 形 😀", "ein roter Kreis, né? 圆 🔴", "?", "👩‍👩‍👧 é"),
    "weights": talk("what is it?", "a red circle", "is it?", "yes", "why?", "no", weights=(0.25, 0.0, 2.0)),
}


def opening(family, system, tokenizer):
    """What stands before the first question."""
    if family.head is None:
        rendered = CHAT.render(talk("?", "!", system=system), tokenizer)
        return "".join(s.part for s in rendered).partition(family.user.partition("{}")[0])[0]
    return family.head if system is None else family.system.format(system)


def by_hand(family, conversation, tokenizer):
    """The conversation cut at each answer: (what precedes it, the answer with its end, its weight)."""
    system = None
    if conversation[0].role == "system":
        system, conversation = conversation[0].text, conversation[1:]
    pieces, before = [], opening(family, system, tokenizer)
    for i in range(0, len(conversation), 2):
        question, answer = (written(m, family) for m in conversation[i : i + 2])
        if system is not None and family.system_in_question and i == 0:
            question = f"{system}\n\n{question}"
        said = (family.answer + family.end).format(answer if family.newlines_first else answer.lstrip("\n"))
        if family.earlier is not None and i + 2 < len(conversation):
            said = family.earlier.format(answer)
        pieces.append((before + family.user.format(question) + family.ask, said, conversation[i + 1].weight))
        before = "" if conversation[i + 1].weight else family.gap
    return pieces


def reference(family, conversation, tokenizer):
    """Ids and weights, cut where a supervised answer starts: as generation meets prompt and answer."""

    def coded(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    chunks = [("", 0.0, "")]  # an answer, its weight, and what follows up to the next one
    for prompt, said, weight in by_hand(family, conversation, tokenizer):
        chunks[-1] = (*chunks[-1][:2], chunks[-1][2] + prompt + ("" if weight else said))
        chunks += [(said, weight, family.gap)] if weight else []
    chunks[-1] = (*chunks[-1][:2], chunks[-1][2] + family.last)
    ids, weights = [], []
    for said, weight, follows in chunks:
        ids += coded(said + follows)
        weights += [weight] * len(coded(said))
        weights += [0.0] * (len(ids) - len(weights))
    return ids, weights


def ours(conversation, tokenizer, prompt=CHAT, generate=False):
    segments = prompt.render(conversation, tokenizer, generate=generate)
    slots = sum(s.part is IMAGE for s in segments)
    row = tokenize(segments, tokenizer, tokenizer.image_token_id, [1] * slots)
    return list(row.ids), list(row.weights)


def last_only(conversation):
    """Earlier answers with the weight 0."""
    *past, answer = conversation
    return (*(replace(m, weight=0.0) for m in past), answer)


@pytest.mark.parametrize("case", TALKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_and_weights_are_those_said_by_hand(tokenizer_of, name, case):
    family, tokenizer, turns = FAMILIES[name], tokenizer_of(name), TALKS[case]
    if turns[0].role == "system" and family.system is None:
        with pytest.raises(VlmkitError, match=r"System role not supported.*put that text in"):
            ours(turns, tokenizer)
        turns = turns[1:]
    if family.earlier is not None and len(by_hand(family, turns, tokenizer)) > 1:
        with pytest.raises(VlmkitError, match=r"changes earlier text.*answers the weight 0"):
            ours(turns, tokenizer)
        turns = last_only(turns)
    assert ours(turns, tokenizer) == reference(family, turns, tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_stops_where_answers_end(tokenizer_of, name):
    end = CHAT.end(tokenizer_of(name))
    assert end and FAMILIES[name].end.endswith(end)
    ids, weights = ours(TALKS["one turn"], tokenizer_of(name))
    supervised = [i for i, w in zip(ids, weights) if w]
    assert supervised[-1] == tokenizer_of(name).convert_tokens_to_ids(end)
    assert ids.count(tokenizer_of(name).bos_token_id) == (FAMILIES[name].bos is not None)


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_cannot_be_trained_with_are_refused(tokenizer_of, name):
    with pytest.raises(VlmkitError, match=REFUSED[name][1]):
        ours(TALKS["one turn"], tokenizer_of(name))
    assert ours(TALKS["three turns"][:-1], tokenizer_of(name), generate=True)


def test_qwen3_keeps_the_last_answers_thinking(tokenizer_of):
    tokenizer = tokenizer_of("qwen3")
    thought = "<think>\nit is round\n</think>\n\na red circle"
    turns = last_only(talk("what is it?", thought, "why?", thought))
    segments = CHAT.render(turns, tokenizer)
    assert [s.part for s in segments if s.weight] == [f"{thought}<|im_end|>"]
    assert "".join(s.part for s in segments).count("it is round") == 1


def test_a_chat_goes_on_where_the_past_is_rendered_in_another_way(tokenizer_of):
    turns = TALKS["three turns"]
    for name in ("qwen3", "gptoss"):
        prompt = ours(turns[:-1], tokenizer_of(name), generate=True)[0]
        assert ours(last_only(turns), tokenizer_of(name))[0][: len(prompt)] == prompt


@pytest.mark.parametrize("calls", range(1, 9))
def test_a_sample_has_one_date_over_midnight(tokenizer_of, monkeypatch, calls):
    class Clock:
        left = calls

        @classmethod
        def now(cls):
            cls.left -= 1
            return TODAY if cls.left >= 0 else TODAY.replace(month=2, day=1)

    expected = ours(TALKS["three turns"], tokenizer_of("llama3_2"))
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    ids, weights = ours(TALKS["three turns"], tokenizer_of("llama3_2"))
    assert [i for i, w in zip(ids, weights) if w] == [i for i, w in zip(*expected) if w]
    assert ("01 Feb" in tokenizer_of("llama3_2").decode(ids)) != (
        "31 Jan" in tokenizer_of("llama3_2").decode(ids)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_control_tokens_in_text_are_refused(tokenizer_of, name):
    for token in FAMILIES[name].controls.split():
        turns = talk(f"what is {token} here?", "yes")
        with pytest.raises(UsageError, match="contains the tokenizer's special token"):
            check_vocabulary(turns, tokenizer_of(name), ids=(5,))


def said_at_random(rng, words):
    return "".join(rng.choice(words) for _ in range(rng.randint(0, 6)))


def at_random(rng):
    """A conversation of one to four rounds, of words, spaces, newlines and other signs in any order."""
    words = ["red", " circle", "\n", "\n\n", " ", "  ", "é", "😀", "形", "a:", "[x]", "</b>", "?"]
    turns = [Message("system", ("be" + said_at_random(rng, words),))] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 4)):
        asked = ["why" + said_at_random(rng, words)]
        for _ in range(rng.choice([0, 1, 1, 2])):
            asked.insert(rng.randint(0, len(asked)), IMAGE)
        turns.append(Message("user", tuple(asked)))
        said = said_at_random(rng, words)
        turns.append(Message("assistant", (said,), rng.choice([1.0, 1.0, 0.5, 0.0])))
    return (*turns[:-1], replace(turns[-1], weight=1.0))


def assert_answers_follow_their_prompts(prompt, conversation, tokenizer):
    ids, weights = ours(conversation, tokenizer, prompt)
    for i, message in enumerate(conversation):
        if message.role == "assistant" and message.weight:
            asked, unseen = ours(conversation[:i], tokenizer, prompt, generate=True)
            assert ids[: len(asked)] == asked and weights[: len(asked)] == unseen
            assert weights[len(asked)] == message.weight
    assert {w for w in weights if w} == {m.weight for m in conversation if m.role == "assistant"} - {0.0}


@pytest.mark.parametrize("name", FAMILIES)
def test_training_rows_are_the_prompts_and_then_the_answers(tokenizer_of, name):
    rng = random.Random(name)
    for _ in range(25):
        turns = at_random(rng)
        turns = turns[FAMILIES[name].system is None and turns[0].role == "system" :]
        turns = last_only(turns) if FAMILIES[name].earlier is not None else turns
        assert_answers_follow_their_prompts(CHAT, turns, tokenizer_of(name))


@pytest.mark.parametrize("name", ["vicuna_v1", "llama_2", "chatml"])
def test_training_rows_of_other_formats_too(any_tokenizer, tokenizer_of, name):
    rng = random.Random(name)
    tokenizer = tokenizer_of("lfm2") if name == "chatml" else any_tokenizer
    for _ in range(25):
        assert_answers_follow_their_prompts(PROMPTS[name], at_random(rng), tokenizer)
