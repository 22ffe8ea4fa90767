"""Values of a wrong kind are refused by every family, in words, before anything is built of them."""

import re

import pytest

from vlmkit.encoders import ENCODERS, encoder_class
from vlmkit.encoders.spec import VisionSpec, hidden_state_index
from vlmkit.errors import UsageError

WRONG = [
    ({"image_size": "abc"}, "found image_size 'abc'; give a whole number of 1 or more"),
    ({"image_size": 32.5}, "found image_size 32.5; give a whole number of 1 or more"),
    ({"shortest_edge": -5}, "found shortest_edge -5; give a whole number of 0 or more"),
    ({"max_num_patches": "many"}, "found max_num_patches 'many'; give a whole number of 1 or more"),
    ({"layer": "-2"}, "found layer '-2'; give a whole number"),
    ({"layer": -1.0}, "found layer -1.0; give a whole number"),
    ({"layer": True}, "found layer True; give a whole number"),
    ({"pooled": "no"}, "found pooled 'no'; give true or false"),
    ({"mean": 0.5}, "found mean 0.5; give three numbers"),
    ({"mean": [0.5, 0.5]}, "mean has 2 values; give three"),
    ({"mean": [0.5, "a", 0.5]}, "found mean [0.5, 'a', 0.5]; give three numbers"),
    ({"std": [0, 0, 0]}, "found std [0, 0, 0]; give three numbers above 0"),
]


@pytest.mark.parametrize("family", ENCODERS)
def test_every_family_refuses_them(family, request):
    if family == "timm":
        request.getfixturevalue("timm")
    cls = encoder_class(family)
    tiny = cls.tiny_options()
    known = {*cls.__init__.__annotations__}
    tried = [(options, says) for options, says in WRONG if set(options) <= known]
    assert len(tried) >= 9
    for options, says in tried:
        with pytest.raises(UsageError, match=re.escape(f"{family}: {says}")):
            cls.from_options(**{**tiny, **options})
        with pytest.raises(UsageError, match=re.escape(f"{family}: {says}")):
            cls(**{**tiny, **options})


@pytest.mark.parametrize(("options", "says"), [w for w in WRONG if {*w[0]} <= {*VisionSpec.__annotations__}])
def test_a_spec_refuses_them(options, says):
    stated = {"image_size": 32, "patch_size": 8, "width": 16}
    VisionSpec(**stated)
    with pytest.raises(UsageError, match=re.escape(says)):
        VisionSpec(**{**stated, **options})


@pytest.mark.parametrize("layer", ["-2", -1.0, True, None])
def test_a_hidden_state_has_a_whole_number(layer):
    assert hidden_state_index("vit", -2, 4) == 3
    with pytest.raises(UsageError, match=rf"vit: found layer {layer!r}; give a whole number"):
        hidden_state_index("vit", layer, 4)
