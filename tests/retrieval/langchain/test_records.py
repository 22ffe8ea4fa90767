"""The record manager: what langchain-core's own promises, and what `index()` makes of a store with it."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex, index

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.langchain import VlmkitRecordManager, VlmkitVectorStore


class Async:
    """A manager by its async methods."""

    def __init__(self, manager):
        self.manager = manager

    async def __call__(self, name, *arguments, **named):
        return await getattr(self.manager, f"a{name}")(*arguments, **named)


class Sync(Async):
    """A manager by its sync methods."""

    async def __call__(self, name, *arguments, **named):
        return getattr(self.manager, name)(*arguments, **named)


@pytest.fixture
def records(tmp_path):
    return VlmkitRecordManager("docs", tmp_path / "records.sqlite")


@pytest.fixture(params=["langchain", "sync", "async"])
async def ask(request, records):
    """Ours in both ways; LangChain's first, so that a test holds what it promises."""
    manager = InMemoryRecordManager("docs") if request.param == "langchain" else records
    call = (Async if request.param == "async" else Sync)(manager)
    await call("create_schema")
    return call


async def test_keys_are_there_once_noted(ask):
    await ask("update", ["a", "b"])
    await ask("update", ["b", "c"])
    assert await ask("exists", ["c", "x", "a", "b"]) == [True, False, True, True]
    assert sorted(await ask("list_keys")) == ["a", "b", "c"]
    await ask("delete_keys", ["a", "x"])
    assert await ask("exists", ["a", "b"]) == [False, True]
    assert await ask("exists", []) == []


async def test_times_and_groups_choose_keys(ask):
    await ask("update", ["a", "b"], group_ids=["one", "two"])
    time.sleep(0.01)
    between = await ask("get_time")
    time.sleep(0.01)
    await ask("update", ["c", "d"], group_ids=["one", None], time_at_least=between)
    assert sorted(await ask("list_keys", before=between)) == ["a", "b"]
    assert sorted(await ask("list_keys", after=between)) == ["c", "d"]
    assert sorted(await ask("list_keys", group_ids=["one"])) == ["a", "c"]
    assert await ask("list_keys", group_ids=["one", "two"], before=between, after=between - 1000) != []
    assert await ask("list_keys", group_ids=["one"], after=between) == ["c"]
    assert len(await ask("list_keys", limit=3)) == 3
    await ask("update", ["a"], group_ids=["two"])
    assert sorted(await ask("list_keys", group_ids=["two"])) == ["a", "b"]
    assert sorted(await ask("list_keys", before=between)) == ["b"]


async def test_what_is_refused(ask):
    with pytest.raises(ValueError, match=r"[Ll]ength|group_ids"):
        await ask("update", ["a", "b"], group_ids=["one"])
    with pytest.raises(ValueError, match="time_at_least"):
        await ask("update", ["a"], time_at_least=await ask("get_time") + 1000)
    assert await ask("list_keys") == []


def test_namespaces_share_a_file(records, tmp_path):
    other = VlmkitRecordManager("other", tmp_path / "records.sqlite")
    records.update(["a"])
    other.update(["b"])
    assert (records.list_keys(), other.list_keys()) == (["a"], ["b"])
    other.delete_keys(["a"])
    assert records.exists(["a", "b"]) == [True, False]
    again = VlmkitRecordManager("docs", tmp_path / "records.sqlite")
    assert again.list_keys() == ["a"]


def test_an_empty_list_of_groups_fits_nothing(records):
    """LangChain's own takes it for no condition, which lists everything for deletion."""
    records.update(["a"], group_ids=["one"])
    assert records.list_keys(group_ids=[]) == [] == records.list_keys(limit=0)


def test_a_refresh_keeps_the_group(records):
    records.update(["a"], group_ids=["one"])
    records.update(["a"])
    assert records.list_keys(group_ids=["one"]) == ["a"]
    records.update(["a"], group_ids=[None])
    assert records.list_keys(group_ids=["one"]) == []


def test_the_clock_goes_on_where_the_machines_goes_back(records, monkeypatch):
    records.update(["a"])
    first = records.get_time()
    monkeypatch.setattr(time, "time", lambda: first - 3600)
    second = records.get_time()
    assert second > first
    records.update(["b"], time_at_least=second)
    assert records.list_keys(before=second) == ["a"] and records.list_keys(after=second) == ["b"]


def test_threads_write_at_once(records):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: records.update([f"{n}/{m}" for m in range(20)]), range(16)))
        times = list(pool.map(lambda _: records.get_time(), range(50)))
    assert len(records.list_keys()) == 320 and len(set(times)) == 50


def test_an_update_that_fails_leaves_nothing(records):
    with pytest.raises(RetrievalError, match=r"bind|type"):
        records.update(["a", object()])
    assert records.list_keys() == []


