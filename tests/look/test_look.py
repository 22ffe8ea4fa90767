"""The pictures: which panels, how many pixels, nothing over anything else; and their command."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from vlmkit.cli import main
from vlmkit.embedders import load_encoder
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.look import Options, look
from vlmkit.look.attention_panel import attention_panel
from vlmkit.look.draw import compose
from vlmkit.look.panel import Panel
from vlmkit.look.panels import PANELS, answer_panel, image_panel
from vlmkit.look.place import Place, place_of
from vlmkit.look.scene import observe

ENCODER = ("image", "pca", "attention", "similarity", "positions")


def boxes(panels, roles):
    """Every text and every picture of the figure, in pixels, with the figure's own box."""
    figure = compose(
        panels, roles, "a header of $usual$ length; image of 64 x 64 px, encoder vit, layout square"
    )
    figure.draw_without_rendering()
    texts = [text.get_window_extent() for text in figure.texts]
    return texts, [axes.get_tightbbox() for axes in figure.axes], figure.bbox


def overlap(one, other):
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    return width > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1


@pytest.mark.parametrize("size", [(64, 64), (300, 30), (200, 60), (30, 200)])
@pytest.mark.parametrize("count", [1, 5])
def test_nothing_overlaps_and_nothing_is_cut(tower, gradient, size, count):
    scene = observe(tower("naflex"), gradient(size))
    panels = [panel for name in ENCODER[-count:] for panel in PANELS[name](scene, Options(), None)]
    texts, pictures, page = boxes(panels, scene.roles)
    assert len(texts) == count + 1
    for box in (*texts, *pictures):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    assert not any(overlap(a, b) for a, b in combinations([*texts, *pictures], 2))
    assert page.width == 1760 and 300 < page.height < 2600


@pytest.mark.parametrize("shade", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_borders_of_patches_are_seen_on_every_shade(shade):
    picture = np.full((32, 32, 3), shade, np.float32)

    def drawn(grid):
        figure = compose([Panel("grey", (picture,), grid=grid)], ["full"], "header")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].astype(float)

    changed = np.abs(drawn(8) - drawn(0)).max(-1)
    assert changed.max() > 40 and (changed > 40).mean() > 0.001


def test_several_views_do_not_overlap():
    tiles = tuple(np.random.default_rng(0).random((5, 12, 12), np.float32))
    titled = (
        "Attention rollout over layers 1 to 24, mean of 16 heads, from the marked patch (row 3, column 4)"
    )
    panel = Panel(titled, tiles, 8, "cosine", Place(3, 2, 9))
    texts, pictures, _ = boxes([panel] * 3, ["thumbnail"] + ["tile"] * 4)
    assert len(pictures) == 18
    assert not any(overlap(a, b) for a, b in combinations([*texts, *pictures], 2))


def test_the_image_is_what_the_encoder_gets(tower, gradient):
    image = gradient((48, 48))
    (panel,) = image_panel(observe(tower("vit"), image), Options(), None)
    assert np.abs(panel.tiles[0] * 255 - np.asarray(image)).max() < 1e-3
    assert "6 x 6 patches" in panel.title


@pytest.mark.parametrize(
    ("options", "title", "row"),
    [
        (Options(), "Attention rollout over layers 1 to 3, mean of 4 heads, from the one prefix token", 0),
        (Options(layer=2), "Attention, layer 2 of 3, mean of 4 heads, from the one prefix token", 0),
        (Options(head=4, layer=1), "Attention, layer 1 of 3, head 4 of 4, from the one prefix token", 0),
        (
            Options(head=1, source="at", at=(30, 9)),
            "layer 3 of 3, head 1 of 4, from the marked patch (row 2",
            10,
        ),
        (
            Options(layer=3, source="mean"),
            "layer 3 of 3, mean of 4 heads, from the mean of all patches",
            None,
        ),
    ],
)
def test_attention_is_that_of_the_title(tower, gradient, options, title, row):
    """By hand, out of the calls: the layer, the head, the row, without the prefix."""
    scene = observe(tower("clip"), gradient((48, 48)))
    (panel,) = attention_panel(scene, options, None)
    assert title in panel.title
    layers = [call.probabilities()[0] for call in scene.calls]
    maps = [own.mean(0) if options.head is None else own[options.head - 1] for own in layers]
    wanted = maps[(options.layer or 3) - 1]
    if options == Options():
        eye = np.eye(37)
        wanted = (eye + maps[2].numpy()) @ (eye + maps[1].numpy()) @ (eye + maps[0].numpy()) / 8
    place = place_of(scene.encoder.spec, (48, 48), options.at)
    assert row != 10 or ((place.row, place.col) == (1, 3) and panel.mark == place)
    wanted = np.asarray(wanted)
    own = wanted[1:].mean(0) if row is None else wanted[row]
    assert np.abs(panel.tiles[0] - 100 * own[1:].reshape(6, 6)).max() < 1e-3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(head=5), "no head 5; it has 1 to 4"),
        (Options(layer=4), "no attention layer 4; it has 1 to 3"),
        (Options(source="prefix"), "'siglip' has no CLS token"),
        (Options(at=(500, 1)), "not in the image"),
    ],
)
def test_what_does_not_exist_is_explained(tower, gradient, tmp_path, options, says):
    with pytest.raises(UsageError, match=says):
        look(tower("siglip"), gradient((48, 48)), tmp_path / "x.png", options)
    assert not (tmp_path / "x.png").exists()


