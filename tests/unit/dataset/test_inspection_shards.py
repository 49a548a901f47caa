from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcc_ops.dataset import inspection_shards
from bcc_ops.dataset.feature_search import FeatureSearch
from bcc_ops.dataset.fingerprints import Fingerprint
from bcc_ops.dataset.inspection_shards import (
    FACTS,
    FINDINGS,
    MOST_FEATURES,
    SEARCH,
    SIMILARITY,
    VERSION,
    KnownContent,
    Shard,
    may_be_shared,
    read_shard,
    write_shard,
)
from bcc_ops.dataset.properties import Properties
from bcc_ops.dataset.similarity import Similarity
from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.tables import read_digests

ONE, OTHER, THIRD = ("1" * 64, "2" * 64, "3" * 64)
PROPERTIES = Properties("PNG", 900, 0.0, *(0.25 for _ in range(13)))


def known(sha256: str = ONE, features: int = 5, **changes: Any) -> KnownContent:
    rng = np.random.default_rng(features)
    points = rng.uniform(1, 60, (features, 3)).astype(np.float32)
    points[:, 2] = 1.2
    mark = Fingerprint.of("a" * 64, b"12345678", points, rng.integers(0, 256, (features, 32), dtype=np.uint8))
    row = KnownContent(sha256, 32, 9_000, 64, 80, "L;16", 12.345678901234567, 2.5, True, PROPERTIES, mark)
    return row._replace(**changes)


SHARDS = {
    FACTS: Shard(facts=[known(), known(OTHER, features=0)]),
    FINDINGS: Shard(findings=[(ONE, "2t"), (OTHER, "2 axilla calipers")]),
    SIMILARITY: Shard(similarity=[((ONE, OTHER), Similarity(0.1, 1.0))]),
    SEARCH: Shard(search=FeatureSearch((ONE, OTHER, THIRD), frozenset({(ONE, THIRD)}))),
}


def rewritten(kind: str, change: Callable[[pa.Table], pa.Table], **how: Any) -> bytes:
    """The bytes of a good shard with another table."""
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(write_shard(SHARDS[kind])))), sink, **{"compression": "snappy", **how})
    return sink.getvalue()


def with_cells(kind: str, **cells: Any) -> bytes:
    """A shard whose first row has other values."""

    def change(table: pa.Table) -> pa.Table:
        for name, value in cells.items():
            place = table.schema.get_field_index(name)
            column = [value, *table.column(place).to_pylist()[1:]]
            table = table.set_column(place, table.schema.field(place), pa.array(column, table.schema.field(place).type))
        return table

    return rewritten(kind, change)


def test_what_is_known_of_a_content_comes_back_to_the_last_bit():
    (row, bare) = read_shard(FACTS, write_shard(SHARDS[FACTS])).facts
    assert row[:-1] == known()[:-1]
    assert (row.fingerprint.pixels, row.fingerprint.hash) == ("a" * 64, b"12345678")
    found, expected = row.fingerprint.features(), known().fingerprint.features()
    for one, other in ((found.points, expected.points), (found.descriptors, expected.descriptors)):
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    assert (bare.fingerprint.features().points.shape, bare.fingerprint.features().descriptors.shape) == ((0, 3), (0, 32))


@pytest.mark.parametrize("kind", [FINDINGS, SIMILARITY, SEARCH])
def test_findings_similarities_and_searches_come_back(kind: str):
    assert SHARDS[kind].kind == kind
    assert read_shard(kind, write_shard(SHARDS[kind])) == SHARDS[kind]


def test_a_search_that_found_nothing_comes_back():
    for nothing in (Shard(search=FeatureSearch()), Shard(search=FeatureSearch((ONE,)))):
        assert read_shard(SEARCH, write_shard(nothing)) == nothing


def test_every_content_that_a_shard_names_is_told_whatever_its_version(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspection_shards, "VERSION", "0-1-1")
    assert {kind: read_digests(write_shard(shard)) - {"a" * 64} for kind, shard in SHARDS.items()} == {
        FACTS: {ONE, OTHER},
        FINDINGS: {ONE, OTHER},
        SIMILARITY: {ONE, OTHER},
        SEARCH: {ONE, OTHER, THIRD},
    }
    with pytest.raises(ArtifactError, match="not a Parquet file"):
        read_digests(b"PAR1")


