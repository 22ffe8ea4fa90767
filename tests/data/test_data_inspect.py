"""`vlmkit data inspect`: what is shown is what training gets, and the page needs nothing beside itself."""

import json
import re

import numpy as np
import pytest

from vlmkit.assemble import assemble, build_data, text_rules
from vlmkit.cli.data_rows import SUPERVISED, lines
from vlmkit.data.collate import fitted, sample_rows
from vlmkit.data_check.inspect import ShownImage, show
from vlmkit.data_check.page import page
from vlmkit.data_check.pictures import drawn_views
from vlmkit.data_check.texts import token_texts
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError

SENTENCES = ["what shape is in the image?", "a red circle\n\nand two  others", "naïve 🎈 ü", "<s>user</s>"]


def test_texts_of_tokens_join_to_the_whole_text(any_tokenizer):
    image_id = any_tokenizer.convert_tokens_to_ids("<image>")
    for sentence in SENTENCES:
        ids = any_tokenizer(sentence, add_special_tokens=False)["input_ids"]
        texts = token_texts(ids, any_tokenizer, image_id)
        whole = any_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert len(texts) == len(ids)
        assert "".join(texts).strip() == whole.strip()


@pytest.mark.parametrize("pack", ["none", "prefix"])
def test_what_is_shown_is_the_row_that_is_trained_on(tiny_recipe, pack):
    recipe = tiny_recipe(stages=[{"pack": pack, "data": {"type": "easy_vqa", "limit": 3}, "eos_weight": 0.5}])
    processor = assemble(recipe).processor
    rules = text_rules(recipe.stages[0], recipe.model.prompt, processor)
    ((stage,), samples) = show(recipe, 2), build_data(recipe.stages[0].data)
    assert [sample.id for sample in stage.samples] == [samples[0].id, samples[1].id]
    for shown, sample in zip(stage.samples, samples):
        sizes = fitted(sample.id, [image.size for image in sample.open_images()], processor.fit)
        rows = sample_rows(sample, sizes, rules)
        assert len(shown.rows) == len(rows)
        for runs, row in zip(shown.rows, rows):
            tokens = [token for run in runs for token in run.tokens]
            assert tuple(token.id for token in tokens) == row.ids
            assert tuple(token.weight for token in tokens) == row.weights
            assert tuple(token.position for token in tokens) == row.positions
            assert tuple(run.branch for run in runs for _ in run.tokens) == row.branches
            assert {run.weight for run in runs} == set(row.weights)
            assert len(lines(runs)) == len(set(row.branches))


def test_each_image_run_is_of_its_image(tiny_recipe):
    (stage,) = show(tiny_recipe(), 9)
    three = next(sample for sample in stage.samples if sample.id == "row4")
    assert [run.image for run in three.rows[0] if run.image is not None] == [0, 1, 2]
    (text,) = lines(three.rows[0])
    supervised = [text.plain[span.start : span.end] for span in text.spans if span.style == SUPERVISED]
    assert "".join(supervised).strip() == "three of them </s>"


def test_a_sample_is_found_by_its_id_and_an_error_is_shown(tiny_recipe, rows_file):
    recipe = tiny_recipe(stages=[{"name": "one"}, {"name": "two", "max_length": 9}])
    one, two = show(recipe, 1, sample_id="row2")
    assert [sample.id for sample in (*one.samples, *two.samples)] == ["row2", "row2"]
    assert not one.samples[0].error and "max_length is 9" in two.samples[0].error
    assert len(two.samples[0].images) == 2 and not two.samples[0].rows
    with pytest.raises(UsageError, match="no sample has the id 'row99'"):
        show(recipe, 1, sample_id="row99")
    with pytest.raises(UsageError, match="unknown stage 'three'"):
        show(recipe, 1, stage="three")


def test_the_page_is_whole_and_escaped(tiny_recipe, tmp_path, noise):
    noise(0).save(tmp_path / "0.png")
    turns = [{"from": "human", "value": "<image>is 1 < 2 & </i>"}, {"from": "gpt", "value": "<b>yes</b>"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"id": "<x>", "image": "0.png", "conversations": turns}]))
    data = {"type": "llava_json", "path": str(path), "image_folder": str(tmp_path)}
    html = page("a <recipe>", show(tiny_recipe(stages=[{"data": data}]), 1))
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 3 and all(source.startswith("data:image/") for source in sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", html) and "<script" not in html
    assert "<b>yes" not in html and "<x>" not in html and "&lt;x&gt;" in html
    assert html.count("<i ") == html.count("</i>")


def test_boxes_of_tiles_cover_the_image_and_a_whole_view_has_none(noise):
    spec = VisionSpec(16, 4, 8, layout={"type": "tiles", "max_tiles": 6})
    picture = noise(0, (90, 60))
    views = list(drawn_views(ShownImage(picture, (90, 60, 0), 1, [spec]), spec))
    boxes = np.array([view.box for view in views if view.box])
    assert [view.role for view in views if view.box is None] == ["thumbnail"]
    assert len(boxes) == 6
    assert (boxes[:, 2] * boxes[:, 3]).sum() == pytest.approx(1, abs=0.12)
    assert np.allclose(sorted(set(np.round(boxes[:, 0] * 3).tolist())), [0, 1, 2])


def test_runs_of_images_have_the_tokens_of_their_own_image(tiny_recipe, tiny_clip, tmp_path, noise):
    noise(0, (48, 16)).save(tmp_path / "wide.png")
    noise(1, (16, 16)).save(tmp_path / "square.png")
    turns = [{"from": "human", "value": "<image><image>which?"}, {"from": "gpt", "value": "one"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"id": "x", "image": ["wide.png", "square.png"], "conversations": turns}]))
    data = {"type": "llava_json", "path": str(path), "image_folder": str(tmp_path)}
    encoder = {**tiny_clip, "layout": {"type": "tiles", "max_tiles": 4}}
    (stage,) = show(tiny_recipe(encoder=encoder, stages=[{"data": data}]), 1)
    (sample,) = stage.samples
    wide, square = (image.tokens for image in sample.images)
    assert wide > square
    assert [len(run.tokens) for run in sample.rows[0] if run.image is not None] == [wide, square]
