"""The kit finds nothing wrong with a right encoder, and each mistake by the check that is named after it."""

import contextlib
import math
import os
import socket

import numpy as np
import pytest
import torch
from torch import nn

from vlmkit.encoders import ENCODERS, encoder_class
from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.spec import VisionSpec, hidden_state_index
from vlmkit.errors import UsageError
from vlmkit.testing import CHECKS, check_encoder
from vlmkit_connectors import VisionFeatures

PATCH, WIDTH = 8, 24


class Block(nn.Module):
    """A token sees itself and the mean of its view."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.own = nn.Linear(WIDTH, WIDTH)
        self.others = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens_PV):
        normed_PV = self.norm(tokens_PV)
        return tokens_PV + self.own(normed_PV) + self.others(normed_PV.mean(0, keepdim=True))


class Right(VisionEncoder):
    """A stranger's encoder: native views one by one, a CLS token, two blocks, a vector from the CLS token."""

    family = "stranger"
    any_grid = True

    def __init__(self, layer=-1, embed_dim=10, layout="native", weights=None):
        super().__init__({"layer": layer, "embed_dim": embed_dim, "layout": layout}, None, weights)
        self.spec = self.make_spec(layer=layer, embed_dim=embed_dim, layout=layout)
        self.blocks_run = hidden_state_index(self.family, layer, 2)
        self.stem = nn.Linear(3 * PATCH * PATCH, WIDTH)
        self.place = nn.Linear(2, WIDTH)
        self.cls = nn.Parameter(torch.randn(1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, embed_dim)

    @classmethod
    def tiny_options(cls):
        return {}

    def make_spec(self, kind=VisionSpec, **stated):
        return kind(32, PATCH, WIDTH, prefix_tokens=1, max_patches=20, std=(0.2, 0.3, 0.4), **stated)

    def load(self, weights):
        self.load_state_dict(torch.load(weights, weights_only=True))

    def embed(self, pixels, rows, cols):
        patches = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4)
        places = torch.cartesian_prod(torch.arange(rows) / rows, torch.arange(cols) / cols)
        tokens = self.stem(patches.reshape(rows * cols, -1)) + self.place(places.to(pixels))
        return torch.cat([self.cls, tokens])

    def run(self, views):
        """Hidden states above each block, of each view."""
        states = [views]
        for block in self.blocks:
            states.append([block(tokens) for tokens in states[-1]])
        return states

    def patches(self, tokens, rows, cols):
        return tokens[1:]

    def first(self, owners):
        return [owners.index(image) for image in dict.fromkeys(owners)]

    def forward(self, batch):
        grids, owners = batch.grids_I2.tolist(), batch.image_of_view_I.tolist()
        views = [self.embed(pixels, *grid) for pixels, grid in zip(batch.views(), grids, strict=True)]
        states = self.run(views)
        patches = [self.patches(x, *grid) for x, grid in zip(states[self.blocks_run], grids, strict=True)]
        pooled = self.head(torch.stack([states[-1][i][0] for i in self.first(owners)]))
        return VisionFeatures(torch.cat(patches), self.grids(batch), batch.image_of_view_I, pooled)

    def grids(self, batch):
        return batch.grids_I2


def with_outputs(features, change):
    outputs = change(features.patches_TV), change(features.pooled_BE)
    return VisionFeatures(outputs[0], features.grids_I2, features.image_of_view_I, outputs[1])


class ClsIsReturned(Right):
    def patches(self, tokens, rows, cols):
        return tokens


class ClsForTheFirstPatch(Right):
    def patches(self, tokens, rows, cols):
        return tokens[:-1]


class ColumnByColumn(Right):
    def patches(self, tokens, rows, cols):
        return tokens[1:].view(rows, cols, -1).transpose(0, 1).flatten(0, 1)


class GridsTransposed(Right):
    def grids(self, batch):
        return batch.grids_I2.flip(1)


class CoupledByBatchNorm(Right):
    """Statistics of the batch in evaluation mode, as of a batch norm that was left in training mode."""

    def run(self, views):
        tokens = torch.cat(views)
        return super().run([(view - tokens.mean(0)) / (tokens.std(0) + 1e-3) for view in views])


