"""What tables hold for each sample: lists of numbers per row, which tables cut from others share, not copy."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

import pyarrow as pa

LISTS = pa.list_(pa.float32())
_NONE = pa.nulls(1, LISTS)


def rows_of(column: pa.ChunkedArray) -> Iterator[pa.ListArray | None]:
    """The list of each row, as an array of length 1; None where there is none."""
    for lists in column.chunks:
        for row, there in enumerate(lists.is_valid().to_pylist()):
            # A copy, as a view would keep the memory of the whole column.
            yield pa.concat_arrays([lists.slice(row, 1)]) if there else None


def collected(rows: Iterable[pa.ListArray | None], once: bool) -> tuple[pa.Array, list[pa.ListArray]]:
    """Places [n] of rows' lists among the lists that there are, null where a row has none.

    Args:
        once: whether lists of the same bits are kept once.
    """
    found: dict[Hashable, int] = {}
    places, lists = list[int | None](), list[pa.ListArray]()
    for own in rows:
        if own is None:
            places.append(None)
            continue
        place = found.setdefault(_bits(own) if once else id(own), len(lists))
        if place == len(lists):
            lists.append(own)
        places.append(place)
    return pa.array(places, pa.int64()), lists


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
