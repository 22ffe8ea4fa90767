"""The assembled model as a `transformers` model: saved, loaded, resized, assembled from parts, refused."""

import copy
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

import vlmkit
from vlmkit import VLM
from vlmkit.assemble import assemble, check_blocks
from vlmkit.data.batch import pixel_batches
from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import first_patches, pixel_batch
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.inference import question
from vlmkit.recipe import Recipe
from vlmkit.train.run import train_recipe
from vlmkit_connectors import VisionFeatures

VIT = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
VITS = {
    f"{pool}-{stem}": {**VIT, "pool": pool, "stem": stem, "embed_dim": 8}
    for pool, stem in [("cls", "patch"), ("mean", "conv"), ("map", "patch")]
}


def prompts(model, *images_and_texts):
    """Inputs of `generate`."""
    queries = [question(images, text) for images, text in images_and_texts]
    return model.processor.prompts([q.conversation for q in queries], [q.images for q in queries])


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def files_of(folder):
    return sorted(folder.glob("model*.safetensors"))


@pytest.fixture
def inputs(noise):
    """A function: a model to a batch with one image, several and none."""
    rows = [([noise(1)], "what color is it?"), ([noise(2), noise(3)], "say yes"), ([], "say yes")]
    return lambda model: prompts(model, *rows)