class PaddingLeaks(Right):
    """Views are padded to the longest of the batch, and the mean is taken over the padding too."""

    def run(self, views):
        longest = max(map(len, views))
        states = super().run([nn.functional.pad(view, (0, 0, 0, longest - len(view))) for view in views])
        return [[x[: len(view)] for x, view in zip(state, views, strict=True)] for state in states]


class Dropout(Right):
    def run(self, views):
        return super().run([nn.functional.dropout(view, 0.1, training=True) for view in views])


class NotNormalised(VisionSpec):
    def _normalise(self, picture, out_CHW):
        out_CHW[:] = (np.asarray(picture) / 255).transpose(2, 0, 1)


class BlueFirst(VisionSpec):
    def _normalise(self, picture, out_CHW):
        super()._normalise(picture, out_CHW)
        out_CHW[:] = out_CHW[::-1].copy()


class RgbAlone(VisionSpec):
    def preprocess(self, image, level=0):
        if image.mode != "RGB":
            raise ValueError("not RGB")
        return super().preprocess(image, level)


class OnItsSide(VisionSpec):
    """Rows and columns of the pixels are taken for each other."""

    def preprocess(self, image, level=0):
        return [x.reshape(3, x.shape[2], x.shape[1]) for x in super().preprocess(image, level)]


class UnnormalisedPixels(Right):
    def make_spec(self, **stated):
        return super().make_spec(NotNormalised, **stated)


class BlueForRed(Right):
    def make_spec(self, **stated):
        return super().make_spec(BlueFirst, **stated)


class RgbPicturesAlone(Right):
    def make_spec(self, **stated):
        return super().make_spec(RgbAlone, **stated)


class PicturesOnTheirSide(Right):
    def make_spec(self, **stated):
        return super().make_spec(OnItsSide, **stated)


class WidthIsWrong(Right):
    def __init__(self, layer=-1, embed_dim=10, layout="native", weights=None):
        super().__init__(layer, embed_dim, layout, weights)
        self.spec = VisionSpec(32, PATCH, 2 * WIDTH, max_patches=20, layout="native", embed_dim=embed_dim)


class VectorWidthIsWrong(Right):
    def make_spec(self, embed_dim, **stated):
        return super().make_spec(embed_dim=embed_dim + 1, **stated)


class BufferIsNotSaved(Right):
    def __init__(self, layer=-1, embed_dim=10, layout="native", weights=None):
        super().__init__(layer, embed_dim, layout, weights)
        self.register_buffer("shift", torch.randn(WIDTH), persistent=False)

    def run(self, views):
        return super().run([view + self.shift for view in views])


class OptionIsNotStored(Right):
    def __init__(self, layer=-1, embed_dim=10, layout="native", slope=2.0, weights=None):
        super().__init__(layer, embed_dim, layout, weights)
        self.slope = slope

    @classmethod
    def tiny_options(cls):
        return {"slope": 0.5}

    def run(self, views):
        return super().run([view * self.slope for view in views])


class LastViewIsPooled(Right):
    def first(self, owners):
        return [len(owners) - 1 - owners[::-1].index(image) for image in dict.fromkeys(owners)]


class LayerIsIgnored(Right):
    def run(self, views):
        self.blocks_run = len(self.blocks)
        return super().run(views)


class LayerIsNotChecked(Right):
    def __init__(self, layer=-1, embed_dim=10, layout="native", weights=None):
        super().__init__(max(-3, min(layer, 2)), embed_dim, layout, weights)
        self.config["layer"] = layer
        self.spec = self.make_spec(layer=layer, embed_dim=embed_dim, layout=layout)


class StemIsDetached(Right):
    def embed(self, pixels, rows, cols):
        with torch.no_grad():
            return super().embed(pixels, rows, cols)


class GraphWhileFrozen(Right):
    def forward(self, batch):
        return with_outputs(
            super().forward(batch), lambda x: x.requires_grad_() if torch.is_grad_enabled() else x
        )


class WidenedOutputs(Right):
    def forward(self, batch):
        return with_outputs(super().forward(batch), lambda x: x.float())


class FingerprintOfTheConfiguration(Right):
    def compute_fingerprint(self):
        return str(hash(str(self.config)))


class VectorsOfAnyLength(Right):
    def embed_images(self, images):
        vectors = super().embed_images(images)
        return 2 * vectors


