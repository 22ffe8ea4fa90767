"""A word-level tokenizer: small, readable vocabularies for language models trained from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK, IMAGE = SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
# System text, questions and answers one after the other; the generation prompt ends where the question does.
TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)


def build_words_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Lower-cased words and single punctuation marks; the most frequent first, equals in alphabetical order.

    Spaces and newlines only separate: decoding joins tokens with one space.

    Args:
        texts: What the vocabulary is made from; words that are not in it become `<unk>`.
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    counts = Counter(word for text in texts for word in _words(text, tokenizer))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    tokenizer.model = models.WordLevel({w: i for i, w in enumerate([*SPECIALS, *words])}, unk_token=UNK)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, SPECIALS.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens={"image_token": IMAGE},
        chat_template=TEMPLATE,
    )


def _words(text: str, tokenizer: Any) -> list[str]:
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
