"""`vlmkit data check`: every kind of problem with its id, counts as in training, every image opened once."""

import json
import sys
from collections import Counter

import pytest
from PIL import Image

from vlmkit.assemble import assemble, build_data, text_rules
from vlmkit.blueprint import planned_processor
from vlmkit.cli import main
from vlmkit.data.collate import Collator
from vlmkit.data.problems import PROBLEMS
from vlmkit.data_check.check import DUPLICATE, SAME_ID, check_data
from vlmkit.data_check.findings import histogram, quantile
from vlmkit.errors import VlmkitError

OPENED = []


def _watch(event, arguments):
    # A file object; `os.open` below it, which has no mode, is told of as well.
    if event == "open" and arguments[1] is not None and str(arguments[0]).endswith(".png"):
        OPENED.append(str(arguments[0]))


def silent(what, done, total):
    assert 0 < done <= total


def checked(recipe, **options):
    report = check_data(recipe, silent, **options)
    return report, {stage.name: stage.sources for stage in report.stages}


def row(name, image, *turns):
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    return {"id": name, "conversations": said} | ({"image": image} if image else {})


@pytest.fixture
def bad(tmp_path, noise):
    """A LLaVA data set of good rows and one bad row of each kind; names of kinds are ids."""
    for i in range(3):
        noise(i, (20, 12)).save(tmp_path / f"{i}.png")
    (tmp_path / "image_unreadable.png").write_bytes(b"no image")
    Image.new("1", (10_000, 5_001)).save(tmp_path / "large.png")
    rows = [
        row("good", "0.png", "<image>what is it?", "a dog"),
        row("text", None, "say yes", "yes"),
        row("image_missing", "gone.png", "<image>what?", "a cat"),
        row("image_unreadable", "image_unreadable.png", "<image>what?", "a cat"),
        row("image_too_large", "large.png", "<image>what?", "a cat"),
        row("image_slots", "1.png", "<image><image>what?", "two"),
        row("special_token", "1.png", "<image>what? </s> no", "a cat"),
        row("unsupervised", "1.png", "<image>what?", "", "and now?", ""),
        row("too_long", "2.png", "<image>" + "what " * 60, "a cat"),
        row("malformed", "1.png", "<image>what?"),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"id": "malformed", \n')
    return {"type": "llava_json", "path": str(path), "image_folder": str(tmp_path)}


@pytest.fixture
def recipe(tiny_recipe):
    """A function: a data block, and changes of the stage, to a recipe."""
    return lambda data, evaluate=None, **stage: tiny_recipe(
        stages=[{"data": data, **stage}], evaluate=evaluate and {"data": evaluate}
    )


def test_each_kind_of_problem_is_found_once_with_its_id(recipe, bad):
    report, stages = checked(recipe(bad, max_length=60, prompt="vicuna_v1"))
    (source,) = stages["only"].values()
    found = {kind: listed.ids for kind, listed in source.problems.items()}
    assert found.pop("malformed") == ["malformed", "row 10"]
    assert found == {kind: [kind] for kind in found}
    assert set(found) == set(PROBLEMS) - {
        "malformed",
        "unknown_word",
        "token_budget",
    }
    assert source.samples == 11 and source.rows == 2 and report.found == 9
    assert "'image_slots'" in source.problems["image_slots"].first[0].message
    assert str(60) in source.problems["too_long"].first[0].message


def test_an_empty_row_and_an_unknown_word_are_found(recipe, bad, tmp_path, noise):
    asked = tmp_path / "asked.json"
    rows = [
        row("unknown_word", "0.png", "<image>what xylophone?", "a dog"),
        row("fine", "0.png", "<image>what", "yes"),
    ]
    asked.write_text(json.dumps(rows))
    weightless = tmp_path / "weightless.json"
    trained = row("trained", "0.png", "<image>what?", "what")
    weightless.write_text(json.dumps([row("unsupervised", "0.png", "<image>what?", ""), trained]))
    report, stages = checked(
        recipe({**bad, "path": str(weightless)}, {**bad, "path": str(asked)}, eos_weight=0.0)
    )
    assert stages["only"]["llava_json"].problems["unsupervised"].ids == ["unsupervised"]
    unknown = stages["evaluate"]["llava_json"].problems["unknown_word"]
    # The vocabulary has the one word that the stage trains on.
    assert unknown.ids == ["unknown_word", "fine"] and report.found == 3
    assert "'xylophone', 'a', 'dog'" in unknown.first[0].message


def test_a_broken_image_hides_no_problem_of_the_text(recipe, bad, tmp_path):
    both = tmp_path / "both.json"
    both.write_text(json.dumps([row("both", "gone.png", "<image>what </s>", "a cat")]))
    _, stages = checked(recipe({**bad, "path": str(both)}, prompt="vicuna_v1"))
    (source,) = stages["only"].values()
    assert set(source.problems) == {"image_missing", "special_token"}
    assert source.rows == source.tokens == 0


def test_a_token_budget_that_cannot_be_kept_is_found(tiny_recipe, rows_file):
    recipe = tiny_recipe()
    model = recipe.model.model_copy(
        update={"image_tokens": recipe.model.image_tokens.model_copy(update={"per_sample": 7})}
    )
    _, stages = checked(recipe.model_copy(update={"model": model}))
    (source,) = stages["only"].values()
    assert source.problems["token_budget"].ids == ["row2", "row4"]


@pytest.mark.parametrize("pack", ["none", "prefix"])
def test_counts_are_those_of_the_batches_that_training_makes(tiny_recipe, pack):
    recipe = tiny_recipe(stages=[{"pack": pack, "data": {"type": "easy_vqa", "limit": 5}, "eos_weight": 0.5}])
    model, (stage,) = assemble(recipe), recipe.stages
    processor = model.processor
    rules = text_rules(stage, recipe.model.prompt, processor)
    batch = Collator(processor.specs, rules, fit=processor.fit)([(s, 0) for s in build_data(stage.data)])
    (source,) = checked(recipe)[1]["only"].values()
    lengths = (batch.branches_BL >= 0).sum(1)
    assert source.rows == len(lengths) and source.samples == 5
    assert sorted(source.lengths.elements()) == sorted(lengths.tolist())
    assert source.tokens == lengths.sum()
    assert source.supervised == (batch.labels_BL != -100).sum()
    assert source.image_tokens == (batch.input_ids_BL == processor.image_token_id).sum()
    assert source.conversations > source.rows if pack == "prefix" else source.conversations == source.rows


def test_the_processor_without_weights_is_the_models(tiny_recipe, tiny_clip, tmp_path):
    recipe = tiny_recipe("qwen2", encoder=tiny_clip, splice={"image_end": True})
    model = assemble(recipe)
    texts = [
        t for s in build_data(recipe.stages[0].data) for c in s.conversations for m in c for t in m.texts
    ]
    model.save_pretrained(tmp_path / "saved")
    saved = recipe.model_copy(update={"init_from": str(tmp_path / "saved")})
    for processor in (planned_processor(recipe, texts, [], False), planned_processor(saved, [], [], False)):
        assert processor.tokenizer.get_vocab() == model.processor.tokenizer.get_vocab()
        assert processor.image_token_id == model.processor.image_token_id
        assert processor.specs == model.processor.specs
        assert processor.count_tokens((37, 90)) == model.processor.count_tokens((37, 90))
        assert all(p.is_meta for p in processor.connector.parameters())


def test_a_tokenizer_that_is_not_here_is_not_downloaded(tiny_recipe, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = tiny_recipe()
    llm = recipe.model.llm.model_construct(weights="lmsys/vicuna-7b-v1.5", type=None, quantize=None)
    remote = recipe.model_copy(update={"model": recipe.model.model_copy(update={"llm": llm})})
    with pytest.raises(VlmkitError, match=r"the tokenizer of lmsys/vicuna-7b-v1.5 .*--fetch"):
        planned_processor(remote, [], [], False)


def test_every_image_is_opened_once_and_twins_are_a_note(tiny_recipe, tmp_path, noise):
    for name in ("a", "b", "twin"):
        noise("ab".find(name) if name != "twin" else 0).save(tmp_path / f"{name}.png")
    rows = [row(str(i), f"{name}.png", "<image>what?", "red") for i, name in enumerate("aabab")]
    first = tmp_path / "first.json"
    first.write_text(json.dumps([*rows, row("twin", "twin.png", "<image>what?", "red")]))
    second = tmp_path / "second.json"
    second.write_text(json.dumps(rows[:3]))
    data = [
        {"type": "llava_json", "path": str(path), "image_folder": str(tmp_path)}
        for path in (first, second, first)
    ]
    recipe = tiny_recipe(stages=[{"name": f"stage{i}", "data": block} for i, block in enumerate(data)])
    sys.addaudithook(_watch)
    OPENED.clear()
    report, stages = checked(recipe)
    opened = [path for path in OPENED if path.startswith(str(tmp_path))]
    assert sorted(path.rpartition("/")[2] for path in opened) == ["a.png", "b.png", "twin.png"]
    assert report.images == 3 and not report.found
    (noted,) = stages["stage0"]["llava_json"].notes[DUPLICATE].first
    assert noted.id == "twin" and "sample '0'" in noted.message
    assert not stages["stage1"]["llava_json"].notes
    assert stages["stage2"]["llava_json"].notes == stages["stage0"]["llava_json"].notes


def test_rows_of_the_same_id_are_a_note_with_the_numbers_of_both(tiny_recipe, tmp_path):
    """They train as any other, so nothing stops: but every report calls them by the same name."""
    rows = [row(name, None, "what?", "red") for name in ("a", "b", "a", "c", "a", 7, "7")]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {"id": "b", "conversations": 3}]))
    data = {"type": "llava_json", "path": str(tmp_path / "rows.json"), "image_folder": str(tmp_path)}
    own = {"type": "easy_vqa", "limit": 3}
    sources = [{"name": "one", "data": data}, {"name": "two", "data": data}, {"name": "own", "data": own}]
    blocks = [data, {"type": "mixture", "sources": sources}]
    recipe = tiny_recipe(stages=[{"name": f"s{i}", "data": block} for i, block in enumerate(blocks)])
    for workers in (0, 2):
        report, stages = checked(recipe, workers=workers)
        noted = stages["s0"]["llava_json"].notes[SAME_ID]
        assert noted.ids == ["a", "a", "7", "b"]
        pairs = [(2, "a", 0), (4, "a", 0), (6, "7", 5), (7, "b", 1)]
        assert [p.message for p in noted.first] == [
            f"row {n} has the id {i!r} of row {m}" for n, i, m in pairs
        ]
        # Each source has them on its own, and the second none of the first's.
        assert SAME_ID not in stages["s1"]["own"].notes
        for name in ("one", "two"):
            noted = stages["s1"][name].notes[SAME_ID]
            assert noted.ids == [f"{name}/{i}" for i in "aa7b"]
            assert noted.first[0].message == f"{name}/row 2 has the id '{name}/a' of {name}/row 0"
        assert report.found == 3, "the malformed row alone is a problem, in each place"
        stored = report.as_dict()["stages"][0]["sources"]["llava_json"]["notes"][SAME_ID]
        assert (
            stored["count"] == 4 and stored["first"][0]["id"] == "a" and stored["ids"] == ["a", "a", "7", "b"]
        )
    assert not checked(recipe, limit=2)[1]["s1"]["one"].notes