class SeedsTorch(Right):
    def forward(self, batch):
        torch.manual_seed(1)
        return super().forward(batch)


class SetsTheEnvironment(Right):
    def __init__(self, layer=-1, embed_dim=10, layout="native", weights=None):
        super().__init__(layer, embed_dim, layout, weights)
        os.environ["STRANGER"] = str(int(os.environ.get("STRANGER", "0")) + 1)


class LeavesTrainingModeOff(Right):
    def embed_images(self, images):
        return super(Right, self.eval()).embed_images(images)


class CallsHome(Right):
    def forward(self, batch):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=0.01).close()
        return super().forward(batch)


class SquaresAreRefused(Right):
    def check_views(self):
        if self.spec.layout != "native":
            raise UsageError("native alone")


BROKEN = {
    ClsIsReturned: "forward",
    WidthIsWrong: "forward",
    VectorWidthIsWrong: "forward",
    ClsForTheFirstPatch: "order",
    ColumnByColumn: "order",
    GridsTransposed: "grids",
    SquaresAreRefused: "grids",
    PicturesOnTheirSide: "views",
    UnnormalisedPixels: "pixels",
    BlueForRed: "pixels",
    RgbPicturesAlone: "modes",
    Dropout: "repeat",
    CoupledByBatchNorm: "batch",
    PaddingLeaks: "packing",
    LastViewIsPooled: "first view",
    LayerIsIgnored: "layer",
    LayerIsNotChecked: "layer",
    VectorsOfAnyLength: "vector",
    WidenedOutputs: "dtype",
    BufferIsNotSaved: "round trip",
    OptionIsNotStored: "round trip",
    FingerprintOfTheConfiguration: "fingerprint",
    GraphWhileFrozen: "frozen",
    StemIsDetached: "trainable",
    SeedsTorch: "global state",
    SetsTheEnvironment: "global state",
    LeavesTrainingModeOff: "global state",
    CallsHome: "offline",
}
# They have nothing to check without weights, a reference or a text tower; see test_references.py.
ELSEWHERE = {"processor", "reference", "text"}


def test_a_right_encoder_passes_every_check():
    report = check_encoder(Right)
    report.raise_for_failures()
    skipped = {row.name for row in report.rows if row.status == "skipped"}
    assert report.ok and skipped == ELSEWHERE
    assert [row.name for row in report.rows] == list(CHECKS)
    assert all(row.about.endswith(".") and row.measured for row in report.rows)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_a_mistake_is_found_by_its_check_alone(broken, monkeypatch):
    monkeypatch.setenv("STRANGER", "0")
    report = check_encoder(broken)
    assert report.failed == (BROKEN[broken],), str(report)
    with pytest.raises(AssertionError, match=rf"{BROKEN[broken]}\s+failed"):
        report.raise_for_failures()


class WithoutLayout(VisionEncoder):
    """Squares of 32 pixels, by a convolution; it has no argument `layout`."""

    family = "squares"

    def __init__(self, weights=None):
        super().__init__({}, None, weights)
        self.spec = VisionSpec(32, PATCH, WIDTH)
        self.stem = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    tiny_options = Right.tiny_options
    load = Right.load

    def forward(self, batch):
        patches = self.stem(batch.pixels_ICHW).flatten(2).transpose(1, 2)
        return VisionFeatures(patches.flatten(0, 1), batch.grids_I2, batch.image_of_view_I)


def test_an_encoder_without_the_argument_is_tried_in_other_layouts_too():
    class OneViewAnImage(WithoutLayout):
        def forward(self, batch):
            images = int(batch.image_of_view_I.max()) + 1
            patches = self.stem(batch.pixels_ICHW[:images]).flatten(2).transpose(1, 2)
            return VisionFeatures(patches.flatten(0, 1), batch.grids_I2, batch.image_of_view_I)

    right, wrong = (check_encoder(cls, only=["grids"]).rows[-1] for cls in (WithoutLayout, OneViewAnImage))
    assert right.status == "passed" and "split" in right.measured.partition("refused")[0]
    assert "native" in right.measured.partition("refused")[2]
    assert wrong.status == "failed" and "in layout anyres: raised" in wrong.measured


