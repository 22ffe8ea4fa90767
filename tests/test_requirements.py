"""What must be installed: ranges of few packages, and no kernel that some machines cannot build."""

import ast
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
OTHERS = [r for r in EXTRAS if r.name not in ("vlmkit", "types-PyYAML")]
SOURCES = ("vlmkit", "connectors", "retrieval")
# A format of files without a promise yet, templates that one test reads, and what other suites ask of us.
BOUNDED = {"qdrant-edge-py", "trl", "mteb", "langchain-tests", "pytrec-eval-terrier"}
KERNELS = {"flash_attn", "flash-attn", "xformers", "triton", "apex", "causal_conv1d"}


@pytest.mark.parametrize("requirement", [*CORE, *OTHERS], ids=str)
def test_it_is_a_range_from_a_stated_version_on(requirement):
    """A pin of one version is what makes two tools impossible in one environment."""
    signs = {specifier.operator for specifier in requirement.specifier}
    assert signs == ({">=", "<"} if requirement.name in BOUNDED else {">="})


@pytest.mark.parametrize("requirement", CORE, ids=str)
def test_what_the_suite_runs_with_is_in_the_range(requirement):
    assert requirement.specifier.contains(Version(version(requirement.name)).base_version, prereleases=True)


def test_the_core_is_small():
    """Everything else is an extra, imported where it is used."""
    assert len(CORE) <= 9


def imported(file):
    return imported_by(ast.parse(file.read_text()).body)


def imported_by(statements):
    for node in ast.walk(ast.Module(statements, [])):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name.partition(".")[0] for name in names)


def test_no_kernel_is_needed_or_imported():
    """flash-attn and its like do not build everywhere; torch's own attention is the default."""
    assert not KERNELS & {r.name for r in (*CORE, *OTHERS)}
    for file in (file for source in SOURCES for file in (ROOT / source).rglob("*.py")):
        assert not KERNELS & set(imported(file)), file


def test_deepspeed_is_an_extra_that_is_imported_within_functions():
    """It compiles kernels when they are asked for; nothing asks where its own extra is not installed."""
    needing = {name for name, lines in PROJECT["optional-dependencies"].items() if "deepspeed" in str(lines)}
    assert needing == {"deepspeed", "dev"} and "deepspeed" not in {r.name for r in CORE}
    for file in (file for source in SOURCES for file in (ROOT / source).rglob("*.py")):
        outside = [node for node in ast.parse(file.read_text()).body if not isinstance(node, ast.FunctionDef)]
        assert "deepspeed" not in set(imported_by(outside)), file


@pytest.mark.parametrize("llm", ["llama", "qwen2", "gpt2"])
def test_the_attention_of_torch_is_the_default(tiny_vlm, tiny_clip, llm):
    model = tiny_vlm(llm, encoder=tiny_clip)
    assert model.language_model.config._attn_implementation == "sdpa"
    assert model.vision_encoder.vision.config._attn_implementation == "sdpa"