@pytest.fixture
def saved(tiny_vlm, tmp_path):
    tiny_vlm().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def plain_llm(tmp_path):
    """A pretrained language model that has never heard of images; its embeddings are tied."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "red": 3, "circle": 4}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    config = LlamaConfig(vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, tie_word_embeddings=True)  # fmt: skip
    folder = tmp_path / "plain"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TestSaving:
    def round_trip(self, model, folder, inputs):
        model.save_pretrained(folder, max_shard_size="20KB")
        again = VLM.from_pretrained(folder).eval()
        batch = inputs(model)
        assert (logits(model, batch) - logits(again, batch)).abs().max() == 0
        mine, theirs = model.state_dict(), again.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert again.processor.tokenizer.get_vocab() == model.processor.tokenizer.get_vocab()
        return again

    @pytest.mark.parametrize("llm", ["llama", "qwen2", "gpt2", "opt", "gemma2"])
    def test_every_language_model_comes_back_bit_equal_from_shards(self, tiny_vlm, tmp_path, inputs, llm):
        model = tiny_vlm(llm)
        again = self.round_trip(model, tmp_path, inputs)
        assert len(files_of(tmp_path)) >= 5
        kept = model.language_model.config._attn_implementation
        assert again.language_model.config._attn_implementation == kept

    @pytest.mark.parametrize("encoder", [*VITS.values(), "clip"], ids=[*VITS, "clip"])
    def test_every_encoder_comes_back_bit_equal_from_shards(
        self, tiny_vlm, tmp_path, inputs, tiny_clip, noise, encoder
    ):
        model = tiny_vlm(encoder=tiny_clip if encoder == "clip" else encoder)
        again = self.round_trip(model, tmp_path, inputs)
        batch = pixel_batch(model.spec, [noise(1), noise(2)])
        with torch.no_grad():
            ours, theirs = (m.vision_encoder(batch).pooled_BE for m in (model, again))
        assert torch.equal(ours, theirs)
        assert again.vision_encoder.fingerprint == model.vision_encoder.fingerprint

    def test_tied_embeddings_stay_tied(self, tiny_vlm, tmp_path, inputs):
        again = self.round_trip(tiny_vlm(llm_options={"tie_word_embeddings": True}), tmp_path, inputs)
        assert again.get_input_embeddings().weight is again.get_output_embeddings().weight

    def test_generation_settings_come_back(self, saved):
        settings = VLM.from_pretrained(saved).generation_config
        tokenizer = AutoTokenizer.from_pretrained(saved)
        assert settings.suppress_tokens == [tokenizer.convert_tokens_to_ids("<image>")]
        assert settings.eos_token_id == tokenizer.eos_token_id

    def test_auto_classes_find_it_once_vlm_was_touched(self, saved, inputs):
        assert vlmkit.VLM is VLM
        assert type(AutoConfig.from_pretrained(saved)) is vlmkit.VLMConfig
        model = AutoModelForImageTextToText.from_pretrained(saved).eval()
        assert type(model) is VLM
        plain = VLM.from_pretrained(saved).eval()
        assert torch.equal(logits(model, inputs(model)), logits(plain, inputs(plain)))

    def test_dtype_and_loading_info_are_inherited(self, saved):
        model, info = VLM.from_pretrained(saved, dtype=torch.bfloat16, output_loading_info=True)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert not info["missing_keys"]
        assert isinstance(model.ask(None, "say yes", max_new_tokens=2), str)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda t: t.pop("encoders.0.norm.weight"), "missing tensors encoders.0.norm.weight;"),
            (lambda t: t.update(stray=torch.zeros(1)), "unexpected tensors stray;"),
            (
                lambda t: t.update(connectr=t.pop("connector.layers.0.bias")),
                "missing tensors connector.layers.0.bias; unexpected tensors connectr;",
            ),
            (
                lambda t: t.update({"encoders.0.positions": torch.zeros(1, 9, 16)}),
                "mismatched tensors encoders.0.positions;",
            ),
        ],
        ids=["missing", "extra", "renamed", "other shape"],
    )
    def test_a_tensor_without_its_place_is_named(self, saved, change, says):
        (file,) = files_of(saved)
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(VlmkitError, match="do not belong") as raised:
            VLM.from_pretrained(saved)
        assert says in str(raised.value) and "\n" not in str(raised.value)


class TestParts:
    def test_parts_that_are_passed_in_keep_their_weights(self, tiny_vlm):
        model = tiny_vlm()
        encoder, language_model = model.vision_encoder, model.language_model
        before = {**copy.deepcopy(encoder.state_dict()), **copy.deepcopy(language_model.state_dict())}
        built = VLM(copy.deepcopy(model.config), [encoder], language_model)
        after = {**built.encoders[0].state_dict(), **built.language_model.state_dict()}
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert built.config.text_config is language_model.config

    def test_a_new_image_token_keeps_the_old_logits_and_the_tie(self, plain_llm, tiny_recipe, tmp_path):
        recipe = tiny_recipe().model_dump()
        recipe["model"]["llm"] = {"weights": str(plain_llm)}
        model = assemble(Recipe.model_validate(recipe))
        old = AutoModelForCausalLM.from_pretrained(plain_llm)
        ids = torch.tensor([[2, 3, 4, 1]])
        with torch.no_grad():
            grown = model(ids).logits
            assert torch.equal(grown[..., :5], old(ids).logits)
        assert grown.shape[-1] == 6 == model.config.text_config.vocab_size
        assert model.config.image_token_id == 5
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        model.save_pretrained(tmp_path / "again")
        again = VLM.from_pretrained(tmp_path / "again")
        assert torch.equal(logits(again, {"input_ids": ids}), grown)

    def test_generation_stops_at_the_end_of_a_turn_too(self, plain_llm, tiny_recipe, tmp_path):
        """As with Gemma: EOS ends texts, another token ends turns."""
        tokenizer = AutoTokenizer.from_pretrained(plain_llm)
        tokenizer.add_special_tokens({"extra_special_tokens": ["circle"]})
        tokenizer.chat_template = "{% for m in messages %}{{ m.content + ' circle\\n' }}{% endfor %}"
        tokenizer.save_pretrained(plain_llm)
        recipe = tiny_recipe().model_dump()
        recipe["model"]["llm"] = {"weights": str(plain_llm)}
        assemble(Recipe.model_validate(recipe)).save_pretrained(tmp_path / "saved")
        assert VLM.from_pretrained(tmp_path / "saved").generation_config.eos_token_id == [1, 4]

    def test_weights_that_are_not_there_are_one_line(self, tiny_recipe, tmp_path):
        recipe = tiny_recipe().model_dump()
        recipe["model"]["llm"] = {"weights": str(tmp_path)}
        with pytest.raises(VlmkitError, match="cannot be loaded") as raised:
            assemble(Recipe.model_validate(recipe))
        assert "\n" not in str(raised.value)


def test_clip_mlp_and_llama_are_llava(tiny_vlm, tiny_clip, inputs, record_property):
    """The same tensors in transformers' own LLaVA give the same logits, bit for bit."""
    model = tiny_vlm(encoder=tiny_clip, connector={"pool": 1})
    text, vision = model.config.text_config, model.vision_encoder.vision
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**model.vision_encoder.config["vision_config"]),
        text_config=text.to_dict(),
        image_token_id=model.config.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    reference = LlavaForConditionalGeneration(config).eval()
    assert reference.config.text_config._attn_implementation == text._attn_implementation == "sdpa"
    reference.model.vision_tower.load_state_dict(vision.vision_model.state_dict())
    reference.model.language_model.load_state_dict(model.language_model.model.state_dict())
    reference.lm_head.load_state_dict(model.language_model.lm_head.state_dict())
    for theirs, ours in ((1, 0), (2, 2)):
        projector = getattr(reference.model.multi_modal_projector, f"linear_{theirs}")
        projector.load_state_dict(model.connector.layers[ours].state_dict())
    batch = inputs(model)
    flat = {name: batch[name] for name in ("input_ids", "attention_mask")}
    images = batch["pixel_values"], batch["image_sizes"]
    flat["pixel_values"] = next(pixel_batches(*images, model.specs)).pixels_ICHW
    ours, theirs = logits(model, batch), logits(reference, flat)
    record_property("largest difference", float((ours - theirs).abs().max()))
    assert ours.std() > 0.1
    assert torch.equal(ours, theirs)


