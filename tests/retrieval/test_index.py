from __future__ import annotations

import errno
import json
import os
import tempfile

import numpy as np
import pytest
from PIL import Image

from vlmkit_retrieval.copy import copy_index
from vlmkit_retrieval.errors import IndexLockedError, RetrievalError, RetrievalUsageError
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.search import Bm25Terms, SearchOptions, term_space
from vlmkit_retrieval.types import Dense, Multi, Sparse, Terms


@pytest.fixture
def path(tmp_path):
    return tmp_path / "photos.idx"


@pytest.fixture
def filled(path, photos, colours):
    with Index.create_or_open(path) as index:
        index.sync([photos], colours, reference="runs/colour")
    return path


def names(hits) -> list[str]:
    return [os.path.basename(hit.payload["path"]) for hit in hits]


def test_search_by_text_and_by_image(filled, colours):
    with Index.open(filled) as index:
        assert names(index.search("a green thing", embedder=colours, k=1)) == ["green.png"]
        blueish = Image.new("RGB", (4, 4), (20, 0, 200))
        hits = index.search(image=blueish, embedder=colours)
        assert names(hits)[0] == "blue.png"
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_search_needs_a_text_or_an_image(filled, colours):
    with Index.open(filled) as index, pytest.raises(RetrievalUsageError, match="a text, an image, or both"):
        index.search(embedder=colours)


def test_search_by_both_and_several_encoders(filled, photos, colours, grey):
    blue = Image.new("RGB", (4, 4), (0, 0, 255))
    with Index.open(filled) as index:
        index.sync([photos], grey)
        hits = index.search("green", blue, embedder=[colours, grey])
        assert {name.list for name in hits[0].explanation.shares} == {"colour:both", "grey:image"}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        with pytest.raises(RetrievalError, match="'grey' embeds images only"):
            index.search("green", blue, embedder=grey)


def test_search_with_a_filter_and_options(filled, photos, colours):
    (photos / "copy.png").write_bytes((photos / "red.png").read_bytes())
    with Index.open(filled) as index:
        index.sync([photos], colours)
        green = {"path": str(photos / "green.png")}
        assert names(index.search("red", embedder=colours, where=green)) == ["green.png"]
        hits = index.search("red", embedder=colours, options=SearchOptions(collapse=True))
    assert sorted(names(hits)) == ["blue.png", "copy.png", "green.png"]
    assert names(hits[0].duplicates) == ["red.png"]


def test_words_beside_an_encoder(filled, photos, colours):
    """A space that the index did not fill itself is asked beside the encoder's."""
    terms = Bm25Terms()
    with Index.open(filled) as index:
        index.engine.ensure({"bm25": Sparse()})
        [words] = terms.embed_documents(["the lawn of our garden"])
        index.engine.update_vectors({str(photos / "green.png"): {"bm25": words}})
        hits = index.search("gardens", embedder=colours, also=[term_space("bm25", terms)])
    assert names(hits)[0] == "green.png"
    assert hits[0].explanation.shares[1].rank == 1


def test_another_fingerprint_of_the_same_name_is_refused(filled, photos, colours):
    colours.fingerprint = "mean-rgb-2"
    stored_given_advice = (
        r"mean-rgb-1 from runs/colour, given .* mean-rgb-2; use the stored one, or give this one a name"
    )
    with Index.open(filled) as index:
        with pytest.raises(RetrievalError, match=stored_given_advice):
            index.sync([photos], colours)
        with pytest.raises(
            RetrievalError, match=r"not filled by encoder 'colour'.*it has: colour fingerprint"
        ):
            index.search("red", embedder=colours)
        index.add_encoder(colours, name="colour-2")
        assert index.sync([photos], colours).embedded == 3
        assert index.require_encoder(colours) == "colour-2"
        with pytest.raises(RetrievalUsageError, match="this very encoder, under the name 'colour-2'"):
            index.sync([photos], colours, name="colour-3")
        assert index.sync([photos], colours, name="colour-2").embedded == 0


