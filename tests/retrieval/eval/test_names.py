"""Which item of an index an id of the qrels names."""

from __future__ import annotations

import pytest

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.eval import Document, Names

ITEMS = ["/data/photos/a.png", "/data/photos/deep/b.png", "/other/a.png", "/other/c.png"]


def test_by_id_by_folder_and_by_corpus(tmp_path):
    corpus = {"d9": Document("d9", image=tmp_path / "x.png"), "a.png": Document("a.png", "a text")}
    names = Names(
        ["/other/c.png", "a.png", "deep/../deep/b.png", "d9", "gone.png"],
        [*ITEMS, str(tmp_path / "x.png")],
        ["/data/photos"],
        corpus,
    )
    assert names.item_of == {
        "/other/c.png": "/other/c.png",
        "a.png": "/data/photos/a.png",
        "deep/../deep/b.png": "/data/photos/deep/b.png",
        "d9": str(tmp_path / "x.png"),
    }
    run = {"q": {"/data/photos/a.png": 0.9, "/other/a.png": 0.8}}
    assert names.rename(run) == {"q": {"a.png": 0.9, "/other/a.png": 0.8}}
    assert list(names.rename(run)["q"]) == ["a.png", "/other/a.png"]


def test_several_folders_and_a_name_that_fits_two_items():
    names = Names(["deep/b.png", "c.png"], ITEMS, ["/data/photos", "/other"])
    assert set(names.item_of) == {"deep/b.png", "c.png"}
    with pytest.raises(RetrievalError, match=r"'a.png' .* /data/photos/a.png and /other/a.png; .* --root"):
        Names(["a.png"], ITEMS, ["/data/photos", "/other"])
    assert Names(["a.png"], ITEMS, ["/other"]).item_of == {"a.png": "/other/a.png"}


def test_an_id_of_the_index_that_is_no_path():
    assert Names(["page:7"], [*ITEMS, "page:7"], ["/other"]).item_of == {"page:7": "page:7"}


def test_two_names_of_one_item_are_refused():
    with pytest.raises(RetrievalError, match=r"'./a.png' and 'a.png' .* are one item, /other/a.png"):
        Names(["a.png", "./a.png"], ITEMS, ["/other"])


def test_an_item_that_a_run_names_both_ways_is_refused():
    names = Names(["a.png"], ITEMS, ["/other"])
    with pytest.raises(RetrievalError, match=r"'q' of the run has '/other/a.png' and 'a.png', which are one"):
        names.rename({"q": {"a.png": 2.0, "/other/a.png": 1.0}})


def test_a_folder_is_the_one_its_link_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    item = str(tmp_path / "real" / "a.png")
    assert Names(["a.png"], [item], [tmp_path / "link"]).item_of == {"a.png": item}
