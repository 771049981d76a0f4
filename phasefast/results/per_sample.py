"""What tables hold for each sample: lists of numbers per row, which tables cut from others share, not copy."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

LISTS = pa.list_(pa.float32())
_NONE = pa.nulls(1, LISTS)


def apart(column: pa.ChunkedArray) -> tuple[pa.Array, list[pa.ListArray]]:
    """Places [n] of rows' lists among the lists that there are, null where a row has none, and these lists [1] each."""
    there = column.is_valid()
    places = pc.if_else(there, pc.subtract(pc.cumulative_sum(there.cast(pa.int64())), 1), None)
    # Copies, as views would keep the memory of the whole column.
    lists = [
        pa.concat_arrays([chunk.slice(row, 1)]) for chunk in column.drop_null().chunks for row in range(len(chunk))
    ]
    return places, lists


def pooled(
    parts: Iterable[tuple[pa.ChunkedArray, Sequence[pa.ListArray]]], once: bool
) -> tuple[pa.ChunkedArray, list[pa.ListArray]]:
    """Places [n] of all parts' rows among the lists that rows have, and these lists.

    Args:
        parts: places of rows among the lists of a part; those that no row has are dropped.
        once: whether lists of the same bits are kept once.
    """
    found: dict[Hashable, int] = {}
    chunks, lists = list[pa.Array](), list[pa.ListArray]()
    for places, own in parts:
        anew: list[int | None] = [None] * len(own)
        for place in places.unique().drop_null().to_pylist():
            anew[place] = found.setdefault(_bits(own[place]) if once else id(own[place]), len(lists))
            if anew[place] == len(lists):
                lists.append(own[place])
        chunks += pa.chunked_array([pa.array(anew, pa.int64())]).take(places).chunks
    return pa.chunked_array(chunks, pa.int64()), lists


def joined(rows: Iterable[pa.ListArray | None]) -> pa.ListArray:
    """One array [n] of rows' lists."""
    parts = [_NONE if own is None else own for own in rows]
    return pa.concat_arrays(parts) if parts else pa.array([], LISTS)


def _bits(own: pa.ListArray) -> Hashable:
    """What only lists of the same bits have in common."""
    numbers = own.flatten()
    if numbers.null_count or not len(numbers):  # which have no bits
        return object()
    width = LISTS.value_type.byte_width
    bits: bytes = numbers.buffers()[1].slice(numbers.offset * width, len(numbers) * width).to_pybytes()
    return bits