DIGEST = bytes.fromhex
BAD_CELLS = {
    "a size beyond its limits": (FACTS, {"width": 100_000}),
    "a side below its limits": (FACTS, {"min_side": 65}),
    "no side at all": (FACTS, {"min_side": 0}),
    "an empty cell": (FACTS, {"width": None}),
    "no synthetic": (FACTS, {"synthetic": None}),
    "no number": (FACTS, {"mean": float("nan")}),
    "a mean beyond white": (FACTS, {"mean": 255.5}),
    "an endless contrast": (FACTS, {"contrast": float("inf")}),
    "a mode with a line break": (FACTS, {"mode": "L\n"}),
    "a long mode": (FACTS, {"mode": "L" * 33}),
    "a format that is not read": (FACTS, {"file_format": "GIF"}),
    "a negative border": (FACTS, {"border_left": -0.5}),
    "a property that is not a number": (FACTS, {"strokes": float("nan")}),
    "no pixels": (FACTS, {"pixels": None}),
    "no hash": (FACTS, {"hash": None}),
    "half a point": (FACTS, {"points": b"1234567"}),
    "more points than descriptors": (FACTS, {"descriptors": bytes(32)}),
    "a scale of 0": (FACTS, {"points": np.array([[1, 1, 0]] * 5, "<f4").tobytes()}),
    "a scale beyond all": (FACTS, {"points": np.array([[1, 1, 17]] * 5, "<f4").tobytes()}),
    "a point that is nowhere": (FACTS, {"points": np.array([[np.nan, 1, 1]] * 5, "<f4").tobytes()}),
    "a point outside": (FACTS, {"points": np.array([[65, 1, 1]] * 5, "<f4").tobytes()}),
    "an unknown finding": (FINDINGS, {"found": "2t haunted"}),
    "findings of another method": (FINDINGS, {"found": "1t"}),
    "findings in another order": (FINDINGS, {"found": "2t calipers axilla"}),
    "a finding twice": (FINDINGS, {"found": "2t axilla axilla"}),
    "a text that was read": (FINDINGS, {"found": "2t Jane Doe"}),
    "no finding": (FINDINGS, {"found": None}),
    "a long text": (FINDINGS, {"found": "2t" + " axilla" * 100}),
    "a pair in the wrong order": (SIMILARITY, {"one": DIGEST(THIRD)}),
    "a pair of one": (SIMILARITY, {"one": DIGEST(OTHER)}),
    "a similarity beyond 1": (SIMILARITY, {"similarity": 1.1}),
    "a similarity that is none": (SIMILARITY, {"similarity": float("nan")}),
    "an overlap beyond 1": (SIMILARITY, {"overlap": 1.1}),
    "contents out of order": (SEARCH, {"content": DIGEST(THIRD)}),
    "a pair with a content that was not searched": (SEARCH, {"content": DIGEST("0" * 64), "agrees_with": DIGEST(ONE)}),
    "no content": (SEARCH, {"content": None}),
}


@pytest.mark.parametrize(("kind", "cells"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_a_value_that_no_image_check_can_have_learned_refuses_the_shard(kind: str, cells: dict[str, Any]):
    with pytest.raises(ArtifactError, match=r"holds what no image check can have learned|has a value of more than"):
        read_shard(kind, with_cells(kind, **cells))


BAD_FILES = {
    "nothing": (b"", "not a Parquet file"),
    "half of it": (write_shard(SHARDS[FACTS])[:-500], "not a Parquet file"),
    "zeros within": (
        write_shard(SHARDS[FACTS])[:40] + bytes(400) + write_shard(SHARDS[FACTS])[440:],
        "not a Parquet file|holds what",
    ),
    "another kind": (write_shard(SHARDS[SIMILARITY]), "has other columns"),
    "no version": (
        rewritten(FACTS, lambda table: table.replace_schema_metadata({})),
        rf"of another version \('', not '{VERSION}'\)",
    ),
    "another version": (
        rewritten(FACTS, lambda table: table.replace_schema_metadata({b"bcc_ops.inspections": b"9-9-9"})),
        rf"of another version \('9-9-9', not '{VERSION}'\)",
    ),
    "a column less": (rewritten(FACTS, lambda table: table.drop_columns("mode")), "has other columns"),
    "another type": (
        rewritten(FACTS, lambda table: table.set_column(6, "mean", table.column(6).cast(pa.float32()))),
        "has other columns",
    ),
    "compressed so that it may grow a thousandfold": (
        rewritten(FACTS, lambda table: table, compression="zstd"),
        "than with Snappy",
    ),
    "too many rows": (rewritten(FACTS, lambda table: pa.concat_tables([table] * 501)), "has more than 1,000 rows"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_shard_of_ours_is_refused_with_its_reason(content: bytes, reason: str):
    with pytest.raises(ArtifactError, match=reason):
        read_shard(FACTS, content)


def test_a_file_beyond_the_limit_is_not_even_opened(monkeypatch: pytest.MonkeyPatch):
    content = write_shard(SHARDS[FACTS])
    monkeypatch.setattr(inspection_shards, "LARGEST_SHARD", len(content) - 1)
    with pytest.raises(ArtifactError, match="has more than"):
        read_shard(FACTS, content)


def test_a_blob_that_stands_in_every_row_is_held_once_and_refused():
    """A small file can name one large value in every row."""

    rows = pa.concat_tables([pq.read_table(io.BytesIO(write_shard(SHARDS[FACTS])))] * 400)
    blobs = pa.DictionaryArray.from_arrays(pa.array([0] * len(rows), pa.int32()), pa.array([bytes(1_000_000)], pa.binary()))
    rows = rows.set_column(rows.schema.get_field_index("points"), "points", blobs)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, rows.schema, compression="snappy", store_schema=False) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({"bcc_ops.inspections": VERSION})
    content = sink.getvalue()
    assert len(content) < 500_000
    before = pa.total_allocated_bytes()
    with pytest.raises(ArtifactError, match="has a value of more than"):
        read_shard(FACTS, content)
    assert pa.default_memory_pool().max_memory() < before + 50_000_000


@given(st.data())
def test_a_damaged_byte_is_refused_or_tells_what_could_be_true(data: st.DataObject):
    """Nothing but the project's error leaves, whatever is in the file; the name of a shard tells damage besides."""
    kind = data.draw(st.sampled_from(sorted(SHARDS)))
    content = bytearray(write_shard(SHARDS[kind]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        shard = read_shard(kind, bytes(content))
    except ArtifactError:
        return
    assert all(may_be_shared(row) for row in shard.facts)


def test_what_nobody_would_take_is_not_written():
    assert may_be_shared(known()) and may_be_shared(known(features=MOST_FEATURES))
    assert not may_be_shared(known(features=MOST_FEATURES + 1))
    assert not may_be_shared(known(max_pixels=63))
    assert not may_be_shared(known(mode=""))
