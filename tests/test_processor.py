"""The processor as transformers uses it: by text and by messages the inputs of `VLM.ask`; saved; refused."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoProcessor, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from vlmkit import VLM, Processor, UsageError, VlmkitError
from vlmkit.data.prompts import PROMPTS
from vlmkit.inference import model_inputs, question
from vlmkit.llm import add_image_token

MODELS = {"vit-llama": ("llama", False), "clip-gpt2": ("gpt2", True)}
# As language models have it: content is text, and a list in its place is an error.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PADDED = {"return_tensors": "pt", "padding": True}
INPUTS = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}


def chat(images, text):
    """Messages as users of transformers write them."""
    items = [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}]
    return [{"role": "user", "content": items}]


def same(found, expected):
    """Whether inputs are equal to the bit."""
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module", params=MODELS)
def run(request, tiny_vlm, tiny_clip, tmp_path_factory):
    llm, clip = MODELS[request.param]
    folder = tmp_path_factory.mktemp("run")
    tiny_vlm(llm, **({"encoder": tiny_clip} if clip else {})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def processor(run):
    return AutoProcessor.from_pretrained(run)


@pytest.fixture
def asked(noise):
    """Images of several sizes and questions of several lengths: one image, two, none."""
    two = [noise(2), noise(3, (9, 30))]
    return [
        ([noise(1, (40, 24))], "what color is it?"),
        (two, "which of them is a blue square?"),
        ([], "yes"),
    ]


@pytest.fixture
def expected(run, asked):
    """What `VLM.ask` gives to the model."""
    return model_inputs(VLM.from_pretrained(run), [question(*one) for one in asked])


def bytes_tokenizer():
    """A byte-level tokenizer with an old template, to which the placeholder is added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["what color is it?\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHATML
    )


class TestInputs:
    @pytest.mark.parametrize("nested", [True, False])
    def test_rendered_text_and_images_give_the_inputs_of_ask(self, processor, asked, expected, nested):
        texts = [processor.apply_chat_template(chat(*one), add_generation_prompt=True) for one in asked]
        images = [own for own, _ in asked]
        flat = [image for own in images for image in own]
        assert same(processor(text=texts, images=images if nested else flat, **PADDED), expected)
        assert not expected["attention_mask"][2, 0] and expected["attention_mask"][:, -1].all()

    def test_messages_give_the_inputs_of_ask(self, processor, asked, expected):
        assert same(processor.apply_chat_template([chat(*one) for one in asked], **INPUTS), expected)
        alone = processor.apply_chat_template(chat(*asked[0]), **INPUTS)
        length = alone["input_ids"].shape[1]
        assert alone["input_ids"].tolist() == expected["input_ids"][:1, -length:].tolist()
        ids = processor.apply_chat_template(chat(*asked[0]), **{**INPUTS, "return_dict": False})
        assert torch.equal(ids, alone["input_ids"])

    def test_a_string_alone_is_a_batch_of_one(self, processor, noise, tmp_path):
        noise(1).save(tmp_path / "image.png")
        text = processor.apply_chat_template(chat([None], "say yes"), add_generation_prompt=True)
        found = processor(text=text, images=tmp_path / "image.png", **PADDED)
        assert same(found, processor(text=[text], images=[[noise(1)]], **PADDED))
        count = processor.count_tokens((16, 16))
        assert (found["input_ids"] == processor.image_token_id).sum() == count

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_every_prompt_format_takes_messages(self, processor, noise, prompt):
        """Also over a template that knows text alone, and without a template where the format needs none."""
        tokenizer = bytes_tokenizer()
        if prompt != "chat_template":
            tokenizer.chat_template = None
        parts = processor.image_processor, tokenizer, processor.connector, PROMPTS[prompt]
        ours = Processor(*parts, add_image_token(tokenizer))
        one = [noise(1), noise(2)], "what color is it?"
        query = question(*one)
        expected = ours.prompts([query.conversation], [query.images])
        assert same(ours.apply_chat_template(chat(*one), **INPUTS), expected)
        text = ours.apply_chat_template(chat(*one), add_generation_prompt=True)
        assert text.count("<image>") == 2 and ("<|im_start|>" in text) == (
            prompt in ("chatml", "chat_template")
        )
        assert same(ours(text=text, images=one[0], **PADDED), expected)

    def test_a_whole_conversation_is_rendered_with_its_answers(self, processor):
        messages = [*chat([None], "what color is it?"), {"role": "assistant", "content": "red"}]
        assert processor.apply_chat_template(messages) == "<s><image>what color is it? red</s>"

    def test_the_image_processor_alone(self, run, noise):
        found = AutoImageProcessor.from_pretrained(run)([noise(1), noise(2)], return_tensors="pt")
        assert found["pixel_values"].shape == (2, 3 * 16 * 16)
        assert found["image_sizes"].tolist() == [[[16, 16, 0]]] * 2


