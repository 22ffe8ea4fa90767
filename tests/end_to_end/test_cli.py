"""The command line as a user meets it: what it prints, how it refuses, its exit codes."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from vlmkit.cli import VERBS, parser


def options(verb):
    """Every argument that a verb takes, sub-actions included."""
    found = set()
    for action in verb._actions:
        found.update(action.option_strings or [action.dest])
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            for sub in action.choices.values():
                found |= options(sub)
    return found - {"-h", "--help"}


SURFACE = {
    "train": {
        "recipe",
        "overrides",
        "--resume",
        "--resume-from",
        "--share",
        "--share-limit",
        "--track",
        "--tiny",
        "--debug",
    },
    "merge": {"run", "--output", "--checkpoint", "--dequantize", "--debug"},
    "plan": {"recipe", "overrides", "--fetch", "--debug"},
    "sweep": {
        "recipe",
        "overrides",
        "--vary",
        "--seeds",
        "--jobs",
        "--output",
        "--tune",
        "--tune-set",
        "--dry-run",
        "--debug",
    },
    "list": {"what", "--debug"},
    "encoder": {"action", "encoder", "overrides", "--json", "--debug"},
    "data": {
        "action",
        "recipe",
        "overrides",
        "--fetch",
        "--json",
        "--workers",
        "--limit",
        "-n",
        "--html",
        "--stage",
        "--id",
        "--debug",
    },
    "ask": {"model", "image", "question", "--stream", "--json", "--quantize", "--max-new-tokens", "--debug"},
    "look": {
        "model",
        "image",
        "overrides",
        "--output",
        "-o",
        "--only",
        "--at",
        "--layer",
        "--head",
        "--from",
        "--question",
        "--token",
        "--llm-layer",
        "--debug",
    },
    "index": {
        "action",
        "index",
        "paths",
        "--engine",
        "--encoder",
        "--text-encoder",
        "--bm25",
        "--language",
        "--patches",
        "--kinds",
        "--allow-empty",
        "--batch",
        "--share",
        "--watch",
        "--hnsw",
        "--int8",
        "--json",
        "--min-recall",
        "--queries",
        "--space",
        "--turboquant",
        "--yes",
        "target",
        "name",
        "--debug",
    },
    "eval": {
        "index",
        "--qrels",
        "--queries",
        "--corpus",
        "--root",
        "--encoder",
        "--weight",
        "--fuse",
        "--compose",
        "-k",
        "--k",
        "--compare",
        "--save-run",
        "--json",
        "--debug",
    },
    "search": {
        "index",
        "query",
        "--image",
        "-k",
        "--where",
        "--collapse",
        "--near",
        "--mmr",
        "--by",
        "--encoder",
        "--weight",
        "--compose",
        "--fuse",
        "--exact",
        "--explain",
        "--html",
        "--json",
        "--debug",
    },
    "rag": {
        "index",
        "question",
        "--vlm",
        "-k",
        "--rule",
        "--encoder",
        "--weight",
        "--fuse",
        "--quantize",
        "--json",
        "--debug",
    },
}


def test_surface_is_frozen():
    verbs = next(a for a in parser()._actions if a.dest == "verb").choices
    assert {name: options(verb) for name, verb in verbs.items()} == SURFACE
    assert set(VERBS) == set(SURFACE)


def test_overrides_may_stand_after_options(cli, tmp_path):
    code, _, err = cli("train", "quickstart", "--resume", "stages.vqa.steps=0")
    assert code == 2 and "stages.1.steps" in err
    code, _, err = cli("train", "quickstart", "seed=1", "--resumee")
    assert code == 2 and "--resumee" in err


def test_ask_answers(cli):
    code, out, _ = cli("ask", "runs/quickstart", "gallery/0.png", "what color is the shape?")
    assert code == 0
    assert out.strip() in {"red", "green", "blue", "black", "gray", "teal", "brown", "yellow"}


def test_ask_stream_and_json_say_the_same(cli):
    question = "what shape is present?"
    _, plain, _ = cli("ask", "runs/quickstart", "gallery/0.png", question)
    _, streamed, _ = cli("ask", "runs/quickstart", "gallery/0.png", question, "--stream")
    _, printed, _ = cli("ask", "runs/quickstart", "gallery/0.png", question, "--json")
    assert plain.strip() == streamed.strip() == json.loads(printed)["answer"]


def test_ask_in_four_bits_prints_the_memory(cli):
    code, out, err = cli(
        "ask", "runs/quickstart", "gallery/0.png", "what color is the shape?", "--quantize", "nf4"
    )
    assert code == 0 and out.strip()
    before, after = map(float, re.search(r"nf4: ([\d.]+) MB before, ([\d.]+) MB after", err).groups())
    assert after < before


def test_search_and_rag_print_files_and_scores(cli, index):
    code, out, _ = cli("search", "indexes/quickstart", "a red triangle", "-k", "3", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 3
    assert all(row["path"].endswith(".png") for row in rows)
    assert rows[0]["score"] >= rows[1]["score"] >= rows[2]["score"]
    code, out, _ = cli(
        "rag", "indexes/quickstart", "is there a teal shape?", "--vlm", "runs/quickstart", "--json"
    )
    answer = json.loads(out)
    assert code == 0 and answer["answer"] == "yes"
    assert len(answer["citations"]) == 8 and answer["citations"][0]["supports"]


def test_sync_twice_changes_nothing(cli, index):
    code, out, _ = cli("index", "sync", "indexes/quickstart", "gallery")
    assert code == 0
    assert "0 added, 0 changed, 0 removed, 300 unchanged" in out and "0 images encoded" in out


def test_unreadable_files_are_listed_and_the_exit_code_says_so(cli, in_home, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy2(in_home / "gallery/0.png", folder / "good.png")
    (folder / "bad.png").write_bytes(b"not an image")
    code, out, err = cli("index", "sync", tmp_path / "i", folder, "--encoder", "runs/quickstart")
    assert code == 1
    assert "1 added" in out and "bad.png" in err


@pytest.mark.parametrize("what", ["encoders", "connectors", "layouts", "objectives", "data", "recipes"])
def test_list_prints_every_table(cli, what):
    code, out, _ = cli("list", what)
    assert code == 0 and len(out.splitlines()) >= 2


def test_the_encoder_of_a_run_keeps_the_contract(cli):
    code, out, _ = cli("encoder", "check", "runs/quickstart")
    assert code == 0, out
    assert re.search(r"^text\s+passed", out, re.MULTILINE)


def test_plan_says_what_trains(cli):
    code, out, _ = cli("plan", "quickstart", "model.connector.pool=1")
    assert code == 0
    assert "4,000 samples, 200 steps" in out and "takes 64 tokens" in out


BAD = [
    (["train", "recipes/quickstrat.yaml"], 2, "quickstart"),
    (["train", "quickstart", "stages.vqa.batchsize=3"], 2, "did you mean 'batch_size'"),
    (["train", "quickstart", "model.connector.type=mpl"], 2, "did you mean 'mlp'"),
    (["train", "quickstart", "model.connector.depht=3"], 2, "did you mean 'depth'"),
    (["train", "quickstart", "stages.vqua.steps=3"], 2, "vqa"),
    (["train", "quickstart", "steps"], 2, "key=value"),
    (["train", "quickstart"], 2, "--resume"),
    (["ask", "runs/nothing", "gallery/0.png", "what color is the shape?"], 2, "does not exist"),
    (["ask", "gallery", "gallery/0.png", "what color is the shape?"], 2, "vlmkit.json"),
    (["ask", "runs/quickstart", "gallery/none.png", "what color is the shape?"], 1, "does not exist"),
    (["ask", "runs/quickstart", "recipes/quickstart.yaml", "what color is the shape?"], 1, "cannot be read"),
    (["ask", "runs/quickstart", "gallery/0.png", "is there a giraffe?"], 2, "giraffe"),
    (["ask", "runs/quickstart", "gallery/0.png", "what is <image>?"], 2, "<image>"),
    (["ask", "runs/quickstart", "gallery/0.png", " "], 2, "empty"),
    (["ask", "runs/quickstart", "gallery/0.png", "is there a circle?", "--quantize", "nf5"], 2, "nf4"),
    (["search", "indexes/quickstart"], 2, "QUERY"),
    (["search", "indexes/quickstart", ""], 2, "QUERY"),
    (["search", "indexes/quickstart", "a red triangle", "--encoder", "runs/gone"], 2, "FAMILY:WEIGHTS"),
    (["index", "copy", "indexes/quickstart", "http://127.0.0.1:1/photos"], 2, "--engine"),
    (
        ["ask", "runs/quickstart", "gallery/0.png", "is there a circle?", "--max-new-tokens", "0"],
        2,
        "below 1",
    ),
    (["train", "quickstart", "output=runs/odd", "model.llm.hidden_size=127"], 2, "cannot be built"),
    (["search", "gallery", "a red triangle"], 2, "index"),
    (["index", "sync", "indexes/new", "gallery"], 2, "--encoder"),
    (["index", "sync", "indexes/new", "gallery", "--encoder", "clap"], 2, "FAMILY:WEIGHTS"),
    (["rag", "indexes/quickstart", "is there a giraffe?", "--vlm", "runs/quickstart"], 2, "giraffe"),
]


@pytest.mark.parametrize(("argv", "code", "says"), BAD, ids=[" ".join(a) for a, _, _ in BAD])
def test_bad_input_is_one_line_with_what_to_do(cli, index, argv, code, says):
    got, out, err = cli(*argv)
    assert got == code
    assert says in err
    assert "Traceback" not in err and out == ""


def test_an_empty_folder_is_refused(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = cli(
        "index", "sync", tmp_path / "index", tmp_path / "empty", "--encoder", "runs/quickstart"
    )
    assert code == 1 and ".png" in err
    assert not (tmp_path / "index").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(in_home, tmp_path):
    """A file-size limit stands in for a full disk: the first large write fails."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from vlmkit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    short = [f"stages.{s}.{k}" for s in ("contrastive", "vqa") for k in ("steps=2", "data.limit=40")]
    argv = ["train", "quickstart", f"output={tmp_path}/run", "evaluate=null", *short]
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not list((tmp_path / "run").glob("checkpoints/*-step-*[0-9]"))


def test_an_image_of_another_kind_is_taken(cli, in_home, tmp_path):
    Image.open(in_home / "gallery/0.png").convert("L").resize((90, 40)).save(tmp_path / "grey.webp")
    code, out, _ = cli("ask", "runs/quickstart", tmp_path / "grey.webp", "what shape is present?")
    assert code == 0 and out.strip()
