"""Features of frozen encoders: a function of the pixels alone, whoever computed them and in which company."""

import io
import re
import time

import pytest
import torch

from vlmkit.data.batch import pixel_batches
from vlmkit.data.collate import Collator
from vlmkit.data.sample import Sample
from vlmkit.errors import VlmkitError
from vlmkit.share import features
from vlmkit.share.features import FeatureFile, StoredFeatures, image_bytes, split_images
from vlmkit.train.metrics import read_metrics
from vlmkit_retrieval.lock import FileLock

# Of a batch and of its images alone: other orders of sums. Features here are of size 1.
CLOSE = 1e-5
VIT = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
MODELS = {
    "square": {},
    "retrieval": {"encoder": {**VIT, "embed_dim": 8}},
    "tiles": {"encoder": {**VIT, "layout": "tiles"}},
    "scales": {"encoder": {**VIT, "layout": "scales"}},
    "native": {"encoder": {**VIT, "layout": {"type": "native", "max_patches": 24}}},
}


@pytest.fixture
def frozen(tiny_vlm):
    """A function: name in `MODELS` to a model in which nothing trains."""
    return lambda name: tiny_vlm(**MODELS[name]).requires_grad_(False)


@pytest.fixture
def pictures(noise):
    """Rows of one image, several of several sizes, and none."""
    sizes = {"a": [(16, 16)], "b": [(40, 20), (16, 16), (12, 30)], "c": [], "d": [(18, 16)]}
    return [
        Sample(name, tuple(_png(noise(7 * len(name), s)) for s in own), ()) for name, own in sizes.items()
    ]


def _png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def pixels_of(model, samples, epoch=0, hflip=0.0):
    batch = Collator(model.specs, None, hflip=hflip)([(sample, epoch) for sample in samples])
    return batch.pixel_values, batch.image_sizes


@pytest.fixture
def stored(tmp_path):
    """A function: a model and the name of a file to its stored features."""

    def make(model, name="a", limit=1e9, tell=pytest.fail):
        files = [FeatureFile(tmp_path / f"{name}{i}.sqlite", limit, tell) for i in range(len(model.encoders))]
        return StoredFeatures(list(model.encoders), files)

    return make


class Clock:
    """Seconds that pass when somebody sleeps; a look takes a millionth, so that order shows."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1e-6
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """In place of the machine's, whose speed would decide otherwise."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def differences(seen, others):
    """The largest difference of patches and vectors, after everything else was found equal."""
    found = []
    for one, other in zip(seen, others, strict=True):
        assert torch.equal(one.grids_I2, other.grids_I2)
        assert torch.equal(one.image_of_view_I, other.image_of_view_I)
        assert (one.pooled_BE is None) == (other.pooled_BE is None)
        found.append((one.patches_TV - other.patches_TV).abs().max())
        if one.pooled_BE is not None:
            found.append((one.pooled_BE - other.pooled_BE).abs().max())
    return float(max(found))


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_model(frozen, stored, pictures, name):
    """Computed, and read in another order by another object."""
    model = frozen(name)
    with torch.no_grad():
        given = pixels_of(model, pictures)
        assert differences(stored(model)(*given), model.encode_images(*given)) < CLOSE
        given = pixels_of(model, pictures[::-1])
        assert differences(stored(model)(*given), model.encode_images(*given)) < CLOSE


def test_it_does_not_matter_which_run_filled_the_store(frozen, stored, pictures):
    """In one batch or one by one, in another order: the same bits. A batch of the encoder gives others."""
    model = frozen("retrieval")
    given = pixels_of(model, pictures)
    together = stored(model, "together")(*given)
    for sample in pictures[::-1]:
        if sample.images:
            stored(model, "alone")(*pixels_of(model, [sample]))
    assert differences(stored(model, "alone")(*given), together) == 0.0
    assert all(feature.patches_TV.grad_fn is None for feature in together)


def test_what_is_stored_is_used_and_other_pixels_are_not_mistaken(frozen, stored, pictures, tmp_path):
    model = frozen("square")
    given = pixels_of(model, pictures)
    before = stored(model)(*given)
    size = (tmp_path / "a0.sqlite").stat().st_size
    with torch.no_grad():
        model.vision_encoder.positions.add_(1.0)
        # The file is named by the fingerprint: under the same name the old features are found.
        assert differences(stored(model)(*given), before) == 0.0
        assert differences(stored(model, "other")(*given), model.encode_images(*given)) < CLOSE
        model.vision_encoder.positions.sub_(1.0)
        mirrored = pixels_of(model, pictures, hflip=1.0)
        assert not torch.equal(mirrored[0], given[0])
        assert differences(stored(model)(*mirrored), model.encode_images(*mirrored)) < CLOSE
    assert size > 0


def test_images_are_split_as_they_were_put_together(frozen, pictures):
    model = frozen("tiles")
    (batch,) = pixel_batches(*pixels_of(model, pictures), model.specs)
    images = split_images(batch)
    assert len(images) == 5
    assert torch.equal(torch.cat([i.pixels_N for i in images]), batch.pixels_N)
    assert torch.equal(torch.cat([i.grids_I2 for i in images]), batch.grids_I2)
    assert sum(len(i.image_of_view_I) for i in images) == len(batch.image_of_view_I)


