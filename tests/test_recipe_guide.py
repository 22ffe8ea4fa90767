"""The tables of docs/recipes.md are what the code takes: every key, every option, every default."""

import inspect
import json
import re
from pathlib import Path

from pydantic_core import PydanticUndefined

from vlmkit.data.formats import DATA_FORMATS
from vlmkit.recipe import Stage

GUIDE = (Path(__file__).parents[1] / "docs/recipes.md").read_text()


def rows(title):
    """Cells of the table after a title, without its head."""
    lines = GUIDE.split(title)[1].partition("\n\n|")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def written(default):
    return json.dumps(default).replace('"', "") or "''"


def test_every_key_of_a_stage_is_there_with_its_default():
    found = {key.strip("`"): default.strip("`") for key, default, _ in rows("**All keys of a stage.**")}
    wanted = {
        name: "needed" if field.default is PydanticUndefined else written(field.default)
        for name, field in Stage.model_fields.items()
    }
    assert found == wanted


def test_every_option_of_a_data_format_is_there_with_its_default():
    table = rows("**All options of the data formats.**")
    found = {name.strip("`"): re.findall(r"`(.+?)`", options) for name, options in table}
    wanted = {
        name: [
            p.name if p.default is p.empty else f"{p.name}: {written(p.default)}"
            for p in inspect.signature(make).parameters.values()
        ]
        for name, make in DATA_FORMATS.items()
    }
    assert found == wanted
