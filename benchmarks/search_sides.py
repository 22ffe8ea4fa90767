"""One side of `search.py` in a process of its own: `fill` stores the points, `ask` opens and searches.

Every side stores unit vectors of 768 float32 and a payload of two keys and a text (FAISS: vectors alone).
"""

import json
import sys
import time
import uuid
from pathlib import Path

import numpy as np
from search_data import BATCH, FILTERS, allowed, blocks, metadata, queries, wanted

# langchain-qdrant stores into local mode, too: its cost a point is measured on a part, see `search.py`.
PART = 10


class Clock:
    """Wall and CPU seconds (of all threads) since it was made."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self):
        """`wall` and `cpu`."""
        return {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}


class Vlmkit:
    """Our embedded engine."""

    half = False

    def __init__(self, folder, filling):
        from vlmkit_retrieval.engines import open_engine

        self.engine = open_engine(folder / f"vlmkit{'-half' * self.half}")

    def fill(self, folder, points):
        """Two indexes of payload keys, then batches."""
        from vlmkit_retrieval.types import Dense, Point

        self.engine.ensure({"v": Dense(768, self.half)})
        for key in FILTERS:
            self.engine.index_payload(key, "keyword")
        for start, rows in blocks(folder, "clustered", points):
            self.engine.upsert(
                [
                    Point(str(start + n), {"v": row}, {"text": f"point {start + n}", **metadata(start + n)})
                    for n, row in enumerate(rows)
                ]
            )
        self.engine.close()
        return points

    def ask(self, query, name):
        """Ids of the ten nearest."""
        from vlmkit_retrieval.where import Match

        where = Match(name, (wanted(name),)) if name else None
        return [int(hit.id) for hit in self.engine.search("v", query, 10, where)]


class VlmkitHalf(Vlmkit):
    """The same, stored as float16."""

    half = True


class Local:
    """qdrant-client's local mode, one folder; payloads as langchain-qdrant lays them out."""

    def __init__(self, folder, filling):
        from qdrant_client import QdrantClient

        self.client = QdrantClient(path=str(folder / "local"))

    def fill(self, folder, points):
        """Batches as arrays, the fastest way in that it has."""
        from qdrant_client import models

        self.client.create_collection("c", models.VectorParams(size=768, distance=models.Distance.COSINE))
        for start, rows in blocks(folder, "clustered", points):
            numbers = range(start, start + len(rows))
            payloads = [{"page_content": f"point {n}", "metadata": metadata(n)} for n in numbers]
            batch = models.Batch(ids=list(numbers), vectors=rows.tolist(), payloads=payloads)
            self.client.upsert("c", batch)
        self.client.close()
        return points

    def ask(self, query, name):
        """See `Vlmkit`."""
        found = self.client.query_points("c", query, query_filter=_filter(name), limit=10)
        return [int(point.id) for point in found.points]


class LangChain:
    """langchain-qdrant: fills a folder of its own with a part of the points, asks the one of `Local`."""

    def __init__(self, folder, filling):
        from langchain_qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient, models

        client = QdrantClient(path=str(folder / ("langchain" if filling else "local")))
        if filling:
            client.create_collection("c", models.VectorParams(size=768, distance=models.Distance.COSINE))
        self.store = QdrantVectorStore(client, "c", _known())

    def fill(self, folder, points):
        """Batches of texts whose vectors are known."""
        for start, rows in blocks(folder, "clustered", points // PART):
            numbers = range(start, start + len(rows))
            self.store.embeddings.rows = rows
            ids = [str(uuid.UUID(int=n)) for n in numbers]
            self.store.add_texts(
                [f"point {n}" for n in numbers], [metadata(n) for n in numbers], ids, batch_size=BATCH
            )
        self.store.client.close()
        return points // PART

    def ask(self, query, name):
        """See `Vlmkit`."""
        found = self.store.similarity_search_by_vector(query.tolist(), k=10, filter=_filter(name))
        return [int(document.metadata["_id"]) for document in found]


class Faiss:
    """FAISS flat: vectors in memory, compared one by one; filters are bitmaps that its user has made."""

    def __init__(self, folder, filling):
        import faiss

        self.faiss, self.path = faiss, folder / "faiss.bin"
        self.index = faiss.IndexFlatIP(768) if filling else faiss.read_index(str(self.path))
        self.chosen = {None: None}

    def fill(self, folder, points):
        """Batches, then the file."""
        for _, rows in blocks(folder, "clustered", points):
            self.index.add(rows)
        self.faiss.write_index(self.index, str(self.path))
        return points

    def ask(self, query, name):
        """See `Vlmkit`."""
        if name not in self.chosen:
            bits = np.packbits(allowed(name, self.index.ntotal), bitorder="little")
            selector = self.faiss.IDSelectorBitmap(bits)
            self.chosen[name] = self.faiss.SearchParameters(sel=selector)
        return self.index.search(query[None], 10, params=self.chosen[name])[1][0].tolist()


def _filter(name):
    from qdrant_client import models

    if name is None:
        return None
    match = models.MatchValue(value=wanted(name))
    return models.Filter(must=[models.FieldCondition(key=f"metadata.{name}", match=match)])


def _known():
    """Embeddings of the batch at hand (`rows`); before there is one, of the text that asks for the width."""
    from langchain_core.embeddings import Embeddings

    class Known(Embeddings):
        rows = None

        def embed_documents(self, texts):
            return [[1.0] * 768 for _ in texts] if self.rows is None else self.rows.tolist()

        def embed_query(self, text):
            raise NotImplementedError  # the sides ask by vector

    return Known()


def fill(side, folder, points):
    """Seconds of storing `stored` points, closed at the end."""
    opened, clock = SIDES[side](folder, True), Clock()
    return {"stored": opened.fill(folder, points), **clock.read()}


def ask(side, folder, counts):
    """Opening to the first answer; then seconds and answers of every query, by filter."""
    asked, clock = queries(folder, "clustered"), Clock()
    opened = SIDES[side](folder, False)
    opened.ask(asked[0], None)
    report = {"reopen": clock.read()}
    for name, count in counts.items():
        times, answers = [], []
        opened.ask(asked[0], name or None)
        for query in asked[:count]:
            clock = Clock()
            answers.append(opened.ask(query, name or None))
            times.append(clock.read())
        report[name] = {"times": times, "answers": answers}
    return report


def peak():
    """Bytes of resident memory at most so far, of this process alone (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


SIDES = {
    "vlmkit": Vlmkit,
    "vlmkit, float16": VlmkitHalf,
    "local mode": Local,
    "langchain-qdrant": LangChain,
    "FAISS flat": Faiss,
}

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    start = peak()
    work = Path(job["folder"])
    found = (
        fill(job["side"], work, job["points"])
        if job["verb"] == "fill"
        else ask(job["side"], work, job["counts"])
    )
    Path(job["output"]).write_text(json.dumps({**found, "start": start, "peak": peak()}))
