"""Files to vectors: the vectors of `embed_images`, nothing lost, nothing left behind."""

import threading
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from vlmkit.encoders.spec import VisionSpec
from vlmkit.encoders.stream import embed_files, read_files
from vlmkit.encoders.vit import ViT
from vlmkit.errors import UsageError, VlmkitError
from vlmkit_retrieval.images import load_image

BAD = {3: b"", 4: b"not an image"}


@pytest.fixture(scope="module")
def encoder(shake):
    return shake(ViT(image_size=32, patch_size=8, width=32, depth=2, heads=4, embed_dim=12)).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory, picture):
    folder = tmp_path_factory.mktemp("files")
    paths = []
    for i in range(11):
        path = folder / f"{i:02d}.{('jpg', 'png')[i % 2]}"
        if i in BAD:
            path.write_bytes(BAD[i])
        else:
            picture((40 + 9 * i, 90 - 5 * i), i).save(path)
        paths.append(path)
    return [*paths, folder / "gone.png"]


@pytest.fixture
def no_thread_left():
    before = set(threading.enumerate())
    yield
    # Those of earlier tests may end meanwhile.
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(("batch_size", "workers"), [(4, 1), (4, 3), (1, 2), (100, 2)])
def test_vectors_are_those_of_embed_images(encoder, files, no_thread_left, batch_size, workers):
    read, reasons = [], {}
    for chunk, batch in enumerate(embed_files(encoder, files, batch_size, workers)):
        own = files[chunk * batch_size :][:batch_size]
        assert [p for p in own if p in batch.paths] == list(batch.paths)
        expected = encoder.embed_images([load_image(path) for path in batch.paths])
        assert np.array_equal(batch.vectors_BE, expected)
        read += batch.paths
        reasons |= {bad.path: bad.reason for bad in batch.failures}
    assert read == [p for i, p in enumerate(files) if i not in (3, 4, 11)]
    assert list(reasons) == [str(files[i]) for i in (3, 4, 11)]
    assert [r.split(" (")[0] for r in reasons.values()] == [
        "the file is empty", "not an image", "No such file or directory",
    ]  # fmt: skip


def test_a_batch_of_failures_alone_is_reported(encoder, files, no_thread_left):
    (batch,) = embed_files(encoder, files[3:5])
    assert batch.paths == ()
    assert batch.vectors_BE.shape == (0, 12)
    assert len(batch.failures) == 2


def test_no_files_are_no_batches(encoder):
    assert list(embed_files(encoder, [])) == []


def test_files_are_taken_as_they_are_needed(encoder, files, no_thread_left):
    taken = []

    def endless():
        while True:
            taken.append(files[0])
            yield files[0]

    assert len(list(islice(embed_files(encoder, endless(), batch_size=2), 3))) == 3
    assert len(taken) == 3 * 2 + 2 * 2


def test_stopping_early_ends_the_threads(encoder, files, no_thread_left):
    for _ in embed_files(encoder, files * 20, batch_size=2, workers=2):
        break


def test_an_error_of_the_encoder_ends_the_threads(files, no_thread_left):
    with pytest.raises(VlmkitError, match="no retrieval space"):
        list(embed_files(ViT(image_size=32, patch_size=8, width=32, depth=1, heads=4), files * 20, 2))


def test_a_native_layout_keeps_each_images_grid(picture, tmp_path):
    for i, size in enumerate([(90, 40), (40, 90), (64, 64)]):
        picture(size, i).save(tmp_path / f"{i}.png")
    spec = VisionSpec(32, 8, 16, layout="native", max_patches=20)
    (batch,) = read_files(spec, sorted(tmp_path.iterdir()))
    assert batch.pixels.grids_I2.tolist() == [
        [v.rows, v.cols] for size in [(90, 40), (40, 90), (64, 64)] for v in spec.views(size)
    ]
    assert batch.pixels.image_of_view_I.tolist() == [0, 1, 2]


def test_draft_changes_large_files_a_little_and_small_ones_not_at_all(encoder, picture, tmp_path):
    picture((30, 24), 1).resize((1200, 900), Image.Resampling.BICUBIC).save(
        tmp_path / "large.jpg", quality=95
    )
    picture((120, 90), 2).save(tmp_path / "small.jpg", quality=95)
    (plain,) = read_files(encoder.spec, sorted(tmp_path.iterdir()))
    (draft,) = read_files(encoder.spec, sorted(tmp_path.iterdir()), draft=3)
    (large, small), (large_draft, small_draft) = plain.pixels.views(), draft.pixels.views()
    assert torch.equal(small, small_draft)
    assert 0 < (large - large_draft).abs().mean() < 0.02
    assert torch.equal(plain.pixels.grids_I2, draft.pixels.grids_I2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is not possible"),
        ({"workers": 0}, "workers 0 is not possible"),
        ({"draft": 0.5}, "draft 0.5 would enlarge"),
    ],
)
def test_wrong_arguments_are_refused_at_once(encoder, files, arguments, message):
    with pytest.raises(UsageError, match=message):
        read_files(encoder.spec, files, **arguments)


def test_draft_is_refused_where_views_follow_the_image(files):
    spec = VisionSpec(32, 8, 16, layout="native", max_patches=20)
    with pytest.raises(UsageError, match="layout 'native', whose views depend on the image's size"):
        read_files(spec, files, draft=3)
