"""The word-level tokenizer."""

from transformers import AutoTokenizer

from vlmkit.llm.words import build_words_tokenizer

TEXTS = ["What is red?", "what is blue", "red", "red"]


def test_vocabulary_is_by_frequency_then_word_whatever_the_order_of_texts():
    vocab = build_words_tokenizer(TEXTS).get_vocab()
    expected = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "red", "is", "what", "?", "blue"]
    assert sorted(vocab, key=vocab.get) == expected
    assert build_words_tokenizer(reversed(TEXTS)).get_vocab() == vocab


def test_round_trip_keeps_everything(tmp_path):
    built = build_words_tokenizer(TEXTS)
    built.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "image_token_id"):
        assert getattr(loaded, name) == getattr(built, name)
    assert (loaded.image_token, loaded.image_token_id) == ("<image>", 4)
    assert loaded.chat_template == built.chat_template
    text = "<image>WHAT is green? red</s>"
    assert loaded(text).input_ids == built(text).input_ids == [1, 4, 7, 6, 3, 8, 5, 2]
    assert loaded.is_fast


def test_decode_gives_plain_words():
    tokenizer = build_words_tokenizer(TEXTS)
    ids = tokenizer("is blue</s>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "is blue"
    assert tokenizer.decode(tokenizer("Red").input_ids, skip_special_tokens=True) == "red"


def test_chat_template():
    tokenizer = build_words_tokenizer(TEXTS)
    chat = [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": "<image>what?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "is blue?"},
    ]
    prompt = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<s>brief <image>what?"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == prompt + " red</s>is blue?"
