from __future__ import annotations

import os

import numpy as np
import pytest

from vlmkit_retrieval import Bm25Terms
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.rag import answer_question
from vlmkit_retrieval.search import SearchOptions


class RedSeer:
    """Says yes about images whose mean colour is mostly red."""

    def ask_each(self, images, question):
        means = [np.asarray(image).reshape(-1, 3).mean(0) for image in images]
        return ["Yes." if red > green + blue else "No." for red, green, blue in means]


@pytest.fixture
def index(tmp_path, photos, colours):
    with Index.create_or_open(tmp_path / "photos.idx") as opened:
        opened.sync([photos], colours)
        yield opened


def test_every_hit_is_asked_and_cited(index, colours):
    answer = answer_question(index, "is there a red thing?", colours, RedSeer())
    assert answer.text == "yes"
    assert [citation.number for citation in answer.citations] == [1, 2, 3]
    cited = {os.path.basename(c.hit.payload["path"]): (c.answer, c.supports) for c in answer.citations}
    assert cited == {"red.png": ("Yes.", True), "green.png": ("No.", False), "blue.png": ("No.", False)}
    assert answer.citations[0].hit.payload["path"].endswith("red.png")
    assert answer.rule == "any: yes if at least one of the 3 items asked says yes, else no"


def test_only_the_k_nearest_are_asked(index, colours):
    answer = answer_question(index, "is the blue thing red?", colours, RedSeer(), k=1, rule="all")
    assert (answer.text, len(answer.citations)) == ("no", 1)


def test_evidence_that_is_gone_or_changed_is_an_error(index, photos, colours, save_image):
    save_image(photos / "red.png", "white")
    with pytest.raises(RetrievalError, match=r"red\.png: it has changed .*vlmkit index sync"):
        answer_question(index, "is there a red thing?", colours, RedSeer())
    (photos / "red.png").unlink()
    with pytest.raises(RetrievalError, match=r"red\.png: No such file.*vlmkit index sync"):
        answer_question(index, "is there a red thing?", colours, RedSeer())


def test_an_empty_index_cannot_answer(tmp_path, colours):
    with Index.create_or_open(tmp_path / "new.idx") as index:
        index.add_encoder(colours)
        with pytest.raises(RetrievalError, match="has no items; fill it with"):
            answer_question(index, "is there a red thing?", colours, RedSeer())


def test_a_model_that_loses_an_answer_is_noticed(index, colours):
    class Forgetful(RedSeer):
        def ask_each(self, images, question):
            return super().ask_each(images, question)[1:]

    with pytest.raises(RetrievalError, match="2 answers about 3 images"):
        answer_question(index, "is there a red thing?", colours, Forgetful())


def test_captions_help_to_find_the_evidence(index, photos, colours):
    (photos / "red.txt").write_text("a ruby")
    encoders = [colours, Bm25Terms()]
    index.sync([photos], encoders)
    asked, words = "is there a ruby on something green?", SearchOptions(weights={"bm25": 9.0})
    answer = answer_question(index, asked, encoders, RedSeer(), k=1, rule="any", options=words)
    assert answer.text == "yes" and answer.citations[0].hit.payload["path"].endswith("red.png")
    assert answer_question(index, asked, colours, RedSeer(), k=1, rule="any").text == "no"
    with pytest.raises(RetrievalError, match="holds 3 items, and none of them is an image that the question"):
        answer_question(index, "is there a sapphire?", Bm25Terms(), RedSeer())