class TestSaving:
    def test_what_is_saved_comes_back_bit_equal(self, run, processor, asked, tmp_path):
        model = VLM.from_pretrained(run)
        model.processor = processor
        model.save_pretrained(tmp_path)
        again = AutoProcessor.from_pretrained(tmp_path)
        assert type(again) is Processor and again.specs == processor.specs
        messages = [chat(*one) for one in asked]
        found, before = (p.apply_chat_template(messages, **INPUTS) for p in (again, processor))
        assert same(found, before)
        for name in ("processor_config.json", "chat_template.jinja", "tokenizer.json"):
            assert (tmp_path / name).read_bytes() == (run / name).read_bytes()

    def test_the_file_nests_the_image_processor(self, run, processor):
        stored = json.loads((run / "processor_config.json").read_text())
        assert stored["processor_class"] == "Processor"
        assert stored["image_processor"]["image_processor_type"] == "VLMImageProcessor"
        assert AutoImageProcessor.from_pretrained(run).specs == processor.specs

    def test_a_template_that_is_set_is_the_one_that_is_saved(self, run, tmp_path):
        processor = AutoProcessor.from_pretrained(run)
        processor.tokenizer.chat_template = CHATML
        processor.save_pretrained(tmp_path)
        assert processor.chat_template == (tmp_path / "chat_template.jinja").read_text() == CHATML

    def test_a_run_from_before_there_was_a_processor_file_loads(self, tiny_vlm, tmp_path, noise):
        tiny_vlm().save_pretrained(tmp_path)
        (tmp_path / "processor_config.json").unlink()
        assert type(AutoProcessor.from_pretrained(tmp_path)) is Processor
        assert VLM.from_pretrained(tmp_path).processor.count_tokens((16, 16)) == 4

    def test_a_file_that_contradicts_the_configuration_is_refused(self, tiny_vlm, tmp_path):
        tiny_vlm().save_pretrained(tmp_path)
        file = tmp_path / "processor_config.json"
        stored = json.loads(file.read_text())
        stored["image_processor"]["specs"][0]["image_size"] = 32
        file.write_text(json.dumps(stored))
        with pytest.raises(
            VlmkitError, match=r"has image_size 32, the encoder in config.json has 16; remove"
        ):
            AutoProcessor.from_pretrained(tmp_path)


class TestRefusals:
    @pytest.mark.parametrize(
        ("texts", "images", "error"),
        [
            ("say yes", 1, r"text has 0 image placeholders and 1 images were given"),
            ("<image><image>say yes", 1, r"text has 2 image placeholders and 1 images were given"),
            ("<image>say yes", 0, r"text has 1 image placeholders and 0 images were given"),
            (["<image>yes", "no"], [1, 1], r"text has \[1, 0\] image placeholders and \[1, 1\] images"),
            (["<image>yes", "no"], [1], r"text has \[1, 0\] image placeholders and \[1\] images"),
        ],
    )
    def test_images_and_placeholders_that_differ_are_both_counted(
        self, processor, noise, texts, images, error
    ):
        given = [[noise(1)] * n for n in images] if isinstance(images, list) else [noise(1)] * images
        with pytest.raises(UsageError, match=error):
            processor(text=texts, images=given)

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"text": None}, "text is needed"),
            ({"text": []}, "text is needed"),
            ({"text": "zebra"}, "vocabulary lacks: 'zebra'"),
            ({"images": 7}, "image of type int is not possible"),
            ({"padding": "max_length"}, "padding='max_length' is not possible; possible: True, 'longest'"),
            ({"return_tensors": "np"}, "return_tensors='np' is not possible"),
            ({"max_length": 8}, "option 'max_length' is not possible; known: padding"),
        ],
    )
    def test_what_it_cannot_do_is_an_error(self, processor, options, error):
        with pytest.raises(UsageError, match=error):
            processor(**{"text": "say yes", **options})

    def test_messages_that_cannot_be_answered_are_errors(self, processor):
        with pytest.raises(UsageError, match="pass add_generation_prompt=True"):
            processor.apply_chat_template(chat([], "say yes"))
        with pytest.raises(UsageError, match="not possible without an image"):
            processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], **INPUTS)
        with pytest.raises(UsageError, match="image of type int is not possible"):
            processor.apply_chat_template(chat([7], "say yes"), **INPUTS)
        with pytest.raises(VlmkitError, match=r"roles are \[\]"):
            processor.apply_chat_template([], **INPUTS)
        with pytest.raises(UsageError, match="special token '<image>'"):
            processor.apply_chat_template(chat([], "<image>say yes"), **INPUTS)
        with pytest.raises(UsageError, match=r"tools=\[1\] is not possible; possible: None"):
            processor.apply_chat_template(chat([], "say yes"), tools=[1], **INPUTS)