def test_every_check_has_a_mistake():
    assert set(BROKEN.values()) | ELSEWHERE == set(CHECKS)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_family_passes(name, request):
    if name == "timm":
        request.getfixturevalue("timm")
    options = {"embed_dim": 12} if name == "vit" else None
    check_encoder(encoder_class(name), options).raise_for_failures()


@pytest.mark.parametrize("trained", [False, True], ids=["twin", "given"])
def test_a_stem_of_overlapping_convolutions_passes(trained):
    vit = encoder_class("vit")
    built = vit(**{**vit.tiny_options(), "stem": "conv"})
    report = check_encoder(built) if trained else check_encoder(vit, {"stem": "conv"})
    report.raise_for_failures()


def test_what_needs_a_check_that_failed_is_skipped_and_says_so():
    rows = {row.name: row for row in check_encoder(Dropout).rows}
    assert (rows["batch"].status, rows["batch"].measured) == ("skipped", "needs repeat")
    assert rows["packing"].measured == "needs repeat, batch"


def test_some_checks_alone_run_with_those_they_need():
    report = check_encoder(Right, only=["packing"])
    assert [row.name for row in report.rows] == ["forward", "repeat", "batch", "packing"]
    with pytest.raises(UsageError, match="unknown check 'paking'; did you mean 'packing'"):
        check_encoder(Right, only=["paking"])


def test_an_error_of_the_encoder_is_what_the_check_found():
    class Raises(Right):
        def forward(self, batch):
            raise RuntimeError("no such\nkernel")

    rows = {row.name: row for row in check_encoder(Raises).rows}
    assert rows["forward"].measured == "raised RuntimeError: no such kernel"
    assert rows["views"].status == "passed" and rows["order"].status == "skipped"


def test_options_are_laid_over_the_tiny_ones():
    report = check_encoder(Right, {"embed_dim": 7}, only=["forward"])
    assert report.ok and report.rows[0].measured == "16 tokens of 24, vector of 7"
    with pytest.raises(UsageError, match="unknown option of encoder 'stranger': 'widht'"):
        check_encoder(Right, {"widht": 3})


def test_a_class_without_a_tiny_twin_needs_options():
    class Untold(Right):
        tiny_options = VisionEncoder.tiny_options

    with pytest.raises(UsageError, match="states no tiny twin"):
        check_encoder(Untold)
    check_encoder(Untold, {"layer": 1}, only=["forward"]).raise_for_failures()


def test_a_built_encoder_is_checked_as_it_is_and_not_changed():
    encoder = Right().bfloat16().train()
    stated, tensors = encoder.fingerprint, {k: v.clone() for k, v in encoder.state_dict().items()}
    state = torch.get_rng_state()
    check_encoder(encoder).raise_for_failures()
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.training and encoder.dtype == torch.bfloat16 and encoder.fingerprint == stated
    assert all(torch.equal(tensors[k], v) for k, v in encoder.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


@torch.no_grad()
def test_what_training_put_where_is_no_mistake_in_the_order():
    """Trained weights may show a patch best at another place; which token is which is seen without them."""
    encoder = Right()
    for block in encoder.blocks:
        block.others.weight.copy_(-8 * torch.eye(WIDTH))
    encoder.stem.weight.mul_(0)
    check_encoder(encoder, only=["order"]).raise_for_failures()
    broken = ColumnByColumn()
    broken.load_state_dict(encoder.state_dict())
    assert check_encoder(broken, only=["order"]).failed == ("order",)


def test_the_network_is_as_before():
    before = socket.getaddrinfo, dict(vars(socket.socket))
    check_encoder(CallsHome, only=["offline"])
    assert (socket.getaddrinfo, dict(vars(socket.socket))) == before


@torch.no_grad()
def test_the_weights_matter():
    """Each block changes its input by about its own size; nothing is zero, and no number is huge."""
    from vlmkit.testing.twin import make_weights_matter

    encoder = Right()
    make_weights_matter(encoder)
    assert all(float(p.abs().min()) > 0 for p in encoder.parameters())
    below, *above = encoder.run([torch.randn(9, WIDTH)])
    for (over,) in above:
        assert 0.3 < float((over - below[0]).norm() / below[0].norm()) < 5
        below = [over]
    assert math.isfinite(float(below[0].sum()))
