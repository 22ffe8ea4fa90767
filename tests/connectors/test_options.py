"""Options that are refused: every message says which connector, what was found and what to give."""

import inspect

import pytest

from vlmkit_connectors import CONNECTORS, LayerInjection

WIDTH, TEXT, LAYERS = 10, 8, 4
# Options of every connector that are sizes; `start` is a place, from 0.
SIZES = [
    (name, option)
    for name, cls in CONNECTORS.items()
    for option, parameter in inspect.signature(cls).parameters.items()
    if parameter.annotation in ("int", "int | None")
    and option not in ("text_width", "text_layers", "start")
]  # fmt: skip
DIVIDE = "does not divide width=10; give one of 1, 2, 5, 10, or another width"
OTHERS = [
    (
        "mlp",
        {"depth": 1, "expansion": 4},
        "found expansion=4 with depth=1, .*; leave it out, or give a depth",
    ),
    ("pixel_shuffle", {"variant": "mlp"}, "found variant='mlp'; give internvl or idefics3"),
    ("pool", {"tokens": 9, "factor": 2}, "found tokens=9 and factor=2; give one of them"),
    ("ldp", {"variant": "v3"}, "found variant='v3'; give v1 or v2"),
    ("perceiver", {"variant": "io"}, "found variant='io'; give flamingo or idefics2"),
    ("perceiver", {"heads": 4}, f"found heads=4, which {DIVIDE}"),
    ("perceiver", {"heads": 5, "kv_heads": 4}, "found kv_heads=4, .* divide heads=5; give one of 1, 5"),
    ("perceiver", {"intermediate": 8}, "found intermediate=8 with variant='flamingo', .*; leave it out"),
    ("qformer", {"heads": 4}, f"found heads=4, which {DIVIDE}"),
    (
        "qformer",
        {"max_question": 9},
        "found max_question=9, which does nothing without question=True; leave it out, or give question=True",
    ),
    ("sva", {"heads": 3}, f"found heads=3, which {DIVIDE}"),
    ("token_merge", {"keep": 0.5, "tokens": 4}, "found keep=0.5 and tokens=4; give one of them"),
    ("token_merge", {"keep": 0.0}, "found keep=0.0; give a share above 0 and at most 1"),
    ("token_merge", {"keep": 1.5}, "found keep=1.5; give a share above 0 and at most 1"),
    ("gated_cross_attention", {"resampler": "mlp"}, "found resampler='mlp'; give perceiver or none"),
    (
        "gated_cross_attention",
        {"every": 5},
        "found every=5, .* before layer 4, from 0, of 4 .*; give .* 0 to 3",
    ),
    (
        "gated_cross_attention",
        {"resampler": "none", "num_latents": 64, "depth": 6},
        "found num_latents=64, depth=6, which does nothing without resampler='perceiver'; leave it out",
    ),
    ("mllama", {"depth": 1}, "found depth=1, which does nothing without resampler='perceiver'; leave"),
    ("mllama", {"num_latents": 9, "resampler": "none"}, "found num_latents=9, which does nothing without"),
    ("mllama", {"resampler": "mlp"}, "found resampler='mlp'; give perceiver or none"),
    (
        "mllama",
        {"start": 4},
        "found every=4, start=4, .* before layer 4, .*; give a smaller every, or a start",
    ),
    ("mllama", {"start": -1}, "found every=4, start=-1, .* before layer -1"),
    ("mllama", {"heads": 3}, "found heads=3, which does not divide text_width=8; give one of 1, 2, 4, 8, or"),
    ("mllama", {"kv_heads": 3}, "found kv_heads=3, which does not divide heads=8"),
]


def build(name, **options):
    inside = {"text_layers": LAYERS} if issubclass(CONNECTORS[name], LayerInjection) else {}
    heads = {"heads": 2} if name in ("perceiver", "qformer", "sva") else {}
    return CONNECTORS[name](vision_widths=[WIDTH], text_width=TEXT, **heads | inside | options)


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize(("name", "option"), SIZES, ids=" ".join)
def test_sizes_below_one(name, option, number):
    with pytest.raises(ValueError, match=f"^{name} connector: found {option}={number}; give 1 or more$"):
        build(name, **{option: number})


def test_all_wrong_sizes_are_named():
    with pytest.raises(ValueError, match=r"^qformer connector: found depth=0, width=-3; give 1 or more$"):
        build("qformer", depth=0, width=-3)


@pytest.mark.parametrize(("name", "wrong", "message"), OTHERS, ids=str)
def test_other_options(name, wrong, message):
    with pytest.raises(ValueError, match=f"^{name} connector: {message}"):
        build(name, **wrong)


@pytest.mark.parametrize("name", CONNECTORS)
def test_options_that_nothing_knows(name):
    with pytest.raises(TypeError, match="no_such_option"):
        build(name, no_such_option=3)
