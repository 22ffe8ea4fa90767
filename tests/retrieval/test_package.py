from __future__ import annotations

import subprocess

import pytest

import vlmkit_retrieval
from vlmkit_retrieval.types import Embedder

HEAVY = ("torch", "transformers", "qdrant_client", "qdrant_edge", "langchain_core", "vlmkit", "PIL", "numpy")


def finished(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert errors == ""
    return output.strip()


def test_import_loads_nothing_heavy(python):
    program = f"import sys, vlmkit_retrieval; print([m for m in {HEAVY} if m in sys.modules])"
    assert finished(python(program)) == "[]"


def test_an_index_loads_no_engine_but_its_own(python, tmp_path):
    program = (
        "import sys; from vlmkit_retrieval import Index; Index.create_or_open(sys.argv[1]).close();"
        "print([m for m in ('torch', 'vlmkit', 'qdrant_client', 'langchain_core') if m in sys.modules])"
    )
    assert finished(python(program, tmp_path / "new.idx")) == "[]"


def test_every_public_name_is_there():
    for name in vlmkit_retrieval.__all__:
        assert getattr(vlmkit_retrieval, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Indexx'"):
        vlmkit_retrieval.Indexx  # noqa: B018


@pytest.mark.parametrize(
    ("module", "package", "use"),
    [
        (
            "qdrant_edge",
            "qdrant-edge-py",
            "from vlmkit_retrieval import open_engine; open_engine(sys.argv[1])",
        ),
        (
            "qdrant_client",
            "qdrant-client",
            "from vlmkit_retrieval import open_engine; open_engine(':memory:')",
        ),
        (
            "pypdfium2",
            "pypdfium2",
            "from vlmkit_retrieval.sources import Reader; Reader([], ['pdf'])",
        ),
        ("langchain_core", "langchain-core", "import vlmkit_retrieval.langchain"),
    ],
)
def test_a_missing_package_names_the_extra(python, tmp_path, module, package, use):
    program = (
        f"import sys; sys.modules[{module!r}] = None\ntry:\n    {use}\nexcept ImportError as e:\n    print(e)"
    )
    expected = f"{package} is not installed; do: pip install 'vlmkit[rag]'"
    assert finished(python(program, tmp_path / "shard")).startswith(expected)


def test_a_fake_is_an_embedder_by_shape(colours):
    assert isinstance(colours, Embedder)
