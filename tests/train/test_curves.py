"""The picture of a run's figures: which curves it has, whatever rows there are."""

import json

import pytest
from PIL import Image

from vlmkit.train.curves import PANELS, plot_metrics, running_mean


def row(step, stage="one", **more):
    told = {"lr": 1.0, "grad_norm": 2.0, "grad_norms": {"llm": 2.0}, "tokens_per_second": 9.0, "mfu": None}
    return {"stage": stage, "step": step, "next_token": 4.0 / step, **told, **more}


def curves(rows):
    return {panel.label: panel.curves(rows) for panel in PANELS if panel.curves(rows)}


def test_each_figure_has_its_curve():
    rows = [row(1, source_loss={"a": 1.0}), row(2, source_loss={"a": 0.5, "b": 3.0}, mfu=0.4)]
    found = curves(rows)
    assert found["loss"] == {"next_token": [4.0, 2.0]}
    assert found["loss by source"] == {"a": [1.0, 0.5], "b": [None, 3.0]}
    assert found["MFU"] == {"MFU": [None, 0.4]}
    assert "padding" not in found and "images/s" not in found


def test_parts_are_drawn_with_the_whole_where_there_are_several():
    several = [row(1, grad_norms={"llm": 1.0, "encoder": 2.0})]
    assert list(curves(several)["gradient norm"]) == ["llm", "encoder", "all"]
    assert list(curves([row(1)])["gradient norm"]) == ["llm"]


def test_a_running_mean_looks_back():
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(1)],
        # Of a version that wrote less.
        [{"stage": "old", "step": step, "next_token": 1.0, "grad_norm": 1.0, "lr": 0.5} for step in (1, 2)],
        # Not a finite number.
        [row(1, next_token=None, grad_norm=None), row(2)],
        [row(step, padding=0.2, source_loss={"x": step}) for step in range(1, 200)] + [row(1, "two")],
    ],
    ids=["nothing", "a step", "old rows", "no number", "two stages"],
)
def test_any_rows_are_drawn(tmp_path, rows):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(own) + "\n" for own in rows))
    plot_metrics(file, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        stages = len({own["stage"] for own in rows})
        assert picture.width == pytest.approx(744 * max(1, stages), abs=2)