def test_text_for_an_encoder_without_text_names_those_that_have_it(filled, photos, grey):
    with Index.open(filled) as index:
        index.sync([photos], grey)
        assert len(index.search(image=Image.new("RGB", (2, 2)), embedder=grey)) == 3
        with pytest.raises(RetrievalError, match=r"'grey' embeds images only.*in this index: colour"):
            index.search("red", embedder=grey)


def test_the_manifest_remembers_and_moves_a_reference(filled, photos, colours):
    with Index.open(filled) as index:
        assert index.encoder_references() == ["runs/colour"]
        index.sync([photos], colours)
        index.sync([photos], colours, reference="moved/colour")
    with Index.open(filled) as index:
        info = index.info()
    assert info["encoders"]["colour"] == {
        "fingerprint": "mean-rgb-1",
        "dim": 3,
        "reference": "moved/colour",
        "text": True,
        "kind": "image",
        "items": 3,
    }
    assert (info["items"], info["roots"]) == (3, [str(photos)])
    json.dumps(info)


def test_one_at_a_time_and_free_again_after_close(filled):
    with Index.open(filled), pytest.raises(IndexLockedError, match="already open in this process"):
        Index.open(filled)
    Index.open(filled).close()


def test_an_index_that_is_dropped_lets_go_of_its_lock(filled):
    index = Index.open(filled)
    del index
    Index.open(filled).close()


def test_a_closed_index_says_so(filled, colours):
    index = Index.open(filled)
    index.close()
    index.close()
    with pytest.raises(RetrievalError, match="is closed"):
        index.search("red", embedder=colours)


def test_what_is_no_index_is_not_made_one(tmp_path, photos):
    with pytest.raises(RetrievalError, match="photos is not an index"):
        Index.open(photos)
    with pytest.raises(RetrievalError, match="exists and is not an index"):
        Index.create_or_open(photos)
    with pytest.raises(RetrievalError, match="is not an index"):
        Index.open(tmp_path / "nowhere")
    assert not (photos / "vlmkit-index.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 99}', "has schema 99"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
    ],
)
def test_a_manifest_that_is_newer_or_damaged(filled, content, message):
    (filled / "vlmkit-index.json").write_text(content)
    with pytest.raises(RetrievalError, match=message):
        Index.open(filled)


def test_an_index_stays_with_its_engine(filled, path):
    with pytest.raises(RetrievalUsageError, match="stores its points in engine, not :memory:"):
        Index.create_or_open(filled, engine=":memory:")
    with pytest.raises(RetrievalUsageError, match="no engine for ftp://"):
        Index.create_or_open(path.with_name("new.idx"), engine="ftp://host")
    assert not path.with_name("new.idx").exists()


def test_a_copy_answers_like_the_original(filled, tmp_path, colours, photos):
    assert copy_index(filled, tmp_path / "copy.idx") == 3
    with Index.open(filled) as old, Index.open(tmp_path / "copy.idx") as new:
        assert new.search("red", embedder=colours) == old.search("red", embedder=colours)
        assert new.sync([photos], colours).unchanged == 3
    with pytest.raises(RetrievalError, match=r"copy\.idx exists and is not empty"):
        copy_index(filled, tmp_path / "copy.idx")


def test_a_copy_moves_vectors_of_every_space_between_engines(filled, tmp_path):
    """Embedded to local mode and back: what was added by hand to the engine arrives, too."""
    with Index.open(filled) as index:
        index.engine.ensure({"words": Sparse(), "patches": Multi(3, half=False), "half": Dense(2, half=True)})
        first, second, _ = index.engine.ids()
        index.engine.update_vectors(
            {
                first: {"words": Terms([3, 5], [1.0, 0.5]), "half": np.array([1.0, 0.0])},
                second: {"patches": np.eye(3)},
            }
        )
    assert copy_index(filled, tmp_path / "local.idx", "local:engine") == 3
    assert copy_index(tmp_path / "local.idx", tmp_path / "back.idx") == 3
    assert (tmp_path / "local.idx" / "engine" / "collection").is_dir()
    with Index.open(filled) as old, Index.open(tmp_path / "back.idx") as new:
        assert new.engine.spaces() == old.engine.spaces()
        assert len(new.engine.spaces()) == 4
        for before, after in zip(old.engine.scroll(), new.engine.scroll(), strict=True):
            assert (before.id, before.payload) == (after.id, after.payload)
            assert before.vectors.keys() == after.vectors.keys()
            assert before.vectors.get("words") == after.vectors.get("words")
            for name in before.vectors.keys() - {"words"}:
                np.testing.assert_allclose(before.vectors[name], after.vectors[name], atol=1e-6)


