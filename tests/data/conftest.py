"""Small tokenizers of the kinds that language models use, trained on a few sentences."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vlmkit.data.prompts import VICUNA_SYSTEM
from vlmkit.llm.words import build_words_tokenizer

SPECIALS = ["<unk>", "<s>", "</s>", "<image>", "<|im_start|>"]
TEXTS = [
    VICUNA_SYSTEM,
    "USER: what shape is in the image? ASSISTANT: a red circle",
    "is there a blue triangle?\nyes, a small one  and 2 others",
    "user assistant system be brief",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _wrap(tokenizer, post=None):
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.post_processor = processors.Sequence([post, bos]) if post else bos
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHATML,
    )


def byte_level(trim):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIALS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return _wrap(tokenizer, processors.ByteLevel(trim_offsets=True) if trim else None)


def newline_runs(controls, **names):
    """Byte level as of Qwen and Llama 3: a run of newlines is one piece, so a prompt's can join an answer's.

    Args:
        controls: Control tokens, which take the first ids.
        names: Which token is EOS and so on, and the chat template.
    """
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\s+(?!\S)| ?[^\s]+|\s+"), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=controls, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*TEXTS, "\n\n\n\n", "user\n\nassistant\n\n\n"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def metaspace_bpe(scheme):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=160, special_tokens=SPECIALS))
    return _wrap(tokenizer)


def metaspace_unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return _wrap(tokenizer)


BUILDERS = {
    "words": lambda: build_words_tokenizer(TEXTS),
    "byte_level": lambda: byte_level(trim=False),
    "byte_level_trimmed": lambda: byte_level(trim=True),
    "metaspace_bpe_first": lambda: metaspace_bpe("first"),
    "metaspace_bpe_always": lambda: metaspace_bpe("always"),
    "metaspace_unigram": metaspace_unigram,
}


@pytest.fixture(params=BUILDERS)
def any_tokenizer(request):
    return BUILDERS[request.param]()


@pytest.fixture(scope="session")
def build_newline_runs():
    return newline_runs


@pytest.fixture
def words():
    return BUILDERS["words"]()


@pytest.fixture
def llama_like():
    return BUILDERS["metaspace_bpe_always"]()


@pytest.fixture
def unigram():
    return BUILDERS["metaspace_unigram"]()


@pytest.fixture
def byte_bpe():
    return BUILDERS["byte_level"]()
