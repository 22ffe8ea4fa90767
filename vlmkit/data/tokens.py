"""Segments to token ids with a loss weight for every token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING

from vlmkit.data.problems import (
    ImageSlotsError,
    SpecialTokenError,
    UnknownWordError,
    UnsupervisedError,
)
from vlmkit.data.sample import IMAGE, Conversation
from vlmkit.data.segments import Segment, control_tokens, image_token
from vlmkit.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Token = tuple[int, int, int]  # id, and where it starts and ends in the text


@dataclass(frozen=True)
class TokenRow:
    """Token ids with the loss weight of each.

    Attributes:
        ids: Token ids; an image is a run of the image token's id.
        weights: Loss weight of each token; 0 = not supervised.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.weights)


def tokenize(
    segments: Sequence[Segment],
    tokenizer: PreTrainedTokenizerBase,
    image_token_id: int,
    image_counts: Sequence[int],
    eos_weight: float = 1.0,
) -> TokenRow:
    """Tokenise a rendered conversation as a whole, so that ids are those a serving engine gets.

    A token is supervised where it meets a supervised segment. BOS comes first if the tokenizer adds one and
    the text does not start with it.

    Args:
        segments: From a prompt format.
        tokenizer: A fast one, that has the image token if there are image slots.
        image_token_id: Id of the image token.
        image_counts: Number of tokens of each image, in the order of the slots.
        eos_weight: Factor on the loss weight of supervised end tokens: EOS, or what ends a turn.

    Raises:
        UsageError: The tokenizer is slow, or does not know the image token under that id.
        VlmkitError: The number of slots is not the number of counts.
    """
    _check(segments, tokenizer, image_token_id, image_counts)
    text, weights = _flatten(segments, image_token(tokenizer))
    answers = [i for i, weight in enumerate(weights) if weight and not (i and weights[i - 1])]
    coded = _encode(text, answers, tokenizer)
    counts, ends = iter(image_counts), _ends(tokenizer) if eos_weight != 1 else set()
    out = [(i, 0.0) for i in _bos(tokenizer, [token for token, _, _ in coded])]
    for token, start, end in coded:
        if token == image_token_id:
            out += [(token, 0.0)] * next(counts)
            continue
        # Tokenizers that trim spaces from offsets can leave none: such a token goes with what follows.
        weight = max(weights[start : max(end, start + 1)], default=0.0)
        out.append((token, weight * (eos_weight if token in ends else 1.0)))
    return TokenRow(tuple(i for i, _ in out), tuple(w for _, w in out))


