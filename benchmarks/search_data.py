"""What `search.py`'s sides store: vectors in a file, read a block at a time, and payloads.

Shapes: N points, D numbers a vector.
"""

import numpy as np

WIDTH, BATCH, QUERIES = 768, 256, 200
CENTRES, LATENT = 1000, 96
KINDS = ("clustered", "hard")
# Part of the points that each filter lets through.
FILTERS = {"tenant": 0.01, "half": 0.5}


def write(kind, folder, points):
    """Points and queries of one kind: `KIND.f32` and `KIND-queries.npy`, all of unit length."""
    draw = np.random.default_rng(0)
    basis = draw.normal(size=(CENTRES if kind == "clustered" else LATENT, WIDTH)).astype(np.float32)
    with (folder / f"{kind}.f32").open("wb") as file:
        for start in range(0, points, 4096):
            _rows(kind, basis, min(4096, points - start), draw).tofile(file)
    np.save(folder / f"{kind}-queries.npy", _rows(kind, basis, QUERIES, draw))


def _rows(kind, basis, count, draw):
    """Clustered: near one of 1000 centres. Hard: 96 independent directions, and noise in all 768."""
    if kind == "clustered":
        rows_ND = basis[draw.integers(0, len(basis), count)]
        rows_ND = rows_ND + 0.7 * draw.normal(size=(count, WIDTH))
    else:
        rows_ND = draw.normal(size=(count, LATENT)) @ basis
        rows_ND = rows_ND + draw.normal(size=(count, WIDTH))
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)


def blocks(folder, kind, points):
    """(number of its first point, vectors) of each batch; a side holds one batch in memory."""
    for start in range(0, points, BATCH):
        count = min(BATCH, points - start)
        flat = np.fromfile(folder / f"{kind}.f32", np.float32, count * WIDTH, offset=4 * start * WIDTH)
        yield start, flat.reshape(count, WIDTH)


def queries(folder, kind):
    """Vectors of shape (QUERIES, D), drawn as the points are; none of them is stored."""
    return np.load(folder / f"{kind}-queries.npy")


def metadata(number):
    """The keys that filters ask for: a tenant of 1 % of the points, a half of 50 %."""
    return {"tenant": f"t{number % 100:02}", "half": "ab"[number // 100 % 2]}


def wanted(name):
    """The value that a filter asks for."""
    return {"tenant": "t07", "half": "a"}[name]


def allowed(name, points):
    """Which points a filter lets through, as booleans."""
    return np.array([metadata(number)[name] == wanted(name) for number in range(points)])


def truth(folder, kind, points, name=None):
    """Numbers of the ten nearest points of each query (or all that a filter leaves), in float64."""
    asked = queries(folder, kind).astype(np.float64)
    scores = np.concatenate([asked @ block.T for _, block in blocks(folder, kind, points)], axis=1)
    passing = np.full(points, True) if name is None else allowed(name, points)
    scores[:, ~passing] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, : min(10, passing.sum())]