def test_the_size_is_known_before(frozen, stored, pictures):
    model = frozen("retrieval")
    (seen,) = stored(model)(*pixels_of(model, pictures[:1]))
    numbers = seen.patches_TV.numel() + seen.pooled_BE.numel()
    assert image_bytes(model.vision_encoder, (16, 16, 0)) == 4 * numbers


def test_a_full_file_is_told_once_and_changes_no_feature(frozen, stored, pictures, tmp_path):
    model, told = frozen("square"), []
    given = pixels_of(model, pictures)
    full = stored(model, "full", limit=100.0, tell=told.append)
    assert differences(full(*given), stored(model)(*given)) == differences(full(*given), full(*given)) == 0.0
    assert len(told) == 1 and "is full" in told[0] and "not kept" in told[0]


def test_a_damaged_file_is_named(frozen, stored, pictures):
    model = frozen("square")
    seen = stored(model)
    seen(*pixels_of(model, pictures[:1]))
    seen.files[0]._blobs._open[1].execute("UPDATE blobs SET content = x'00'")
    with pytest.raises(VlmkitError, match=r"a0\.sqlite is damaged"):
        seen(*pixels_of(model, pictures[:1]))


def test_an_encoder_that_trains_is_refused(frozen, stored):
    model = frozen("square")
    model.encoders.requires_grad_(True)
    with pytest.raises(AssertionError):
        stored(model)


class TestRuns:
    def test_runs_with_a_filled_and_an_empty_store_are_equal(
        self, make_recipe, train, stages, tmp_path, assert_equal_runs
    ):
        """The second run finds all features; without a store, the losses differ in the last bits only."""
        share = tmp_path / "share"
        first, notes = train(make_recipe("first", [stages[2]]), share)
        assert notes == []
        (file,) = (share / "features").glob("*.sqlite")
        before = file.read_bytes()
        again, _ = train(make_recipe("again", [stages[2]]), share)
        assert_equal_runs(first, again)
        assert file.read_bytes() == before
        alone, _ = train(make_recipe("alone", [stages[2]]))
        mine, theirs = ([r["loss"] for r in read_metrics(p / "metrics.jsonl")] for p in (first, alone))
        assert mine == pytest.approx(theirs, abs=1e-5)

    def test_seconds_of_a_step_are_without_frozen_encoders(
        self, make_recipe, train, stages, tmp_path, monkeypatch, clock
    ):
        """Whether a run encodes, waits for another that does, or reads: its steps are the same work."""
        encode, slow = features.encode_alone, 0.05

        def encode_slowly(*args):
            clock.sleep(slow)
            return encode(*args)

        monkeypatch.setattr(features, "encode_alone", encode_slowly)
        rows = {
            name: read_metrics(train(make_recipe(name, [stages[2]]), tmp_path / "share")[0] / "metrics.jsonl")
            for name in ("encodes", "reads")
        }
        spent = {
            name: [sum(row[key] for row in own) for key in ("seconds", "features_seconds")]
            for name, own in rows.items()
        }
        # Three steps over four images each; the mirrored ones are images of their own.
        assert spent["encodes"][1] > 10 * slow > spent["reads"][1] > 0
        assert max(seconds for seconds, _ in spent.values()) < 10 * slow
        alone, _ = train(make_recipe("alone", [stages[2]]))
        assert all("features_seconds" not in row for row in read_metrics(alone / "metrics.jsonl"))

    def test_waiting_for_another_run_is_no_time_of_a_step(self, frozen, stored, pictures, monkeypatch, clock):
        model = frozen("square")
        seen = stored(model)
        given = pixels_of(model, pictures)
        lock = FileLock(seen.files[0].path.with_suffix(".lock"), "other")

        def sleep(seconds):
            clock.sleep(seconds)
            if clock.now > 0.3:
                lock.release()

        monkeypatch.setattr(time, "sleep", sleep)
        began = time.perf_counter()
        seen(*given)
        took = time.perf_counter() - began
        assert 0.3 < seen.seconds <= took < seen.seconds + 0.1

    def test_what_has_no_room_is_said_and_the_stage_runs_without(self, make_recipe, train, stages, tmp_path):
        recipe = make_recipe("run", [stages[2]])
        run, (note,) = train(recipe, tmp_path / "share", share_limit=1e-6)
        assert re.match(r"stage first: features are not shared: .* needed, --share-limit is 1e-06 GB", note)
        assert not (tmp_path / "share/features").exists()
        assert len(read_metrics(run / "metrics.jsonl")) == 3

    def test_pictures_that_are_others_each_epoch_are_not_stored(self, make_recipe, train, stages, tmp_path):
        plain, _ = train(make_recipe("plain", [stages[2]]))
        recipe = make_recipe("run", [{**stages[2], "augment": {"colour": 0.5}}])
        run, (note,) = train(recipe, tmp_path / "share")
        assert note == "stage first: features are not shared: augment makes other pictures each epoch"
        assert not (tmp_path / "share/features").exists()
        losses = [[row["loss"] for row in read_metrics(path / "metrics.jsonl")] for path in (plain, run)]
        assert losses[0] != losses[1]