def test_the_command_tells_of_the_same_ids_and_its_exit_code_is_0(written, tmp_path, capsys):
    (tmp_path / "rows.json").write_text(json.dumps([row("a", None, "what?", "red")] * 8))
    data = {"type": "llava_json", "path": str(tmp_path / "rows.json"), "image_folder": str(tmp_path)}
    assert main(["data", "check", written(data), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "rows with the id of an earlier one: 7\n  row 1 has the id 'a' of row 0\n" in said
    assert "... and 2 more" in said and "0 problems found" in said


def test_workers_change_nothing(recipe, bad):
    alone, apart = (checked(recipe(bad, max_length=60), workers=n)[0].as_dict() for n in (0, 2))
    assert alone.pop("seconds") >= 0 and apart.pop("seconds") >= 0
    assert alone == apart


def test_sources_of_a_mixture_are_counted_apart_and_the_limit_is_of_each(recipe, bad):
    good = {"type": "easy_vqa", "limit": 8}
    data = {"type": "mixture", "sources": [{"name": "rough", "data": bad}, {"name": "shapes", "data": good}]}
    _, stages = checked(recipe(data), limit=6)
    assert {name: source.samples for name, source in stages["only"].items()} == {"rough": 6, "shapes": 6}
    assert not stages["only"]["shapes"].problems
    assert stages["only"]["rough"].problems["image_missing"].ids == ["rough/image_missing"]


def test_data_that_cannot_be_opened_or_serves_no_objective_is_refused(tiny_recipe, tmp_path):
    gone = {"type": "image_captions", "folder": str(tmp_path / "gone")}
    stages = [{"name": "one", "data": gone}, {"name": "two", "objective": "contrastive"}]
    report, _ = checked(tiny_recipe(stages=stages))
    assert [bool(stage.refused) for stage in report.stages] == [True, True]
    assert "gone is not a folder" in report.stages[0].refused
    assert "no sample has an image and a caption" in report.stages[1].refused
    assert report.found == 2


def test_histogram_and_quantiles():
    lengths = Counter({5: 1, 16: 1, 17: 2, 20_000: 4})
    assert histogram(lengths)[:2] == [(1, 16, 2), (17, 32, 2)]
    assert histogram(lengths)[-1] == (16385, 32768, 4)
    assert sum(rows for _, _, rows in histogram(lengths)) == lengths.total()
    assert [quantile(lengths, share) for share in (0.01, 0.25, 0.5, 1.0)] == [5, 16, 17, 20_000]


@pytest.fixture
def written(recipe, bad, tmp_path):
    """A function: a recipe on these data written to a file."""

    def write(data):
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(recipe(data).model_dump(mode="json")))
        return str(path)

    return write


def test_the_command_says_what_is_wrong_and_its_exit_code(written, bad, tmp_path, capsys):
    assert main(["data", "check", written(bad), "--workers", "0", "--json", str(tmp_path / "out.json")]) == 1
    said = capsys.readouterr().out
    assert "gone.png does not exist" in said and "8 problems found" in said
    stored = json.loads((tmp_path / "out.json").read_text())
    (source,) = stored["stages"][0]["sources"].values()
    assert stored["clean"] is False and source["problems"]["image_missing"]["ids"] == ["image_missing"]
    fine = {"type": "easy_vqa", "limit": 3}
    assert main(["data", "check", written(fine), "--workers", "0", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["clean"] is True
    assert main(["data", "check", written(bad), "--json", str(tmp_path / "no/out.json")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_what_a_stage_skips_is_no_failure_of_the_check(recipe, bad, tmp_path, capsys):
    """Exit code 1 says that training would stop: by a stage that skips only where nothing can be used."""
    path = tmp_path / "recipe.yaml"

    def check(data, evaluate=None, skip=True):
        policy = {"on_bad_sample": "skip"} if skip else {}
        path.write_text(json.dumps(recipe(data, evaluate, **policy).model_dump(mode="json")))
        arguments = ["data", "check", str(path), "--workers", "0", "--json", str(tmp_path / "out.json")]
        return main(arguments), capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())

    code, said, stored = check(bad)
    assert (code, stored["problems"], stored["stops"]) == (0, 8, 0) and stored["clean"] is False
    assert stored["stages"][0]["on_bad_sample"] == "skip"
    assert "training skips these (on_bad_sample: skip)" in said and "\nimages missing: 1\n" in said
    assert "8 problems found; training stops at none of them" in said
    code, said, stored = check(bad, skip=False)
    assert (code, stored["stops"]) == (1, 8) and "training skips" not in said
    code, said, stored = check(bad, evaluate=bad)
    assert (code, stored["stops"]) == (1, 8) and "16 problems found; training stops at 8 of them" in said
    gone = {**bad, "path": str(tmp_path / "gone.json")}
    (tmp_path / "gone.json").write_text(json.dumps([row("a", "gone.png", "<image>what?", "a cat")]))
    code, said, _ = check(gone)
    assert code == 1 and "none of its samples can be used" in said


def test_longer_rows_are_stated_and_samples_shown_apart(tiny_recipe, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tiny_recipe(stages=[{"pack_length": 20}]).model_dump(mode="json")))
    assert main(["data", "check", str(path), "--workers", "0", "--json", str(tmp_path / "out.json")]) == 0
    (stage,) = json.loads((tmp_path / "out.json").read_text())["stages"]
    assert stage["pack_length"] == 20 and "together; 2 are longer" in capsys.readouterr().out
    assert main(["data", "inspect", str(path)]) == 0
    assert "pack none, pack_length 20 (shown apart)" in capsys.readouterr().out


def test_the_inspect_command_writes_a_page_and_fails_where_a_shown_sample_does(
    written, bad, tmp_path, capsys
):
    target = str(tmp_path / "page.html")
    assert main(["data", "inspect", written(bad), "--id", "good", "--html", target]) == 0
    assert "1 samples" in capsys.readouterr().out and (tmp_path / "page.html").read_text().endswith(
        "</html>\n"
    )
    assert main(["data", "inspect", written(bad), "-n", "99"]) == 1
    said = capsys.readouterr().out
    assert "a dog" in said and "gone.png does not exist" in said
    for name in ("row 10", "image_slots"):
        assert main(["data", "inspect", written(bad), "--id", name]) == 1
        assert capsys.readouterr().out.splitlines()[2].startswith(f"{name} (llava_json)")


def test_a_long_name_of_a_source_is_folded_and_not_cut(written, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "90")
    name = "".join(f"source{i}_" for i in range(9))
    source = {"name": name, "data": {"type": "easy_vqa", "limit": 2}}
    assert main(["data", "check", written({"type": "mixture", "sources": [source]}), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    lines = [line.split() for line in said.split("supervised")[1].split("tokens a row")[0].splitlines()]
    assert "".join(words[0] for words in lines if words and words[0] in name) == name, said