def test_files_of_others_are_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "theirs.sqlite") as db:
        db.execute("CREATE TABLE x (y)")
    db.close()
    with pytest.raises(RetrievalError, match="another program; name another file"):
        VlmkitRecordManager("docs", tmp_path / "theirs.sqlite")
    (tmp_path / "noise.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(RetrievalError, match="not a database"):
        VlmkitRecordManager("docs", tmp_path / "noise.sqlite")
    with pytest.raises(RetrievalError, match="unable to open"):
        VlmkitRecordManager("docs", tmp_path / "no folder" / "x.sqlite")


class Counting(DeterministicFakeEmbedding):
    """Notes every text that is embedded."""

    def embed_documents(self, texts):
        SEEN.update(texts)
        return super().embed_documents(texts)


SEEN = Counter()


@pytest.fixture
def store(tmp_path):
    SEEN.clear()
    with VlmkitVectorStore(Counting(size=6), tmp_path / "documents") as store:
        yield store


def chunks(source, count, **changed):
    """The chunks of one file; `n3="text"` changes number 3."""
    texts = [changed.get(f"n{n}", f"{source} chunk {n}") for n in range(count)]
    return [Document(text, metadata={"source": source, "n": n}) for n, text in enumerate(texts)]


def stored(store):
    points = store.get_by_ids(store.engine.ids())
    return sorted((d.metadata["source"], d.metadata["n"], d.page_content) for d in points)


def expected(documents):
    return sorted((d.metadata["source"], d.metadata["n"], d.page_content) for d in documents)


def run(documents, records, store, cleanup, batch_size=100):
    SEEN.clear()
    done = index(
        documents, records, store, cleanup=cleanup, source_id_key="source", batch_size=batch_size,
        key_encoder="sha256",
    )  # fmt: skip
    assert sum(SEEN.values()) == done["num_added"]
    return {name.removeprefix("num_"): count for name, count in done.items() if count}


@pytest.mark.parametrize("cleanup", ["full", "scoped_full"])
def test_indexing_again_does_nothing(records, store, cleanup):
    """250 chunks of one file over batches of 100: where `incremental` embeds 150 of them again every time."""
    documents = chunks("a.md", 250)
    assert run(documents, records, store, cleanup) == {"added": 250}
    for _ in range(2):
        assert run(documents, records, store, cleanup) == {"skipped": 250}
    changed = chunks("a.md", 240, n3="another text")
    assert run(changed, records, store, cleanup) == {"added": 1, "skipped": 239, "deleted": 11}
    assert stored(store) == expected(changed) and len(records.list_keys()) == 240


def test_incremental_does_nothing_where_a_source_fits_into_a_batch(records, store):
    documents = [*chunks("a.md", 40), *chunks("b.md", 40)]
    assert run(documents, records, store, "incremental", 40) == {"added": 80}
    assert run(documents, records, store, "incremental", 40) == {"skipped": 80}
    assert run(chunks("a.md", 39), records, store, "incremental", 40) == {"skipped": 39, "deleted": 1}


def test_incremental_ends_right_where_it_does_not(records, store):
    """How much it embeds again is decided in `index()`, which asks a record manager for keys before it has
    told it of the later batches; no record manager can help that."""
    documents = chunks("a.md", 250)
    for _ in range(2):
        run(documents, records, store, "incremental")
        assert stored(store) == expected(documents)


def test_only_full_removes_a_source_that_is_gone(records, store):
    run([*chunks("a.md", 3), *chunks("b.md", 3)], records, store, "full")
    assert run(chunks("b.md", 3), records, store, "scoped_full") == {"skipped": 3}
    assert run(chunks("b.md", 3), records, store, "full") == {"skipped": 3, "deleted": 3}
    assert stored(store) == expected(chunks("b.md", 3))


@pytest.mark.parametrize("cleanup", ["full", "scoped_full", "incremental"])
def test_a_run_that_broke_off_is_finished_by_the_next(records, store, cleanup):
    """Also what the broken run only refreshed is cleaned up later: it has kept its source."""
    run(chunks("a.md", 250), records, store, cleanup)
    new = chunks("a.md", 230, n200="another text")

    def broken():
        yield from new[:120]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk"):
        run(broken(), records, store, cleanup)
    run(new, records, store, cleanup)
    assert stored(store) == expected(new)


async def test_async_indexing(records, store):
    documents = chunks("a.md", 30)
    for done in ({"num_added": 30}, {"num_skipped": 30}):
        found = await aindex(
            documents, records, store, cleanup="full", source_id_key="source", key_encoder="sha256"
        )
        assert done.items() <= found.items()
    assert stored(store) == expected(documents)


def test_errors_say_what_to_do(records):
    with pytest.raises(RetrievalUsageError, match="give one group to every key"):
        records.update(["a", "b"], group_ids=["one"])
    with pytest.raises(RetrievalUsageError, match=r"seconds in the future; take it from get_time\(\)"):
        records.update(["a"], time_at_least=time.time() + 60)