class TestForward:
    def test_each_row_of_a_mixed_batch_is_what_it_is_alone(self, tiny_vlm, rows, collate):
        model = tiny_vlm()
        together = collate(model, rows)
        for i, row in enumerate(rows):
            alone = collate(model, [row])
            length = alone.input_ids_BL.shape[1]
            assert torch.equal(together.input_ids_BL[i, :length], alone.input_ids_BL[0])
            gap = forward(model, together)[i, :length] - forward(model, alone)[0]
            assert gap.abs().max() < 1e-5

    def test_an_image_is_seen_at_its_own_place(self, tiny_vlm, noise):
        model = tiny_vlm()
        one, two = [noise(1), noise(2)], [noise(2), noise(1)]
        given, swapped = (logits(model, prompts(model, (images, "say yes"))) for images in (one, two))
        assert (given - swapped).abs().max() > 1e-2

    def test_labels_give_the_loss(self, tiny_vlm, rows, collate):
        model = tiny_vlm()
        batch = collate(model, rows)
        names = {"labels": batch.labels_BL, "loss_weights": batch.weights_BL}
        images = {n: getattr(batch, n) for n in ("pixel_values", "image_sizes")}
        with torch.no_grad():
            found = model(batch.input_ids_BL, **names, **images)
        chosen = batch.labels_BL[:, 1:] != -100
        scores = found.logits[:, :-1][chosen].log_softmax(-1)
        expected = -scores[torch.arange(len(scores)), batch.labels_BL[:, 1:][chosen]].mean()
        assert found.loss == pytest.approx(float(expected), abs=1e-6)

    def test_misfitting_placeholders_name_both_counts_and_the_row(self, tiny_vlm, inputs):
        model = tiny_vlm()
        batch = inputs(model)
        place = (batch["input_ids"][1] == model.config.image_token_id).nonzero()[0]
        batch["input_ids"][1, place] = model.config.image_token_id + 1
        with pytest.raises(VlmkitError, match=r"row 1 has 7 image placeholders .* need 8;"):
            logits(model, batch)

    @pytest.mark.parametrize("call", ["__call__", "generate"])
    def test_placeholders_without_images_are_refused(self, tiny_vlm, inputs, call):
        model = tiny_vlm()
        batch = {k: v for k, v in inputs(model).items() if k in ("input_ids", "attention_mask")}
        with pytest.raises(VlmkitError, match=r"row 0 has 4 image placeholders .* need 0"), torch.no_grad():
            getattr(model, call)(**batch)

    def test_packed_rows_refuse_an_attention_that_takes_no_such_mask(self, tiny_vlm, rows, collate):
        model = tiny_vlm()
        model.language_model.config._attn_implementation = "flash_attention_2"
        batch = collate(model, rows[3:4])
        with pytest.raises(UsageError, match="flash_attention_2"):
            forward(model, batch)


@torch.no_grad()
def forward(model, batch):
    """Logits of a training batch."""
    images = {n: getattr(batch, n) for n in ("pixel_values", "image_sizes")}
    return model(
        batch.input_ids_BL, branches=batch.branches_BL, position_ids=batch.positions_BL, **images
    ).logits


class PatchColours(VisionEncoder):
    """A stranger's encoder: mean colour and place of each patch, with a table that no checkpoint stores."""

    family = "colours"

    def __init__(self, side=16, width=8, weights=None):
        super().__init__({"side": side, "width": width}, None, weights)
        self.spec = VisionSpec(side, 4, width)
        self.linear = nn.Linear(3, width)
        self.register_buffer("places", torch.empty((side // 4) ** 2, 1), persistent=False)
        self.reset_buffers()

    @torch.no_grad()
    def reset_buffers(self):
        self.places.copy_(torch.linspace(-1, 1, len(self.places), device=self.places.device)[:, None])

    def load(self, weights):
        raise NotImplementedError

    def forward(self, batch):
        means_INC = nn.functional.avg_pool2d(batch.pixels_ICHW, 4).flatten(2).transpose(1, 2)
        tokens_INV = self.linear(means_INC) + self.places
        return VisionFeatures(first_patches(tokens_INV, 0), batch.grids_I2, batch.image_of_view_I)


def test_a_strangers_encoder_trains_saves_and_loads(tiny_recipe, monkeypatch, tmp_path, noise):
    stranger = types.ModuleType("stranger")
    stranger.PatchColours = PatchColours
    monkeypatch.setitem(sys.modules, "stranger", stranger)
    encoder = {"type": "stranger:PatchColours", "width": 6}
    parts = {part: {"lr": 1e-2} for part in ("encoder", "connector", "llm")}
    recipe = tiny_recipe(encoder=encoder, stages=[{"train": parts}], output=str(tmp_path / "run"))
    assert check_blocks(recipe.model_dump()) == []
    run = train_recipe(recipe)
    model = VLM.from_pretrained(run.path).eval()
    fresh = assemble(recipe)
    assert type(model.vision_encoder) is PatchColours and model.spec.width == 6
    assert not torch.equal(model.vision_encoder.linear.weight, fresh.vision_encoder.linear.weight)
    assert torch.equal(model.vision_encoder.places, fresh.vision_encoder.places)
    assert isinstance(model.ask(noise(1), "what color is it?", max_new_tokens=2), str)


def test_something_that_is_no_encoder_is_refused(tiny_recipe):
    with pytest.raises(UsageError, match=r"pathlib:Path.*is not a subclass of vlmkit\.encoders\.base"):
        assemble(tiny_recipe(encoder={"type": "pathlib:Path"}))
