// gram on tensor cores of compute capability 8.0 and up. Not yet run on a GPU: the reference is the default route.
//
// One launch covers every 128x128 tile of every cell: the lower triangle of A'A and all of A'T, over the same samples.
// A number is a sum of bfloat16 parts (three for float32, two for float16, one for bfloat16), so that products of parts
// give float32 accuracy (Henry, Tang & Heinecke, arXiv 1904.06376). Sums are promoted every kPromote samples.
#pragma once

#include "device.cuh"
#include "panel.cuh"

namespace phasefast::cuda {

constexpr int kCells = 16;          // of a launch
constexpr int64_t kPromote = 4096;  // samples whose float32 sum is trusted

struct GramCell {
  const void* rows;
  void* gram;  // or none
  void* cross;
  int64_t row_stride, gram_stride, cross_stride, width;
  bool gram_wide, cross_wide;  // float64, else float32
  int64_t first;               // tile
};

// What a launch does: items are pairs of a tile and one of `splits` ranges of samples.
template <typename Targets>
struct GramGroup {
  GramCell cells[kCells];
  int count;
  const Targets* targets;
  int64_t target_stride, cols, samples, tiles;
  int splits;
  float* partial;  // [tiles, splits, kTile, kTile] where splits > 1
};

// Where a tile stands: columns of A from `row` on, times columns of A or T from `col` on.
struct GramTile {
  int cell;
  int64_t row, col;
  bool cross;
};

PHASEFAST_BOTH int64_t gram_tiles(int64_t width, int64_t cols, bool with_gram) {
  const int64_t across = tiles_across(width);
  return (with_gram ? across * (across + 1) / 2 : 0) + across * tiles_across(cols);
}

// Cells in order; of each first the triangle, row by row, then the cross products, tiles of the same rows together.
template <typename Targets>
PHASEFAST_BOTH GramTile gram_tile(const GramGroup<Targets>& group, int64_t tile) {
  int cell = 0;
  while (cell + 1 < group.count && group.cells[cell + 1].first <= tile) ++cell;
  int64_t at = tile - group.cells[cell].first;
  const int64_t across = tiles_across(group.cells[cell].width);
  const int64_t triangle = group.cells[cell].gram ? across * (across + 1) / 2 : 0;
  if (at < triangle) {
    int64_t row = 0;
    while ((row + 1) * (row + 2) / 2 <= at) ++row;
    return {cell, row * kTile, (at - row * (row + 1) / 2) * kTile, false};
  }
  at -= triangle;
  const int64_t right = tiles_across(group.cols);
  return {cell, at / right * kTile, at % right * kTile, true};
}

// Samples of a split: [begin, end), whole stages.
PHASEFAST_BOTH int64_t split_begin(int64_t samples, int splits, int split) {
  const int64_t stages = (samples + kDepth - 1) / kDepth;
  const int64_t begin = stages * split / splits * kDepth;
  return begin < samples ? begin : samples;
}

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

// Where finished sums go: into the caller's matrix, or to the split's own slot.
struct GramSink {
  void* data;
  int64_t stride, rows, cols;
  bool wide, fresh;  // fresh: the first sums are stored, not added

  PHASEFAST_DEVICE void put(int64_t row, int64_t col, float value) const {
    if (row >= rows || col >= cols) return;
    if (wide) {
      static_cast<double*>(data)[row * stride + col] += value;
    } else if (fresh) {
      static_cast<float*>(data)[row * stride + col] = value;
    } else {
      static_cast<float*>(data)[row * stride + col] += value;
    }
  }
};

template <typename Targets>
PHASEFAST_DEVICE GramSink gram_sink(const GramGroup<Targets>& group, const GramTile& tile) {
  const GramCell& cell = group.cells[tile.cell];
  const int64_t stride = tile.cross ? cell.cross_stride : cell.gram_stride;
  const bool wide = tile.cross ? cell.cross_wide : cell.gram_wide;
  char* data = static_cast<char*>(tile.cross ? cell.cross : cell.gram);
  data += (tile.row * stride + tile.col) * (wide ? 8 : 4);
  return {data, stride, cell.width - tile.row, (tile.cross ? group.cols : cell.width) - tile.col, wide, false};
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
PHASEFAST_DEVICE void gram_body(const GramGroup<Targets>& group, char* shared) {
  const int64_t items = group.tiles * group.splits;
  for (int64_t item = Thread::block(); item < items; item += Thread::blocks()) {
    const GramTile tile = gram_tile(group, item / group.splits);
    const int split = static_cast<int>(item % group.splits);
    const GramCell& cell = group.cells[tile.cell];
    const int64_t begin = split_begin(group.samples, group.splits, split);
    const int64_t end = split_begin(group.samples, group.splits, split + 1);
    GramSink sink = gram_sink(group, tile);
    if (group.splits > 1) sink = {group.partial + item * kTile * kTile, kTile, kTile, kTile, false, true};
    const In* rows = static_cast<const In*>(cell.rows);
    const Source<In> left{rows + tile.row, cell.row_stride, end, cell.width - tile.row};
    if (tile.cross) {
      const Source<Targets> right{group.targets + tile.col, group.target_stride, end, group.cols - tile.col};
      gram_item(left, right, begin, end, sink, shared);
    } else {
      const Source<In> right{rows + tile.col, cell.row_stride, end, cell.width - tile.col};
      gram_item(left, right, begin, end, sink, shared);
    }
  }
}

// The splits of each tile, added up in order and in float64: the same sum whatever ran first.
template <typename Targets>
PHASEFAST_DEVICE void gram_reduce_body(const GramGroup<Targets>& group) {
  for (int64_t tile = Thread::block(); tile < group.tiles; tile += Thread::blocks()) {
    const GramSink sink = gram_sink(group, gram_tile(group, tile));
    const float* partial = group.partial + tile * group.splits * kTile * kTile;
    for (int at = Thread::index(); at < kTile * kTile; at += kThreads) {
      const int64_t row = at / kTile, col = at % kTile;
      if (row >= sink.rows || col >= sink.cols) continue;
      double total = 0;
      for (int split = 0; split < group.splits; ++split) total += partial[split * kTile * kTile + at];
      if (sink.wide) {
        static_cast<double*>(sink.data)[row * sink.stride + col] += total;
      } else {
        static_cast<float*>(sink.data)[row * sink.stride + col] += static_cast<float>(total);
      }
    }
  }
}

}  // namespace phasefast::cuda