def test_a_copy_takes_the_cache_along(filled, tmp_path, colours, photos):
    (tmp_path / "copy.idx").mkdir()
    copy_index(filled, tmp_path / "copy.idx")
    (photos / "red.png").rename(photos / "scarlet.png")
    with Index.open(tmp_path / "copy.idx") as new:
        report = new.sync([photos], colours)
    assert (report.added, report.embedded) == (1, 0)


def test_a_copy_that_fails_leaves_no_target(filled, tmp_path, monkeypatch):
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr("vlmkit_retrieval.feature_store.FeatureStore.copy_to", broken)
    with pytest.raises(OSError, match="disk"):
        copy_index(filled, tmp_path / "copy.idx")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


KILLED_COPY = """
import os, sys
from vlmkit_retrieval.copy import copy_index
from vlmkit_retrieval.feature_store import FeatureStore
FeatureStore.copy_to = lambda *stores: os._exit(9)
copy_index(sys.argv[1], sys.argv[2])
"""


def test_a_copy_that_was_killed_can_be_made_again(filled, tmp_path, python):
    assert python(KILLED_COPY, filled, tmp_path / "copy.idx").wait(60) == 9
    assert not (tmp_path / "copy.idx").exists()
    assert copy_index(filled, tmp_path / "copy.idx") == 3
    assert not list(tmp_path.glob(".copy*"))


@pytest.mark.parametrize("name", [".copy.idx.new", ".copy.idx.vlmkit-copy-abc", ".copy.idx-vlmkit-copy-abc"])
def test_a_copy_leaves_what_is_not_its_own_alone(filled, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "holiday.txt").write_text("sun")
    assert copy_index(filled, tmp_path / "copy.idx") == 3
    assert (tmp_path / name / "holiday.txt").read_text() == "sun"


WAITING_COPY = """
import sys
from vlmkit_retrieval.copy import copy_index
from vlmkit_retrieval.feature_store import FeatureStore

def wait(*stores):
    print("copying", flush=True)
    sys.stdin.readline()

FeatureStore.copy_to = wait
copy_index(sys.argv[1], sys.argv[2])
"""


def test_two_copies_at_once_do_not_take_each_others_files(filled, tmp_path, python):
    """To one place; of two sources, since an index is open once at a time."""
    copy_index(filled, tmp_path / "other.idx")
    first = python(WAITING_COPY, filled, tmp_path / "copy.idx")
    assert first.stdout.readline() == "copying\n"
    second = python(WAITING_COPY, tmp_path / "other.idx", tmp_path / "copy.idx")
    assert second.stdout.readline() == "copying\n"
    assert first.communicate("\n", timeout=60)[1] == "" and first.returncode == 0
    with Index.open(tmp_path / "copy.idx") as index:
        assert index.engine.count() == 3
    _, errors = second.communicate("\n", timeout=60)
    assert "copy.idx exists and is not empty; copy into a new directory" in errors
    with Index.open(tmp_path / "copy.idx") as index:
        assert index.engine.count() == 3
    assert not list(tmp_path.glob(".copy*"))


def test_a_copy_killed_before_it_began_leaves_nothing_for_ever(filled, tmp_path):
    (tmp_path / ".copy.idx.vlmkit-copy-abc").mkdir()
    copy_index(filled, tmp_path / "copy.idx")
    assert not list(tmp_path.glob(".copy*"))


