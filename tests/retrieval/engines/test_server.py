"""What the server engine sends, seen by a server of a few lines; a real one is not part of these tests.

The suite of all engines runs against a real server where VLMKIT_QDRANT_URL names one.
"""

from __future__ import annotations

import json
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.engines.server import REQUEST_BYTES, ServerEngine
from vlmkit_retrieval.engines.server_url import ServerUrl
from vlmkit_retrieval.engines.tenant import TENANT_KEY, Tenant
from vlmkit_retrieval.engines.upload import send_all, with_retry
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Dense, Multi, Point, Sparse, Terms
from vlmkit_retrieval.where import Match

DONE = {"operation_id": 1, "status": "completed"}


class Recorder(ThreadingHTTPServer):
    """Answers as Qdrant's REST interface does, and keeps what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict, int]] = []
        self.failures: list[int] = []
        self.lock = threading.Lock()
        self.busy = self.most_at_once = 0
        self.two_at_once = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/photos"

    def bodies(self, method, path):
        return [body for m, p, body, _ in self.asked if m == method and p.partition("?")[0].endswith(path)]


class Handler(BaseHTTPRequestHandler):
    server: Recorder

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.busy += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.busy)
            if self.server.busy > 1:
                self.server.two_at_once.set()
            self.server.asked.append((self.command, self.path, body, length))
            storing = self.command == "PUT" and path.endswith("/points")
            status = self.server.failures.pop(0) if storing and self.server.failures else 200
        results = {
            "exists": {"exists": False},
            "photos": True,
            "points": DONE,
            "index": DONE,
            "query": {"points": []},
            "delete": DONE,
            "batch": [DONE],
        }
        answer = {"result": results[path.rsplit("/", 1)[1]], "status": "ok", "time": 0.0}
        data = json.dumps(answer if status == 200 else {"status": {"error": "too busy"}}).encode()
        if storing and length > REQUEST_BYTES / 2:
            # However slow the machine is, another of those sent in parallel comes.
            self.server.two_at_once.wait(20)
        with self.server.lock:
            self.server.busy -= 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = answer

    def log_message(self, *words):
        """Be silent."""


@pytest.fixture
def server():
    recorder = Recorder()
    yield recorder
    recorder.shutdown()
    recorder.server_close()


def wide_points(count: int, width: int = 1024) -> list[Point]:
    rows = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    return [Point(f"{n}", {"a": row}, {"text": "ä" * 100}) for n, row in enumerate(rows)]


def test_a_collection_is_made_spread_and_without_an_approximate_index(server):
    with open_engine(f"{server.url}?shards=4&replicas=2") as engine:
        engine.ensure({"a": Dense(4), "h": Dense(5, half=True), "m": Multi(3), "s": Sparse()})
        engine.index_payload("kind", "keyword")
    [made] = server.bodies("PUT", "/collections/photos")
    assert (made["shard_number"], made["replication_factor"], made["hnsw_config"]["m"]) == (4, 2, 0)
    vectors = made["vectors"]
    assert {name: (v["size"], v["distance"], v["datatype"]) for name, v in vectors.items()} == {
        "a": (4, "Cosine", "float32"),
        "h": (5, "Cosine", "float16"),
        "m": (3, "Cosine", "float16"),
    }
    assert vectors["m"]["multivector_config"] == {"comparator": "max_sim"}
    assert made["sparse_vectors"]["s"]["modifier"] == "idf"
    [index] = server.bodies("PUT", "/index")
    assert index == {"field_name": '"kind"', "field_schema": "keyword"}


def test_a_server_chooses_shards_and_replicas_where_the_url_is_silent(server):
    with open_engine(server.url) as engine:
        engine.ensure({"a": Dense(4)})
    [made] = server.bodies("PUT", "/collections/photos")
    assert made.get("shard_number") is None
    assert made.get("replication_factor") is None


def test_points_are_sent_in_requests_of_5_mb_in_parallel(server):
    points = wide_points(700)
    with open_engine(server.url) as engine:
        engine.ensure({"a": Dense(1024)})
        engine.upsert(points)
    requests = server.bodies("PUT", "/points")
    sizes = [length for method, path, _, length in server.asked if method == "PUT" and "/points" in path]
    assert len(requests) > 2
    assert max(sizes) <= REQUEST_BYTES
    assert sorted(sizes)[1] > REQUEST_BYTES / 2, "requests are much smaller than they may be"
    sent = [point for request in requests for point in request["points"]]
    assert sorted(point["payload"]["_vlmkit_id"] for point in sent) == sorted(point.id for point in points)
    assert 1 < server.most_at_once <= 4


def test_what_is_deleted_and_payloads_are_sent_in_requests_a_server_takes(server):
    """It takes 32 MiB; all pages of a folder of books, or their ids, are more."""
    with open_engine(server.url) as engine:
        engine.ensure({"a": Dense(4)})
        engine.delete([str(n) for n in range(10_000)])
        engine._put_payloads({str(n): {"text": "ä" * 200_000} for n in range(12)})
    assert [len(body["points"]) for body in server.bodies("POST", "/delete")] == [4096, 4096, 1808]
    batches = [
        length for method, path, _, length in server.asked if path.partition("?")[0].endswith("/batch")
    ]
    assert len(batches) == 3
    assert max(batches) <= REQUEST_BYTES


def test_a_point_larger_than_a_request_may_be_is_sent_alone(server):
    large = Point("large", {"m": np.ones((256, 1024), np.float32)})
    with open_engine(server.url) as engine:
        engine.ensure({"m": Multi(1024)})
        engine.upsert([Point("a", {}), large, Point("b", {})])
    assert sorted(len(body["points"]) for body in server.bodies("PUT", "/points")) == [1, 1, 1]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(server, status, monkeypatch):
    monkeypatch.setattr("vlmkit_retrieval.engines.upload.time.sleep", lambda seconds: None)
    server.failures = [status, status]
    with open_engine(server.url) as engine:
        engine.ensure({"a": Dense(4)})
        engine.upsert([Point("x", {"a": np.ones(4)})])
    assert len(server.bodies("PUT", "/points")) == 3


@pytest.mark.parametrize(("status", "attempts"), [(400, 1), (403, 1), (503, 4)])
def test_a_server_that_says_no_is_one_clear_line(server, status, attempts, monkeypatch):
    monkeypatch.setattr("vlmkit_retrieval.engines.upload.time.sleep", lambda seconds: None)
    server.failures = [status] * 9
    with open_engine(server.url) as engine:
        engine.ensure({"a": Dense(4)})
        with pytest.raises(
            RetrievalError, match=rf"^Qdrant at .*/photos: .*{status}.*too busy.*; check that"
        ):
            engine.upsert([Point("x", {"a": np.ones(4)})])
    assert len(server.bodies("PUT", "/points")) == attempts


def test_a_search_is_exact_and_filtered_where_it_runs(server):
    with open_engine(server.url) as engine:
        engine.ensure({"a": Dense(2), "s": Sparse()})
        engine.search("a", np.ones(2), 3, Match("kind", ("x", True)))
        engine.search("a", np.ones(2), 3, exact=False)
        engine.search("s", Terms([1], [1.0]), 3)
    exact, approximate, sparse = server.bodies("POST", "/query")
    assert (exact["params"]["exact"], approximate["params"]["exact"]) == (True, False)
    truth = {"key": '"kind"', "match": {"value": True}}
    assert exact["filter"] == {"must": [{"should": [truth, {"key": '"kind"', "match": {"any": ["x"]}}]}]}
    assert (exact["with_vector"], sparse["with_vector"], exact["using"]) == (["a"], False, "a")


def test_a_tenant_is_a_key_that_the_server_keeps_together(server):
    with open_engine(server.url) as engine:
        tenant = Tenant(engine, "alice")
        tenant.ensure({"a": Dense(2), "s": Sparse()})
        tenant.upsert([Point("x", {"a": np.ones(2)})])
        tenant.search("s", Terms([1], [1.0]), 3)
    [index] = server.bodies("PUT", "/index")
    assert index == {"field_name": f'"{TENANT_KEY}"', "field_schema": {"type": "keyword", "is_tenant": True}}
    [request] = server.bodies("PUT", "/points")
    assert request["points"][0]["payload"] == {TENANT_KEY: "alice", "_vlmkit_id": "alice/x"}
    [search] = server.bodies("POST", "/query")
    own = {"must": [{"key": f'"{TENANT_KEY}"', "match": {"any": ["alice"]}}]}
    assert (search["filter"], search["params"]["idf"]) == (own, {"corpus": own})


@pytest.fixture
def grpc_server():
    """Qdrant's gRPC interface, as far as an upload needs it: its port, and what it was sent."""
    import grpc
    from qdrant_client import grpc as messages
    from qdrant_client.grpc import collections_service_pb2_grpc as collections
    from qdrant_client.grpc import points_service_pb2_grpc as points

    sent: list = []

    class Collections(collections.CollectionsServicer):
        def CollectionExists(self, request, context):
            return messages.CollectionExistsResponse(result=messages.CollectionExists(exists=False))

        def Create(self, request, context):
            sent.append(request)
            return messages.CollectionOperationResponse(result=True)

    class Points(points.PointsServicer):
        refusals = 1

        def Upsert(self, request, context):
            if Points.refusals:
                Points.refusals -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "a moment")
            if "forbidden" in str(request.points[0].payload):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such thing")
            sent.append(request)
            return messages.PointsOperationResponse(result=messages.UpdateResult(status=2))

    server = grpc.server(futures.ThreadPoolExecutor(4))
    collections.add_CollectionsServicer_to_server(Collections(), server)
    points.add_PointsServicer_to_server(Points(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, sent
    server.stop(None)


def test_grpc_carries_collections_and_points(grpc_server, monkeypatch):
    monkeypatch.setattr("vlmkit_retrieval.engines.upload.time.sleep", lambda seconds: None)
    port, sent = grpc_server
    with open_engine(f"http://127.0.0.1:9/photos?shards=4&grpc={port}") as engine:
        engine.ensure({"a": Dense(1024)})
        engine.upsert(wide_points(2000))
        with pytest.raises(RetrievalError, match="INVALID_ARGUMENT: no such thing; check that"):
            engine.upsert([Point("forbidden", {"a": np.ones(1024)})])
    made, *requests = sent
    assert (made.collection_name, made.shard_number, made.hnsw_config.m) == ("photos", 4, 0)
    assert max(request.ByteSize() for request in requests) <= REQUEST_BYTES
    assert sum(len(request.points) for request in requests) == 2000
    assert len(requests) > 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host:6333/photos", ServerUrl("http://host:6333", "photos")),
        ("http://host:6333", ServerUrl("http://host:6333", "vlmkit")),
        ("http://[::1]:6333/p", ServerUrl("http://[::1]:6333", "p")),
        (
            "https://host:6334/photos?shards=4&replicas=2",
            ServerUrl("https://host:6333", "photos", grpc_port=6334, shards=4, replicas=2),
        ),
        ("http://host:7000/p?grpc=7001&parallel=9", ServerUrl("http://host:7000", "p", 7001, 9)),
    ],
)
def test_a_url_says_where_and_how(url, expected):
    assert ServerUrl.parse(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host/p?shard=4", "no option 'shard'; possible: grpc, parallel, replicas, shards"),
        ("http://host/p?shards=0", "shards is '0'; give a whole number from 1 on"),
        ("http://host/p?shards=", "shards is ''"),
        ("http://host:port/p", "give http"),
        ("http:///p", "is no server"),
    ],
)
def test_a_wrong_url_is_refused(url, message):
    with pytest.raises(RetrievalUsageError, match=message):
        open_engine(url)


def test_a_password_in_a_url_is_refused_and_not_shown():
    with pytest.raises(RetrievalUsageError, match="an API key in QDRANT_API_KEY") as caught:
        open_engine("https://me:secret@host:6333/photos")
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_clear_line():
    for url in ("http://127.0.0.1:9/photos", "http://127.0.0.1:9/photos?grpc=9"):
        with pytest.raises(
            RetrievalError, match=r"Qdrant at http://127\.0\.0\.1:9/photos: .*check that the server runs"
        ):
            open_engine(url)


def test_an_api_key_is_not_sent_in_the_clear():
    with pytest.raises(RetrievalUsageError, match="sent unencrypted to example"):
        ServerEngine("http://example.org:6333", api_key="secret")


def test_what_is_not_the_servers_fault_is_raised_at_once():
    attempts = []

    def broken(piece):
        attempts.append(piece)
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        send_all([[1]], with_retry(broken), 2)
    assert attempts == [[1]]
