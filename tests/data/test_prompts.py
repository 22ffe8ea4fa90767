"""Prompt formats: the rendered text, what is supervised, and what is refused."""

import pytest

from vlmkit.data.prompts import PROMPTS, VICUNA_SYSTEM, Segment
from vlmkit.data.sample import IMAGE, Message
from vlmkit.data.tokens import tokenize
from vlmkit.errors import UsageError, VlmkitError

ASK = Message("user", (IMAGE, "what shape is in the image?"))
ANSWER = Message("assistant", ("a red circle",))
MORE = (Message("user", ("is there a blue triangle?",)), Message("assistant", ("yes",)))


def render(name, conversation, tokenizer, **kwargs):
    return PROMPTS[name].render(conversation, tokenizer, **kwargs)


def show(segments):
    """Text and weight of each segment, neighbours of one weight joined."""
    shown = []
    for s in segments:
        text = "[I]" if s.part is IMAGE else s.part
        if shown and shown[-1][1] == s.weight:
            text = shown.pop()[0] + text
        shown.append((text, s.weight))
    return shown


def supervised(row, tokenizer):
    return [tokenizer.convert_ids_to_tokens(i) for i, w in zip(row.ids, row.weights) if w]


def test_plain_is_image_caption_newline(byte_bpe):
    segments = render("plain", (ASK, ANSWER), byte_bpe)
    assert segments == [Segment(IMAGE), Segment("a red circle\n", 1.0)]
    row = tokenize(segments, byte_bpe, byte_bpe.image_token_id, [3])
    tokens = byte_bpe.convert_ids_to_tokens(row.ids)
    assert tokens[:4] == ["<s>", "<image>", "<image>", "<image>"]
    assert tokens[4] == "a" and tokens[-1] == "Ċ"
    assert row.weights == (0.0,) * 4 + (1.0,) * (len(row.ids) - 4)


def test_plain_takes_several_images_and_only_one_round(words):
    two = (Message("user", (IMAGE, "ignored", IMAGE)), ANSWER)
    assert show(render("plain", two, words)) == [("[I][I]", 0.0), ("a red circle\n", 1.0)]
    for wrong in [(ASK, ANSWER, *MORE), MORE, (Message("system", ("be brief",)), ASK, ANSWER)]:
        with pytest.raises(VlmkitError, match="plain takes one user turn with an image"):
            render("plain", wrong, words)


def test_vicuna_text_and_mask(words):
    late_image = Message("user", (" what shape is in the image?\n", IMAGE))
    assert show(render("vicuna_v1", (late_image, ANSWER, *MORE), words)) == [
        (f"{VICUNA_SYSTEM} USER: [I]\nwhat shape is in the image? ASSISTANT:", 0.0),
        (" a red circle</s>", 1.0),
        ("USER: is there a blue triangle? ASSISTANT:", 0.0),
        (" yes</s>", 1.0),
    ]


def test_vicuna_tokens_by_hand(llama_like):
    conversation = (Message("system", ("be brief",)), ASK, ANSWER)
    segments = render("vicuna_v1", conversation, llama_like)
    row = tokenize(segments, llama_like, llama_like.image_token_id, [2], eos_weight=0.5)
    tokens = llama_like.convert_ids_to_tokens(row.ids)
    first = next(i for i, w in enumerate(row.weights) if w)
    assert "".join(tokens[:first]) == (
        "<s>▁be▁brief▁USER:▁<image><image>▁\nwhat▁shape▁is▁in▁the▁image?▁ASSISTANT:"
    )
    assert "".join(tokens[first:]) == "▁a▁red▁circle</s>"
    assert row.weights[first:] == (1.0,) * (len(row.ids) - first - 1) + (0.5,)


def test_vicuna_image_turn_without_words(words):
    conversation = (Message("user", (IMAGE, " ", IMAGE)), ANSWER)
    assert show(render("vicuna_v1", conversation, words))[0][0].endswith("USER: [I]\n[I] ASSISTANT:")


def llava_reference(text, tokenizer):
    """Ids and supervised flags by LLaVA's `preprocess_v1`, for sentencepiece spaces and a BOS."""
    ids = tokenizer(text)["input_ids"]
    keep, place = [False] * len(ids), 1
    for round_ in text.split("</s>")[:-1]:
        question = round_.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        round_length = len(tokenizer(round_)["input_ids"])
        instruction_length = len(tokenizer(question)["input_ids"]) - 2
        keep[place + instruction_length : place + round_length] = [True] * (round_length - instruction_length)
        place += round_length
    assert place == len(ids)
    return ids, keep


def test_vicuna_agrees_with_llavas_masking(llama_like):
    conversation = (Message("user", ("what shape is it?",)), ANSWER, *MORE)
    segments = render("vicuna_v1", conversation, llama_like)
    row = tokenize(segments, llama_like, llama_like.image_token_id, [])
    ids, keep = llava_reference("".join(s.part for s in segments), llama_like)
    assert list(row.ids) == ids
    assert [w > 0 for w in row.weights] == keep


