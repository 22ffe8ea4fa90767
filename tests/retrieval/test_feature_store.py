from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.feature_store import FeatureStore

VECTOR = np.array([0.1, -2.5, 3e-8], np.float32)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "features.sqlite"


def test_vectors_come_back_bit_by_bit_and_after_a_reopen(file):
    FeatureStore(file).put("fp", "sha", VECTOR)
    found = FeatureStore(file).get("fp", "sha")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, VECTOR)


def test_a_vector_belongs_to_one_encoder_and_one_image(file):
    store = FeatureStore(file)
    store.put("fp", "sha", VECTOR)
    assert store.get("other encoder", "sha") is None
    assert store.get_many("fp", ["sha", "other image"]).keys() == {"sha"}


def test_a_batch_is_stored_whole_or_not_at_all(file):
    store = FeatureStore(file)
    with pytest.raises(RetrievalError, match="image bad has NaN"):
        store.put_many("fp", {"good": VECTOR, "bad": np.array([np.nan], np.float32)})
    assert store.get("fp", "good") is None


@pytest.mark.parametrize("damage", ["not sqlite", "cut"])
def test_a_damaged_file_says_delete_it(file, damage):
    FeatureStore(file).put_many("fp", {str(n): np.ones(500, np.float32) for n in range(50)})
    data = file.read_bytes()
    file.write_bytes(b"holiday photos" * 400 if damage == "not sqlite" else data[:9000])
    with pytest.raises(RetrievalError, match=r"features.sqlite is no feature store, or damaged .*delete it"):
        FeatureStore(file).get_many("fp", [str(n) for n in range(50)])


def test_a_row_of_the_wrong_length_is_damage(file):
    FeatureStore(file).put("fp", "sha", VECTOR)
    with sqlite3.connect(file) as db:
        db.execute("UPDATE vectors SET vector = x'00'")
    with pytest.raises(RetrievalError, match="1 bytes, expected 12"):
        FeatureStore(file).get("fp", "sha")


def test_another_programs_database_is_left_alone(file):
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE customers (name TEXT)")
    before = file.read_bytes()
    with pytest.raises(RetrievalError, match="of another program"):
        FeatureStore(file)
    assert file.read_bytes() == before


WRITE = """
import sys
import numpy as np
from vlmkit_retrieval.feature_store import FeatureStore
store = FeatureStore(sys.argv[1])
for n in range(40):
    store.put_many("fp", {f"{sys.argv[2]}-{n}-{m}": np.full(8, n, np.float32) for m in range(4)})
"""


def test_processes_write_at_the_same_time(file, python):
    writers = [python(WRITE, file, name) for name in "ab"]
    assert [writer.communicate(timeout=60)[1] for writer in writers] == ["", ""]
    keys = [f"{name}-{n}-{m}" for name in "ab" for n in range(40) for m in range(4)]
    assert FeatureStore(file).get_many("fp", keys).keys() == set(keys)
