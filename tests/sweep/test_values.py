"""Values that vary: read, written, named."""

import pytest

from vlmkit.errors import UsageError
from vlmkit.overrides import read_overrides
from vlmkit.sweep.values import as_option, as_overrides, combinations, labels, read_axes, shown, slug


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("k=mlp,pixel_shuffle", ["mlp", "pixel_shuffle"]),
        ("k=1,2.5,1e-3,true,null", [1, 2.5, 0.001, True, None]),
        (
            "k={type: perceiver, num_latents: 16},{type: mlp}",
            [{"type": "perceiver", "num_latents": 16}, {"type": "mlp"}],
        ),
        ("k=[0.9, 0.98],[0.9, 0.999]", [[0.9, 0.98], [0.9, 0.999]]),
        ("k='1','a, b'", ["1", "a, b"]),
        ("k=train+val,pypi:name,package.module:Class", ["train+val", "pypi:name", "package.module:Class"]),
        ("k=a=b", ["a=b"]),
    ],
)
def test_values_are_yaml_and_go_through_overrides_and_options_unchanged(text, values):
    assert read_axes([text], "--vary") == {"k": values}
    assert [read_overrides(as_overrides({"k": value}))["k"] for value in values] == values
    assert read_axes([as_option("k", values)], "--vary") == {"k": values}


def test_a_command_is_written_as_people_write_it():
    assert as_option("a.type", ["mlp", "c_abstractor"]) == "a.type=mlp,c_abstractor"
    assert as_option("a", [{"type": "mlp", "pool": 4}, "null"]) == 'a={type: mlp, pool: 4},"null"'


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        (["steps"], "'steps' is not KEY=V1,V2"),
        (["=1"], "is not KEY=V1,V2"),
        (["k="], "found no value"),
        (["k=1,1"], "found 1 twice"),
        (["k=[1"], "no list of YAML values"),
        (["k=2024-01-01"], "no list of YAML values"),
        (["k=1", "k=2"], "k is given twice"),
    ],
)
def test_what_is_no_list_is_explained(stated, says):
    with pytest.raises(UsageError) as raised:
        read_axes(stated, "--vary")
    assert says in str(raised.value) and "--vary" in str(raised.value)


def test_all_combinations_the_last_key_fastest():
    pairs = [tuple(values.values()) for values in combinations({"a": [1, 2], "b": "xy"})]
    assert pairs == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert combinations({}) == [{}]


def test_labels_are_short_and_tell_keys_apart():
    keys = ["model.connector.type", "stages.a.steps", "stages.b.steps", "model.encoders.0", "seed"]
    assert list(labels(keys).values()) == ["connector", "a.steps", "b.steps", "encoders.0", "seed"]
    both = ["model.connector", "model.connector.type"]
    assert list(labels(both).values()) == both


def test_folders_are_readable_and_differ():
    perceiver = {"type": "perceiver", "num_latents": 16}
    assert slug({"model.connector.type": "mlp", "stages.a.lr": 1e-05}, 0) == "connector-mlp_lr-1e-05_seed-0"
    assert slug({}, 7) == "seed-7"
    values = [perceiver, {**perceiver, "num_latents": 17}, "a/b", "a b", "a-b", "x" * 60, "x" * 61, -1, 1]
    names = [slug({"model.connector": value}, 0) for value in values]
    assert len(set(names)) == len(names)
    assert names[0].startswith("connector-perceiver-num_latents-16-")
    assert all("/" not in name and " " not in name and len(name) < 80 for name in names)
    assert shown(perceiver) == "perceiver num_latents=16"