def test_a_copy_whose_folder_is_taken_for_abandoned_takes_another(filled, tmp_path, monkeypatch):
    make, made = tempfile.mkdtemp, []

    def cleared_once(**where):
        made.append(make(**where))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", cleared_once)
    assert copy_index(filled, tmp_path / "copy.idx") == 3
    assert len(made) > 1 and not list(tmp_path.glob(".copy*"))


def broken(*_):
    raise OSError("the disk is full")


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_first_sync_that_is_refused_leaves_nothing(path, tmp_path, colours, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RetrievalError, match=folder), Index.create_or_open(path) as index:
        index.sync([tmp_path / folder], colours)
    assert not path.exists()


def test_a_first_sync_whose_encoder_fails_leaves_nothing(path, photos, colours):
    colours.embed_images = broken
    with pytest.raises(OSError, match="disk"), Index.create_or_open(path) as index:
        index.sync([photos], colours)
    assert not path.exists()


def test_an_engine_that_cannot_open_leaves_no_index(path):
    with pytest.raises(RetrievalError, match="127"):
        Index.create_or_open(path, engine="http://127.0.0.1:1/photos")
    assert not path.exists()


def test_what_holds_points_or_was_there_before_stays(path, photos, colours):
    path.mkdir()
    (path / ".git").mkdir()
    with pytest.raises(RetrievalError), Index.create_or_open(path) as index:
        index.sync([photos / "missing"], colours)
    assert (path / ".git").exists()
    full = path.with_name("full.idx")
    with pytest.raises(KeyboardInterrupt), Index.create_or_open(full) as index:
        index.sync([photos], colours)
        raise KeyboardInterrupt
    with Index.open(full) as index:
        assert index.engine.count() == 3


def test_a_sync_asks_for_the_fingerprint_once(path, photos, colours):
    class Counting(type(colours)):
        asked = 0

        @property
        def fingerprint(self):
            self.asked += 1
            return "counted"

        @fingerprint.setter
        def fingerprint(self, value):
            pass

    encoder = Counting()
    with Index.create_or_open(path) as index:
        index.sync([photos], encoder)
    assert encoder.asked == 1


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused(filled, colours, text):
    with Index.open(filled) as index, pytest.raises(RetrievalUsageError, match="text is empty"):
        index.search(text, embedder=colours)


def test_only_a_held_lock_means_in_use(filled, monkeypatch):
    def no_locks(fd):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("vlmkit_retrieval.lock._lock", no_locks)
    with pytest.raises(RetrievalError, match=r"cannot be locked.*No locks available") as error:
        Index.open(filled)
    assert not isinstance(error.value, IndexLockedError)


def test_forgetting_that_was_refused_is_done_when_it_is_asked_for_again(filled, photos, grey, colours):
    with Index.open(filled) as index:
        index.sync([photos], grey)
        with index.engine.copied(), pytest.raises(RetrievalError, match="is being optimized"):
            index.forget_encoder("grey")
        index.forget_encoder("grey")
    with Index.open(filled) as index:
        assert list(index.manifest.encoders) == list(index.engine.spaces()) == ["colour"]
        assert len(index.search("red", embedder=colours)) == 3


def test_an_encoder_whose_space_is_somebody_elses_leaves_an_index_that_opens(filled, photos, grey):
    with Index.open(filled) as index:
        index.engine.ensure({"grey": Dense(7)})
        with pytest.raises(
            RetrievalUsageError, match="there is a space 'grey'; add this encoder under another"
        ):
            index.sync([photos], grey)
    with Index.open(filled) as index:
        assert list(index.manifest.encoders) == ["colour"]
        assert index.add_encoder(grey, name="grey-2") == "grey-2"


def test_encoders_of_a_first_sync_get_their_spaces_at_once(path, photos, colours, grey, monkeypatch):
    """A space that comes to a shard which exists costs a copy of it."""
    with Index.create_or_open(path) as index:
        monkeypatch.setattr(index.engine, "copied", broken)
        index.sync([photos], [colours, grey, Bm25Terms()])
        assert set(index.engine.spaces()) == {"colour", "grey", "bm25"}
