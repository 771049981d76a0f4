// What the gram kernels share: cells, tiles, splits of the samples, where sums go. The sides of a tile are the
// kernel's.
#pragma once

#include "tile_size.cuh"

namespace phasefast::cuda {

constexpr int kCells = 16;          // of a launch
constexpr int64_t kPromote = 4096;  // samples whose float32 sum of bfloat16 products is trusted

struct GramCell {
  const void* rows;
  void* gram;  // or none
  void* cross;
  int64_t row_stride, gram_stride, cross_stride, width;
  bool gram_wide, cross_wide;  // float64, else float32
  int64_t first;               // tile
};

// What a launch does: items are pairs of a tile and one of `splits` ranges of samples.
struct GramGroup {
  GramCell cells[kCells];
  int count;
  const void* targets;
  int64_t target_stride, cols, samples, tiles;
  int splits;
  float* partial;  // [tiles, splits, height, width] where splits > 1
  int64_t* pace;   // a count, zero at first; on Hopper only

  PHASEFAST_BOTH int64_t items() const { return tiles * splits; }
};

// Where a tile stands: columns of A from `row` on, times columns of A or T from `col` on.
struct GramTile {
  int cell;
  int64_t row, col;
  bool cross;
};

// Tiles that hold the lower triangle of a matrix: a row of them ends where it has passed the diagonal, or the matrix.
PHASEFAST_BOTH int64_t triangle_tiles(int64_t size, TileSize tile) {
  const int64_t down = across(size, tile.height);
  return tile.times() * down * (down - 1) / 2 + across(size, tile.width);
}

// Of the lower triangle, or none, and of the cross products.
PHASEFAST_BOTH int64_t gram_tiles(int64_t width, int64_t cols, bool with_gram, TileSize size) {
  return (with_gram && width ? triangle_tiles(width, size) : 0) + across(width, size.height) * across(cols, size.width);
}

// Cells in order; of each first the triangle, row by row, then the cross products, tiles of the same rows together.
PHASEFAST_BOTH GramTile gram_tile(const GramGroup& group, int64_t tile, TileSize size) {
  int cell = 0;
  while (cell + 1 < group.count && group.cells[cell + 1].first <= tile) ++cell;
  int64_t at = tile - group.cells[cell].first;
  const int64_t triangle = group.cells[cell].gram ? triangle_tiles(group.cells[cell].width, size) : 0;
  if (at < triangle) {
    const auto before = [&](int64_t row) { return size.times() * row * (row + 1) / 2; };
    int64_t row = 0;
    while (before(row + 1) <= at) ++row;
    return {cell, row * size.height, (at - before(row)) * size.width, false};
  }
  at -= triangle;
  const int64_t right = across(group.cols, size.width);
  return {cell, at / right * size.height, at % right * size.width, true};
}

// Samples of a split: [begin, end), whole stages of `depth` samples.
PHASEFAST_BOTH int64_t split_begin(int64_t samples, int splits, int split, int depth) {
  const int64_t stages = (samples + depth - 1) / depth;
  const int64_t begin = stages * split / splits * depth;
  return begin < samples ? begin : samples;
}

// Where finished sums go: into the caller's matrix, or to the split's own slot.
struct GramSink {
  void* data;
  int64_t stride, rows, cols;
  bool wide, fresh;  // fresh: the first sums are stored, not added

  // No other thread of a launch writes there, so the order of sums is the thread's own.
  PHASEFAST_DEVICE void put(int64_t row, int64_t col, float value) const {
    if (row >= rows || col >= cols) return;
    if (wide) {
      add_to(static_cast<double*>(data) + row * stride + col, static_cast<double>(value));
    } else if (fresh) {
      static_cast<float*>(data)[row * stride + col] = value;
    } else {
      add_to(static_cast<float*>(data) + row * stride + col, value);
    }
  }
};

PHASEFAST_DEVICE GramSink gram_sink(const GramGroup& group, const GramTile& tile) {
  const GramCell& cell = group.cells[tile.cell];
  const int64_t stride = tile.cross ? cell.cross_stride : cell.gram_stride;
  const bool wide = tile.cross ? cell.cross_wide : cell.gram_wide;
  char* data = static_cast<char*>(tile.cross ? cell.cross : cell.gram);
  data += (tile.row * stride + tile.col) * (wide ? 8 : 4);
  return {data, stride, cell.width - tile.row, (tile.cross ? group.cols : cell.width) - tile.col, wide, false};
}

// The slot of an item, or where there is one split the caller's matrix.
PHASEFAST_DEVICE GramSink item_sink(const GramGroup& group, const GramTile& tile, int64_t item, TileSize size) {
  if (group.splits == 1) return gram_sink(group, tile);
  return {group.partial + item * size.places(), size.width, size.height, size.width, false, true};
}

constexpr int kAddedPlaces = 1024;  // places of a tile that a block of threads adds up at a time

PHASEFAST_BOTH int64_t reduce_items(const GramGroup& group, TileSize size) {
  return group.tiles * across(size.places(), kAddedPlaces);
}

// The splits of each tile, added up in order and in float64: the same sum whatever ran first.
PHASEFAST_DEVICE void gram_reduce_body(const GramGroup& group, TileSize size, int threads) {
  const int64_t places = size.places(), parts = across(places, kAddedPlaces);
  for (int64_t item = Thread::block(); item < reduce_items(group, size); item += Thread::blocks()) {
    const int64_t tile = item / parts, first = item % parts * kAddedPlaces;
    const GramSink sink = gram_sink(group, gram_tile(group, tile, size));
    const float* partial = group.partial + tile * group.splits * places;
    for (int64_t at = first + Thread::index(); at < first + kAddedPlaces && at < places; at += threads) {
      const int64_t row = at / size.width, col = at % size.width;
      if (row >= sink.rows || col >= sink.cols) continue;
      double total = 0;
      for (int split = 0; split < group.splits; ++split) total += partial[split * places + at];
      if (sink.wide) {
        static_cast<double*>(sink.data)[row * sink.stride + col] += total;
      } else {
        static_cast<float*>(sink.data)[row * sink.stride + col] += static_cast<float>(total);
      }
    }
  }
}

}  // namespace phasefast::cuda