def test_what_is_not_possible_is_left_out_with_its_reason(tower, gradient, tmp_path):
    encoder = tower("clip").train()
    encoder.vision.config._attn_implementation = "eager"
    seen = look(encoder, gradient((48, 48)), tmp_path / "x.png")
    assert seen.panels == ("image", "pca", "similarity", "positions")
    assert "scaled_dot_product_attention" in seen.left_out["attention"]
    assert encoder.training and encoder.vision.training
    with pytest.raises(VlmkitError, match="attention: no attention over all 37 tokens"):
        look(encoder, gradient((48, 48)), tmp_path / "y.png", only=["attention"])
    with pytest.raises(UsageError, match=r"ends in \.png"):
        look(encoder, gradient((48, 48)), tmp_path / "y.jpg")


def test_a_model_shows_its_answer_too(tiny_vlm, noise, tmp_path):
    model, options = tiny_vlm(), Options(question="what color is it?")
    seen = look(model, noise(0), tmp_path / "x.png", options)
    assert seen.panels == (*ENCODER, "answer") and not seen.left_out
    on_tokens, over = answer_panel(observe(model.vision_encoder, noise(0)), options, model)
    assert on_tokens.tiles[0].shape == (2, 2) and over.tiles[0].shape == (16, 16, 3)
    assert "LLM layer 2 of 2, mean of 4 heads" in on_tokens.title
    most = np.unravel_index(on_tokens.tiles[0].argmax(), (2, 2))
    lit = over.tiles[0].reshape(2, 8, 2, 8, 3)[most[0], :, most[1]]
    kept = (np.asarray(noise(0)) / 255).reshape(2, 8, 2, 8, 3)[most[0], :, most[1]]
    assert np.abs(lit - kept).max() < 1e-5


@pytest.fixture
def weights(tower, tmp_path):
    """A CLIP checkpoint's folder."""
    tower("clip").vision.save_pretrained(tmp_path / "weights")
    return f"clip:{tmp_path / 'weights'}"


@pytest.mark.parametrize(
    ("arguments", "panels"),
    [([], ENCODER), (["--only", "similarity,attention", "--at", "10,20", "--head", "2"], ENCODER[2:4])],
)
def test_the_command_writes_a_png(weights, gradient, tmp_path, capsys, arguments, panels):
    gradient((60, 40)).save(tmp_path / "photo.png")
    out = tmp_path / "out.png"
    assert main(["look", weights, str(tmp_path / "photo.png"), "-o", str(out), *arguments]) == 0
    assert capsys.readouterr().out == f"{out}: {', '.join(panels)}\n"
    picture = Image.open(out)
    assert picture.format == "PNG" and picture.width == 1760
    assert len(picture.convert("RGB").getcolors(10**6)) > 100


def test_options_of_the_encoder_are_taken(weights, gradient, tmp_path, capsys):
    gradient((60, 40)).save(tmp_path / "photo.png")
    argv = [str(tmp_path / "photo.png"), "-o", str(tmp_path / "x.png"), "--only", "image,pca"]
    assert main(["look", weights, *argv, "layout=pad", "layer=0"]) == 0
    assert load_encoder(weights, layout="pad", layer=0).spec.layer == 0
    assert capsys.readouterr().out.endswith("x.png: image, pca\n")


BAD = [
    (["clip"], 2, "without weights is random"),
    (["nothing"], 2, "FAMILY:WEIGHTS"),
    (["W", "--question", "what?"], 2, "is no directory"),
    (["W", "--only", "answer"], 2, "needs a question"),
    (["W", "--only", "atention"], 2, "did you mean 'attention'"),
    (["W", "--token", "2"], 2, "give --question"),
    (["W", "--head", "9"], 2, "no head 9"),
    (["W", "widht=3"], 2, "unknown option of encoder 'clip': 'widht'"),
    (["weights"], 2, "weights is a 'clip_vision_model' checkpoint, no run; name its encoder: clip:weights"),
    (["W", "--at", "1,900"], 2, "not in the image of 60 x 40"),
    (["W", "-o", "no/folder/x.png"], 2, "does not exist"),
    (["W", "-o", "x.gif"], 2, ".png"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), BAD, ids=[" ".join(a) for a, _, _ in BAD])
def test_wrong_commands_are_explained(
    weights, gradient, tmp_path, capsys, monkeypatch, arguments, code, says
):
    monkeypatch.chdir(tmp_path)
    gradient((60, 40)).save("photo.png")
    model, *rest = [weights if a == "W" else a for a in arguments]
    assert main(["look", model, "photo.png", *rest]) == code
    assert says in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} <= {"weights", "photo.png"}


def test_a_missing_image_is_explained(weights, capsys):
    assert main(["look", weights, "gone.png"]) == 1
    assert "gone.png does not exist" in capsys.readouterr().err
