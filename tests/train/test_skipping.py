"""`on_bad_sample: skip`: left out, counted and listed; nothing takes its place."""

import json
import multiprocessing
import pickle
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlmkit import checkpoint, errors
from vlmkit.data import problems
from vlmkit.data.problems import ImageMissingError, SpecialTokenError
from vlmkit.data.sample import read_row, readable
from vlmkit.data_check.check import check_data
from vlmkit.errors import MissingExtraError, UsageError, VlmkitError
from vlmkit.train import checkpoints
from vlmkit.train.metrics import read_metrics
from vlmkit.train.run import train_recipe
from vlmkit.train.steps import TOLD, Failed

ANSWERS = ("red", "a blue circle", "some triangle of no colour")
BAD = {"gone.png": "image_missing", "broken.png": "image_unreadable"}


@pytest.fixture
def data(tmp_path, noise):
    """A function: ids of good samples (`g0`), broken images, or `malformed`, to the block of a data set."""

    def make(*names):
        rows = []
        for name in names:
            image = name if name in BAD else f"{name}.png"
            if name not in BAD:
                noise(int(name[1]) if name[1].isdigit() else 9).save(tmp_path / image)
            # What a bad row says does not change the order of words in the vocabulary.
            answer = ANSWERS[int(name[1]) % 3] if name[1].isdigit() else "?"
            said = {"human": "<image>what is it?", "gpt": answer}
            turns = [{"from": who, "value": text} for who, text in said.items()]
            rows.append(json.dumps({"id": name, "image": image, "conversations": turns}))
            if name == "malformed":
                rows[-1] = "{"
        (tmp_path / "broken.png").write_bytes(b"none")
        path = tmp_path / f"{len(names)}.jsonl"
        path.write_text("\n".join(rows))
        return {"type": "llava_json", "path": str(path), "image_folder": str(tmp_path)}

    return make


@pytest.fixture
def train(tiny_recipe, tmp_path, hear):
    """A function: a data block and settings of the stage to the run and what the reporter heard."""

    def run(name, data, resume=False, **stage):
        settings = {"data": data, "steps": 2, "batch_size": 4, "train": {"llm": {"lr": 1e-2}}, **stage}
        recipe = tiny_recipe(stages=[settings], output=str(tmp_path / name))
        heard = hear()
        return train_recipe(recipe, resume=resume, reporter=heard).path, heard.notes

    return run


def weights(run: Path):
    return load_file(checkpoints.latest_checkpoint(run, "only") / "trained.safetensors")


def test_a_bad_sample_stops_by_default(train, data):
    with pytest.raises(VlmkitError, match=r"gone\.png does not exist"):
        train("stop", data("g0", "g1", "g2", "gone.png"))


def test_a_worker_says_what_is_wrong_as_the_main_process_does(train, data):
    """Not as the traceback that a loader makes of it."""
    with pytest.raises(VlmkitError, match=r"^sample 'gone\.png': image \S+ does not exist; check the path$"):
        train("worker", data("g0", "g1", "g2", "gone.png"), workers=1)


def test_a_worker_says_what_is_wrong_by_the_same_class(train, data, tmp_path):
    """The exit code is of the class: a special token is a wrong use, a missing image is not."""
    missing, special = data("g0", "g1", "gone.png"), data("g0", "g1")
    path = Path(special["path"])
    path.write_text(path.read_text().replace("what", "</s>"))
    for bad, kind, code in ((missing, ImageMissingError, 1), (special, SpecialTokenError, 2)):
        raised = []
        for workers in (0, 1):
            with pytest.raises(kind) as found:
                train(f"{kind.__name__}{workers}", bad, workers=workers)
            raised.append(found.value)
        here, there = raised
        assert type(here) is type(there) is kind and str(here) == str(there)
        assert here.exit_code == there.exit_code == code


def test_an_error_that_is_kept_keeps_no_worker(train, data):
    """Python waits at its end for those that are left, and a first termination does not end them."""
    with pytest.raises(ImageMissingError) as kept:
        train("kept", data("g0", "g1", "g2", "gone.png"), workers=1)
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.join(30)
    left = [worker for worker in workers if worker.is_alive()]
    # Or they would wait for this process, and it for them.
    del kept
    assert not left


