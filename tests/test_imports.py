"""Which room imports which, what is loaded when, and the public names."""

import ast
import sys
from pathlib import Path

import pytest

import vlmkit

ROOT = Path(__file__).parents[1]
SOURCES = {
    "vlmkit": ROOT / "vlmkit",
    "vlmkit_connectors": ROOT / "connectors/vlmkit_connectors",
    "vlmkit_retrieval": ROOT / "retrieval/vlmkit_retrieval",
}
# The rooms of vlmkit from the border down; a room imports from its own line and from lines below.
# `checkpoint` knows tensors by name and no model, so encoders may read their part of a run through it.
FLOORS = [
    {"cli", "__main__", "quickstart"},
    {"sweep"},
    {
        "train",
        "share",
        "evaluate",
        "embedders",
        "langchain",
        "look",
        "plan",
        "plan_memory",
        "data_check",
        "mteb",
    },
    {"assemble", "apart", "blueprint", "init_from", "quantize", "tiny"},
    {
        "vlm",
        "processor",
        "image_processor",
        "messages",
        "inference",
        "config",
        "splice",
        "inject",
        "sight",
        "reading",
    },
    {"data", "objectives", "recipe", "testing"},
    {"encoders", "llm"},
    {"checkpoint", "budget", "layouts", "plugins", "weights", "recipe_files", "overrides"},
    {"durable"},
    {"errors", "__init__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {
    "torch", "transformers", "accelerate", "peft", "datasets", "matplotlib", "qdrant_client", "qdrant_edge",
    "langchain_core",
}  # fmt: skip


def files(package):
    return sorted(SOURCES[package].rglob("*.py"))


def imports(file, *, typing=True):
    """Modules that a file imports, wherever in it; relative ones are not used here."""
    tree = ast.parse(file.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing:
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield node.module
            if node.module == "vlmkit":
                yield from (f"vlmkit.{alias.name}" for alias in node.names)


def packages_of(file):
    return {module.partition(".")[0] for module in imports(file)}


def room_of(file):
    inside = file.relative_to(SOURCES["vlmkit"])
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def test_every_room_is_on_a_floor():
    assert {room_of(file) for file in files("vlmkit")} == set(FLOOR)


@pytest.mark.parametrize("file", files("vlmkit"), ids=lambda f: str(f.relative_to(ROOT)))
def test_rooms_import_downwards(file):
    if room_of(file) == "__init__":
        return
    for module in imports(file, typing=False):
        top, _, inside = module.partition(".")
        room = inside.partition(".")[0]
        if top == "vlmkit" and room in FLOOR:
            assert FLOOR[room] >= FLOOR[room_of(file)], f"{room_of(file)} imports {room}"


def test_the_conformance_kit_knows_encoders_and_no_product_code_knows_it():
    kit = [file for file in files("vlmkit") if room_of(file) == "testing"]
    known = {"encoders", "layouts", "errors", "testing"}
    assert kit
    for file in kit:
        ours = {module for module in imports(file) if module.startswith("vlmkit.")}
        assert {module.split(".")[1] for module in ours} <= known, file
    users = {file for file in files("vlmkit") if any(m.startswith("vlmkit.testing") for m in imports(file))}
    assert users - set(kit) == {SOURCES["vlmkit"] / "cli/encoder.py"}


def test_connectors_know_torch_alone():
    for file in files("vlmkit_connectors"):
        others = packages_of(file) - set(sys.stdlib_module_names) - {"vlmkit_connectors"}
        assert others <= {"torch"}, file


def test_one_folder_knows_langchain():
    for file in files("vlmkit"):
        if room_of(file) != "langchain":
            assert not {name for name in packages_of(file) if name.startswith("langchain")}, file


def test_retrieval_knows_neither_torch_nor_vlmkit():
    for file in files("vlmkit_retrieval"):
        assert not packages_of(file) & {"torch", "transformers", "vlmkit", "vlmkit_connectors"}, file
        if "langchain" not in file.parent.parts[-1]:
            assert not {name for name in packages_of(file) if name.startswith("langchain")}, file


def test_the_text_of_recipes_and_the_tables_need_no_torch():
    light = [
        "recipe",
        "recipe_files",
        "overrides",
        "errors",
        "budget",
        "layouts/__init__",
        "plugins",
        "weights",
        "encoders/__init__",
        "encoders/spec",
    ]
    for name in light:
        file = SOURCES["vlmkit"] / f"{name}.py"
        assert not set(imports(file, typing=False)) & HEAVY, file


LIGHT = {
    "import": "import vlmkit; dir(vlmkit)",
    "retrieval": "import vlmkit_retrieval",
    "recipe": "from vlmkit.recipe import load_recipe; load_recipe('quickstart')",
    "spec": "from vlmkit.encoders.spec import VisionSpec; VisionSpec(16, 4, 8).views((20, 10))",
}
HELP = """
from vlmkit.cli import main
try:
    main(['--help'])
except SystemExit:
    pass
"""


@pytest.mark.parametrize("code", [*LIGHT.values(), HELP], ids=[*LIGHT, "--help"])
def test_what_is_loaded_is_light(python, code):
    done = python(f"{code}\nimport sys\nprint(sorted({HEAVY | {'vlmkit.vlm'}!r} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_changes_nothing_in_the_environment(python):
    done = python("import os; before = dict(os.environ); import vlmkit; assert dict(os.environ) == before")
    assert done.returncode == 0, done.stderr


def test_public_names_are_there_and_no_others():
    public = {
        "ChatVlmkit", "VLM", "Index", "Processor", "UsageError", "VLMConfig", "VlmkitError", "__version__",
        "answer_question",
        "load_encoder", "load_recipe", "register_auto_classes", "train_recipe",
    }  # fmt: skip
    assert set(vlmkit.__all__) == public
    assert all(getattr(vlmkit, name) is not None for name in public)
    assert public <= set(dir(vlmkit))
    with pytest.raises(AttributeError, match="no attribute 'Vlm'"):
        _ = vlmkit.Vlm