def test_vicuna_ids_around_an_image_agree_with_llava(llama_like):
    """LLaVA tokenises the text before and after <image> apart and keeps one BOS (`tokenizer_image_token`)."""
    segments = render("vicuna_v1", (ASK, ANSWER), llama_like)
    before, after = "".join("<image>" if s.part is IMAGE else s.part for s in segments).split("<image>")
    expected = [*llama_like(before).input_ids, llama_like.image_token_id, *llama_like(after).input_ids[1:]]
    assert list(tokenize(segments, llama_like, llama_like.image_token_id, [1]).ids) == expected


def test_chat_template_supervises_answers_through_eos(byte_bpe):
    conversation = (Message("system", ("be brief",)), ASK, ANSWER, *MORE)
    assert show(render("chat_template", conversation, byte_bpe)) == [
        (
            "<|im_start|>system\nbe brief</s>\n<|im_start|>user\n[I]what shape is in the image?</s>\n"
            "<|im_start|>assistant\n",
            0.0,
        ),
        ("a red circle</s>", 1.0),
        ("\n<|im_start|>user\nis there a blue triangle?</s>\n<|im_start|>assistant\n", 0.0),
        ("yes</s>", 1.0),
        ("\n", 0.0),
    ]


def test_chat_template_that_trims_or_has_another_end_of_turn(byte_bpe):
    byte_bpe.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content | trim }}<end>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    conversation = (ASK, Message("assistant", ("  a red circle ",)))
    assert show(render("chat_template", conversation, byte_bpe))[-1] == ("a red circle<end>", 1.0)


def test_weight_of_a_turn(any_tokenizer):
    conversation = (ASK, Message("assistant", ("a red circle",), weight=0.25), *MORE)
    for name in ("vicuna_v1", "chat_template"):
        row = tokenize(
            render(name, conversation, any_tokenizer), any_tokenizer, any_tokenizer.image_token_id, [1]
        )
        assert sorted(set(row.weights)) == [0.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("name", "rounds"),
    [("plain", 1), ("vicuna_v1", 1), ("vicuna_v1", 2), ("chat_template", 1), ("chat_template", 2)],
)
def test_prompt_is_a_prefix_of_the_training_row(any_tokenizer, name, rounds):
    conversation = (ASK, ANSWER, *MORE)[: 2 * rounds]

    def row(turns, generate):
        segments = render(name, turns, any_tokenizer, generate=generate)
        return tokenize(segments, any_tokenizer, any_tokenizer.image_token_id, [3])

    full, prompt = row(conversation, False), row(conversation[:-1], True)
    assert full.ids[: len(prompt.ids)] == prompt.ids
    assert full.weights[: len(prompt.ids)] == prompt.weights
    # The answer starts right behind the prompt: nothing in between that generation would not see.
    assert full.weights[len(prompt.ids)] == 1.0
    assert any_tokenizer.bos_token_id in prompt.ids[:1]
    assert prompt.ids.count(any_tokenizer.bos_token_id) == 1
    answer = any_tokenizer.decode(full.ids[len(prompt.ids) :], skip_special_tokens=True)
    assert answer.replace("▁", "").replace(" ", "").strip() == conversation[-1].text.replace(" ", "")


def test_supervised_words_of_every_tokenizer(any_tokenizer):
    for name in ("vicuna_v1", "chat_template"):
        segments = render(name, (ASK, ANSWER), any_tokenizer)
        row = tokenize(segments, any_tokenizer, any_tokenizer.image_token_id, [2])
        spoken = "".join(supervised(row, any_tokenizer)).replace("▁", "").replace("Ġ", "")
        assert spoken == "aredcircle</s>"


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize(
    ("turns", "generate", "message"),
    [
        ((ASK,), False, "must end with the assistant's turn"),
        ((ASK, ANSWER), True, "must end with the user's turn"),
        ((), False, "must end with"),
        ((ASK, ASK, ANSWER), False, "in turn"),
        ((ANSWER, ASK, ANSWER), False, "in turn"),
        ((Message("user", ("see <image> here",)), ANSWER), False, "message 0 .user. contains the image"),
    ],
)
def test_conversations_that_no_format_renders(words, name, turns, generate, message):
    with pytest.raises(VlmkitError, match=message):
        render(name, turns, words, generate=generate)


def test_own_image_token_in_text_is_refused(words):
    words.image_token = "<|img|>"
    with pytest.raises(VlmkitError, match=r"<\|img\|>"):
        render("vicuna_v1", (Message("user", ("a <|img|> b",)), ANSWER), words)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}</s>{% endfor %}",
            "changes earlier text",
        ),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "writes nothing behind an answer"),
        ("{% for m in messages[::2] %}{{ m.content }}</s>{% endfor %}", "does not write the answer"),
        ("{{ raise_exception('no system role') }}", "failed on roles.*no system role"),
        (
            "{% for m in messages %}{{ m.role }}</s>{% endfor %}",
            "1 images and .* renders 0 image placeholders",
        ),
    ],
)
def test_bad_templates(words, template, message):
    words.chat_template = template
    with pytest.raises(VlmkitError, match=message):
        render("chat_template", (ASK, ANSWER, *MORE), words)


def test_missing_template_and_missing_eos(words):
    words.chat_template = None
    with pytest.raises(UsageError, match=r"no chat template; choose the prompt plain or vicuna_v1"):
        render("chat_template", (ASK, ANSWER), words)
    words.eos_token = None
    with pytest.raises(UsageError, match="no EOS token"):
        render("vicuna_v1", (ASK, ANSWER), words)
