"""A tiny VLM that can read and write any text: random weights, a byte-level tokenizer, no downloads."""

import base64
import io

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlmkit.assemble import assemble

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
WORDS = ["hello, how are you? what is in this image? a red circle, and a blue square.\n"]
LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def tokenizer(normalizer=None):
    words = Tokenizer(models.BPE())
    words.normalizer = normalizer
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(WORDS, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


@pytest.fixture
def nfkc_tokenizer():
    """It reads full-width letters as their narrow ones, and finds its control tokens among them."""
    words = tokenizer(normalizers.NFKC())
    controls = [AddedToken(name, normalized=True, special=True) for name in ("<image>", "<|stop|>")]
    words.add_tokens(controls, special_tokens=True)
    return words


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory):
    """A language model as the hub has them: weights, configuration, tokenizer."""
    folder = tmp_path_factory.mktemp("llm")
    words = tokenizer()
    with torch.random.fork_rng():
        LlamaForCausalLM(LlamaConfig(**LLAMA, vocab_size=len(words))).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_vlm(tiny_recipe, roughen, llm_folder):
    """A function: a prompt format and changes of the model's recipe to a VLM that reads anything."""

    def make(prompt="chatml", seed=0, **model):
        recipe = tiny_recipe()
        parts = recipe.model.model_dump() | {"llm": {"weights": str(llm_folder)}, "prompt": prompt, **model}
        recipe = type(recipe).model_validate(recipe.model_dump() | {"model": parts})
        model = roughen(assemble(recipe), seed).eval()
        # So that answers can be read, and cut: only tokens of plain letters.
        words = model.processor.tokenizer
        texts = [words.decode([i]) for i in range(len(words))]
        model.generation_config.suppress_tokens += [
            i for i, text in enumerate(texts) if not (text.isascii() and text.isprintable())
        ]
        return model

    return make


@pytest.fixture(scope="session")
def vlm(make_vlm):
    """One for the tests that change nothing about it."""
    return make_vlm()


@pytest.fixture
def chat(vlm):
    """A chat model over it, with short answers."""
    from vlmkit.langchain import ChatVlmkit

    return ChatVlmkit(model=vlm, max_tokens=12)


@pytest.fixture(scope="session")
def png():
    """The bytes of a small picture."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def encoded(png):
    """The same, as messages carry it."""
    return base64.b64encode(png).decode()
