"""What is drawn is what was measured."""

from matplotlib.figure import Figure
from PIL import Image

from vlmkit.sweep.measure import BLIND, CONNECTOR, EXACT, MEMORY, SEEN, TOKENS, Row
from vlmkit.sweep.panels import accuracy_curves, accuracy_dots, cost_bars, costs_of
from vlmkit.sweep.plot import plot_sweep
from vlmkit.sweep.tables import combine

SCORES = {"mlp": [(0.5, 0.7), (0.9, 0.8)], "gated": [(0.6, 0.6), (0.7, 0.9)]}
STEPS = "stages.vqa.steps"


def rows(seen=64):
    made = []
    for kind, by_steps in SCORES.items():
        for steps, scores in zip((400, 800), by_steps):
            for seed, score in enumerate(scores):
                own = {TOKENS: 64, SEEN: 64} if kind == "mlp" else {TOKENS: 1, SEEN: seen}
                figures = {EXACT: score, BLIND: 0.55, CONNECTOR: 1000 * len(kind), **own}
                varied = {"model.connector.type": kind, STEPS: steps}
                made.append(Row(f"{kind}{steps}{seed}", varied, {}, seed, "finished", "", figures))
    return made


def test_curves_are_means_with_the_spread_around_them():
    axes = Figure().subplots()
    mlp, gated = combine(rows())[:2], combine(rows())[2:]
    accuracy_curves(axes, {"mlp": mlp, "gated": gated}, STEPS, "steps")
    drawn = [(list(line.get_xdata()), [round(y, 6) for y in line.get_ydata()]) for line in axes.lines[:2]]
    assert drawn == [([400, 800], [60, 85]), ([400, 800], [60, 80])]
    bands = [band.get_datalim(axes.transData).extents for band in axes.collections]
    assert [[round(v, 6) for v in band] for band in bands] == [[400, 50, 800, 90], [400, 60, 800, 90]]
    assert round(axes.lines[2].get_ydata()[0], 6) == 55
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["mlp", "gated", "blank image, all runs"]


def test_dots_and_bars_have_their_numbers_beside_them():
    groups = combine(rows())
    figure = Figure(figsize=(10, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = ["one", "two", "three", "four"]
    accuracy_dots(left, groups, names)
    cost_bars(right, groups, names, CONNECTOR, ["black"])
    assert [text.get_text() for text in left.texts] == ["60.0", "85.0", "60.0", "80.0"]
    assert [text.get_text() for text in right.texts] == ["3,000", "3,000", "5,000", "5,000"]
    assert [bar.get_width() for bar in right.patches] == [3000, 3000, 5000, 5000]
    assert [label.get_text() for label in left.get_yticklabels()] == names
    figure.canvas.draw()
    for axes in (left, right):
        boxes = [text.get_window_extent() for text in axes.texts]
        assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_figure_that_is_not_known_is_said_to_be():
    axes = Figure().subplots()
    cost_bars(axes, combine(rows()), ["a", "b", "c", "d"], MEMORY, ["black"])
    assert {text.get_text() for text in axes.texts} == {"not known"}


def test_tokens_looked_at_have_a_panel_where_they_are_others():
    assert costs_of(combine(rows())) == [TOKENS, SEEN, CONNECTOR]
    assert costs_of(combine(rows(seen=1))) == [TOKENS, CONNECTOR]


def test_the_picture_has_curves_where_a_number_varies(tmp_path):
    plot_sweep(rows(), tmp_path / "curves.png")
    plot_sweep([row for row in rows() if row.varied[STEPS] == 400], tmp_path / "dots.png")
    curves, dots = (Image.open(tmp_path / name).size for name in ("curves.png", "dots.png"))
    assert curves[0] == dots[0] and curves[1] > 2 * dots[1]
    plot_sweep([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