def question_ids(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of the first question, without a prompt around it: what a connector reads of the text.

    It is the first, so that no answer is in it, and the same in training and at every turn of a chat.
    """
    asked: list[str] = next((message.texts for message in conversation if message.role == "user"), [])
    return [token for text in asked for token, _, _ in _tokens(text, 0, tokenizer)]


def expand(row: TokenRow, image_token_id: int, image_counts: Sequence[int]) -> TokenRow:
    """A row with one token an image to the row with each image's own number of them.

    Args:
        row: From `tokenize` with a count of 1 for every slot.
        image_token_id: Id of the image token.
        image_counts: Number of tokens of each image, in the order of the slots.

    Raises:
        VlmkitError: The number of slots is not the number of counts.
    """
    _check_slots(row.ids.count(image_token_id), image_counts)
    counts = iter(image_counts)
    times = [next(counts) if token == image_token_id else 1 for token in row.ids]
    ids = chain.from_iterable(map(repeat, row.ids, times))
    return TokenRow(tuple(ids), tuple(chain.from_iterable(map(repeat, row.weights, times))))


def _ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Control tokens: an answer's text may hold none, so those in it are what the format ends it with."""
    return set(tokenizer.convert_tokens_to_ids(control_tokens(tokenizer)))


def _flatten(segments: Sequence[Segment], placeholder: str) -> tuple[str, list[float]]:
    """The whole text, and the weight of each of its characters."""
    texts = [placeholder if s.part is IMAGE else str(s.part) for s in segments]
    return "".join(texts), [s.weight for s, text in zip(segments, texts) for _ in text]


def _encode(text: str, answers: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """Tokens such that what precedes each answer is tokenised as the prompt for that answer will be.

    A tokenizer may join the prompt's end and the answer's start in one token (a newline and the answer's
    own): the model would be trained on a sequence that it is never asked with. There, and only there, the
    text is cut.

    Args:
        text: All of it.
        answers: Where answers start in it.
        tokenizer: A fast one.
    """
    whole = _tokens(text, 0, tokenizer)
    if not answers:
        return whole
    prompt = _encode(text[: answers[-1]], answers[:-1], tokenizer)
    # Places count too: a token may swallow the spaces behind it (Phi-3's), and with them the answer's own.
    if whole[: len(prompt)] == prompt:
        return whole
    return prompt + _tokens(text[answers[-1] :], answers[-1], tokenizer)


def _tokens(text: str, offset: int, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = zip(coded["input_ids"], coded["offset_mapping"])
    return [(token, offset + start, offset + end) for token, (start, end) in spans]


def _bos(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    added = bos is not None and tokenizer("")["input_ids"][:1] == [bos]
    return [bos] if added and list(ids[:1]) != [bos] else []


def _check(
    segments: Sequence[Segment],
    tokenizer: PreTrainedTokenizerBase,
    image_token_id: int,
    image_counts: Sequence[int],
) -> None:
    if not tokenizer.is_fast:
        raise UsageError(f"{type(tokenizer).__name__} gives no offsets; use the fast tokenizer of the model")
    slots = sum(s.part is IMAGE for s in segments)
    _check_slots(slots, image_counts)
    name = image_token(tokenizer)
    if slots and tokenizer.convert_tokens_to_ids(name) != image_token_id:
        raise UsageError(
            f"the tokenizer does not have {name!r} under the id {image_token_id}; take the id from "
            "vlmkit.llm.add_image_token(tokenizer), and resize the model's embeddings"
        )


def _check_slots(slots: int, image_counts: Sequence[int]) -> None:
    if slots != len(image_counts):
        raise ImageSlotsError(f"the prompt has {slots} image slots and {len(image_counts)} images were given")


def check_supervised(row: TokenRow, sample_id: str) -> None:
    """Refuse a row that would train nothing.

    Raises:
        VlmkitError: No token of the row is supervised; names the sample.
    """
    if not any(row.weights):
        raise UnsupervisedError(
            f"sample {sample_id!r} has no supervised token among {len(row.ids)}; give it a non-empty answer "
            "with a weight above 0, or remove it"
        )


def check_vocabulary(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | None = None
) -> None:
    """Refuse text that the tokenizer would turn into something else: its special tokens, words it lacks.

    Args:
        conversation: What is to be written.
        tokenizer: What writes it.
        ids: The conversation's tokens where they are known: without the unknown one among them no word is
            looked up, which makes the check nearly free.

    Raises:
        UsageError: Names the token or the words.
    """
    specials = control_tokens(tokenizer)
    for message in conversation:
        text = message.text
        token = next((token for token in specials if token in text), None)
        if token is not None:
            raise SpecialTokenError(
                f"the {message.role}'s text contains the tokenizer's special token {token!r}; "
                "remove it (images are given as images)"
            )
    unk = tokenizer.unk_token_id
    # Byte-level vocabularies such as GPT-2's write everything, and call their end token the unknown one.
    if ids is not None and (unk not in ids or unk == tokenizer.eos_token_id):
        return
    check_words((text for message in conversation for text in message.texts), tokenizer)


def check_words(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse words that the tokenizer lacks.

    Raises:
        UsageError: Names the words.
    """
    unknown = dict.fromkeys(word for text in texts for word in unknown_words(text, tokenizer))
    if unknown:
        raise UnknownWordError(
            f"the tokenizer's vocabulary lacks: {', '.join(map(repr, unknown))}; "
            "use other words, or a language model whose tokenizer knows them"
        )


def unknown_words(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words of a text that the tokenizer cannot write, each once, in order."""
    tokens = _tokens(text, 0, tokenizer)
    return list(dict.fromkeys(text[s:e] for token, s, e in tokens if token == tokenizer.unk_token_id))