class OfTwoPartsError(UsageError):
    """Another package's: not made of a message, and not of a class that every process knows."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.file = open(__file__)  # noqa: SIM115 - what cannot be pickled


def test_what_a_worker_tells_can_be_told():
    """A loader waits for ever for what cannot be pickled."""
    own = OfTwoPartsError(1, 2)
    own.file.close()
    for error, kind in ((own, UsageError), (MissingExtraError("peft", "train"), MissingExtraError)):
        again = pickle.loads(pickle.dumps(Failed.by(error))).error()
        assert type(again) is kind and str(again) == str(error) and again.exit_code == error.exit_code
    kinds = [own for room in (errors, problems) for own in vars(room).values() if isinstance(own, type)]
    assert {kind for kind in kinds if issubclass(kind, VlmkitError)} == set(TOLD)


def test_rows_that_cannot_be_read_do_not_fill_steps_of_their_own(train, data):
    """By a length of their own, grouping put all of them into the same steps."""
    block = data("g0", *["malformed"] * 4, "g1", "g2", "g3", "g4", "g5", "g6", "g7")
    run, _ = train("grouped", block, on_bad_sample="skip", group="modality_length", steps=3)
    assert sum(step["skipped"] for step in read_metrics(run / "metrics.jsonl")) == 4


@pytest.mark.parametrize(("micro", "workers"), [(None, 0), (1, 1)])
def test_skipped_samples_are_counted_and_listed(train, data, micro, workers):
    names = ("g0", "gone.png", "malformed", "g1", "broken.png", "g2", "g3", "g4")
    run, notes = train("skip", data(*names), on_bad_sample="skip", micro_batch_size=micro, workers=workers)
    rows = read_metrics(run / "skipped.jsonl")
    assert {(row["id"], row["kind"]) for row in rows} == {*BAD.items(), ("row 2", "malformed")}
    steps = read_metrics(run / "metrics.jsonl")
    assert [step["skipped"] for step in steps] == [sum(r["step"] == s["step"] for r in rows) for s in steps]
    assert sum(step["images"] for step in steps) == 5, "nothing takes the place of what is left out"
    assert notes and "3 samples were skipped" in notes[-1] and "1 image_missing" in notes[-1]


def test_what_is_left_is_trained_on_as_if_the_bad_one_had_never_been(train, data):
    """A step of three good samples and a bad one has the loss and the gradients of the three alone."""
    bad, _ = train("bad", data("g0", "g1", "gone.png", "g2"), on_bad_sample="skip", steps=1)
    good, _ = train("good", data("g0", "g1", "g2"), batch_size=3, steps=1)
    a, b = (read_metrics(run / "metrics.jsonl")[0] for run in (bad, good))
    assert (a["images"], a["skipped"], b["images"]) == (3, 1, 3)
    for name in ("loss", "grad_norm"):
        assert a[name] == pytest.approx(b[name], rel=1e-5)


def test_a_step_without_any_good_sample_is_left_out(train, data):
    """Not a step of no gradient, which decay and momentum would still make one."""
    settings = {"on_bad_sample": "skip", "batch_size": 1, "steps": 4, "checkpoint_every": 1}
    decay = {"train": {"llm": {"lr": 1e-2, "weight_decay": 0.1}}}
    run, _ = train("some", data("gone.png", "g0"), **settings, **decay)
    steps = read_metrics(run / "metrics.jsonl")
    assert sorted(step["skipped"] for step in steps) == [0, 0, 1, 1]
    assert all((step["loss"] is None) == bool(step["skipped"]) for step in steps)
    kept = sorted((run / "checkpoints").iterdir())
    before, after = (load_file(path / "trained.safetensors") for path in kept[-2:])
    assert steps[-1]["skipped"] and all(torch.equal(before[name], after[name]) for name in before)


def test_data_of_which_nothing_can_be_used_is_an_error(train, data):
    with pytest.raises(VlmkitError, match=r"no sample of the data can be used.*gone\.png"):
        train("none", data("gone.png", "broken.png"), on_bad_sample="skip", batch_size=1)


def test_a_resumed_run_skips_the_same(train, data):
    block = data("g0", "gone.png", "g1", "broken.png", "g2", "g3")
    settings = {"on_bad_sample": "skip", "steps": 6, "batch_size": 3, "checkpoint_every": 2}
    whole, _ = train("whole", block, **settings)
    cut, _ = train("cut", block, **settings)
    manifest = json.loads((cut / checkpoint.MANIFEST).read_text())
    manifest |= {"stages_done": [], "finished": False}
    (cut / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    for old in (cut / "checkpoints").iterdir():
        if not old.name.endswith("000004"):
            shutil.rmtree(old)
    train("cut", block, resume=True, **settings)
    assert (cut / "skipped.jsonl").read_text() == (whole / "skipped.jsonl").read_text()
    ours, theirs = weights(cut), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_member_that_is_not_utf_8_is_skipped_and_named_as_in_the_check(train, tiny_recipe, tmp_path, noise):
    """Reading it raised an error of Python's own, which stopped a stage that was to skip."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number, text in enumerate(("a dot", "a caf\xe9", "two dots")):
            noise(number).save(tmp_path / f"{number}.png")
            tar.add(tmp_path / f"{number}.png", f"{number}.png")
            (tmp_path / "text").write_bytes(text.encode("latin-1"))
            tar.add(tmp_path / "text", f"{number}.txt")
    data = {"type": "webdataset", "shards": str(path)}
    run, _ = train("tar", data, on_bad_sample="skip", batch_size=3, steps=1)
    (row,) = read_metrics(run / "skipped.jsonl")
    assert row["id"] == f"{path}/1" and "member 1.txt is not UTF-8" in row["message"]
    report = check_data(tiny_recipe(stages=[{"data": data}]), lambda *_: None)
    (listed,) = report.stages[0].sources["webdataset"].problems.values()
    assert (listed.ids, listed.first[0].message) == ([row["id"]], row["message"])


class Rough(Sequence):
    """Samples of which one raises an error that nobody foresaw."""

    def __init__(self, samples, bad):
        self.samples, self.bad = samples, bad

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, number):
        if number == self.bad:
            raise KeyError("no such thing")
        return self.samples[number]


def test_an_error_that_nobody_foresaw_is_of_its_row_alone(samples):
    rows = [read_row(Rough(samples, 1), number) for number in range(3)]
    assert [row.name for row in rows] == [samples[0].id, "row 1", samples[2].id]
    assert "row 1 cannot be read (KeyError: 'no such thing'); repair it" in str(rows[1].error)
    assert [row and row.id for row in readable(Rough(samples, 0))] == [None, *(s.id for s in samples[1:])]
