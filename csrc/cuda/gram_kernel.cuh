// gram on tensor cores of compute capability 8.0 and up.
//
// One launch covers every 128x128 tile of every cell: the lower triangle of A'A and all of A'T, over the same samples.
// A number is a sum of bfloat16 parts (three for float32, two for float16, one for bfloat16), so that products of parts
// give float32 accuracy (Henry, Tang & Heinecke, arXiv 1904.06376). Tensor cores cut sums off instead of rounding them,
// so these are promoted after kPromote samples.
#pragma once

#include "gram_tiles.cuh"
#include "panel.cuh"

namespace phasefast::cuda {

constexpr TileSize kTileSize = {kTile, kTile};

// As many splits as give each of `processors` two items, of at least eight stages each.
PHASEFAST_BOTH int gram_splits(int64_t tiles, int64_t samples, int processors) {
  const int64_t wanted = (2 * processors + tiles - 1) / tiles;
  const int64_t most = samples / (8 * kDepth);
  const int64_t splits = wanted < most ? wanted : most;
  return splits < 1 ? 1 : static_cast<int>(splits);
}

template <typename In, typename Targets>
constexpr int gram_shared_bytes() {
  constexpr int kOwn = Pipeline<In, In, Columns>::kBytes, kCross = Pipeline<In, Targets, Columns>::kBytes;
  return kOwn > kCross ? kOwn : kCross;
}

// One tile over samples [begin, end).
template <typename Left, typename Right>
PHASEFAST_DEVICE void gram_item(const Source<Left>& left, const Source<Right>& right, int64_t begin, int64_t end,
                                GramSink sink, char* shared) {
  float* tile = reinterpret_cast<float*>(shared);
  int64_t first = begin;
  do {  // an empty split gives zeros
    const int64_t last = first + kPromote < end ? first + kPromote : end;
    Pipeline<Left, Right, Columns>(left, right, first, last, shared).run().spread(tile);
    for (int at = Thread::index(); at < kTile * kTile; at += kThreads) {
      sink.put(at / kTile, at % kTile, tile[at / kTile * kTileStride + at % kTile]);
    }
    sink.fresh = false;
    first = last;
  } while (first < end);
}

template <typename In, typename Targets>
PHASEFAST_DEVICE void gram_body(const GramGroup& group, char* shared) {
  const int64_t items = group.items();
  for (int64_t item = Thread::block(); item < items; item += Thread::blocks()) {
    const GramTile tile = gram_tile(group, item / group.splits, kTileSize);
    const int split = static_cast<int>(item % group.splits);
    const GramCell& cell = group.cells[tile.cell];
    const int64_t begin = split_begin(group.samples, group.splits, split, kDepth);
    const int64_t end = split_begin(group.samples, group.splits, split + 1, kDepth);
    const GramSink sink = item_sink(group, tile, item, kTileSize);
    const In* rows = static_cast<const In*>(cell.rows);
    const Source<In> left{rows + tile.row, cell.row_stride, end, cell.width - tile.row};
    if (tile.cross) {
      const Targets* targets = static_cast<const Targets*>(group.targets);
      const Source<Targets> right{targets + tile.col, group.target_stride, end, group.cols - tile.col};
      gram_item(left, right, begin, end, sink, shared);
    } else {
      const Source<In> right{rows + tile.col, cell.row_stride, end, cell.width - tile.col};
      gram_item(left, right, begin, end, sink, shared);
    }
  }
}

}  // namespace phasefast::cuda
