// residual on tensor cores of compute capability 8.0 and up.
//
// A block of threads takes 128 rows of a cell and goes through the target columns tile by tile. Each tile of
// predictions lies in shared memory only, is compared with the targets, and is forgotten; sums go on in float64.
#pragma once

#include "device.cuh"
#include "panel.cuh"

namespace phasefast::cuda {

constexpr int kResidualCells = 16;  // of a launch
constexpr int kTargetBlocks = 64;   // of a launch
constexpr int kWarps = kThreads / 32;

struct ResidualCell {
  const void* rows;
  const float *weights, *offset;
  double* errors;
  bool* hits;
  int64_t row_stride, weight_stride, offset_stride, error_stride, hit_stride, width;
};

// Items are 128 rows of one cell.
struct ResidualGroup {
  ResidualCell cells[kResidualCells];
  int count, blocks;
  int64_t edges[kTargetBlocks + 1];
  bool classes[kTargetBlocks];
  const float* targets;
  int64_t target_stride, samples;
};

// The first largest number of a row and its column; or that there was none yet, or a NaN.
struct Best {
  static constexpr int kNone = -1, kNan = -2;
  float value;
  int col;

  static PHASEFAST_DEVICE Best none() { return {0, kNone}; }
  PHASEFAST_DEVICE void see(const Best& other) {
    if (col == kNan || other.col == kNone) return;
    const bool better = col == kNone || other.value > value || (other.value == value && other.col < col);
    if (other.col == kNan || better) *this = other;
  }
  PHASEFAST_DEVICE void see(float candidate, int64_t at) {
    see(Best{candidate, candidate == candidate ? static_cast<int>(at) : kNan});
  }
  // Of all `lanes` neighbours.
  PHASEFAST_DEVICE void gather(int lanes) {
    for (int mask = lanes / 2; mask; mask /= 2) see(Best{shuffle(value, mask), shuffle(col, mask)});
  }
};

// One tile of predictions of target columns [left, right) of a block, in shared memory.
PHASEFAST_DEVICE void compare(const ResidualGroup& group, const ResidualCell& cell, const float* tile, int64_t first,
                              int64_t left, int64_t right, bool classes, double* errors, Best* best) {
  const int lane = Thread::index() % 32, warp = Thread::index() / 32;
  for (int row = warp; row < kTile && first + row < group.samples; row += kWarps) {
    const float* target = group.targets + (first + row) * group.target_stride;
    double error = 0;
    Best predicted = Best::none(), expected = Best::none();
    for (int64_t col = left + lane; col < right; col += 32) {
      const float prediction = tile[row * kTileStride + col - left] + cell.offset[col * cell.offset_stride];
      const double miss = static_cast<double>(prediction - target[col]);
      error += miss * miss;
      if (!classes) continue;
      predicted.see(prediction, col);
      expected.see(target[col], col);
    }
    for (int mask = 16; mask; mask /= 2) error += shuffle(error, mask);
    if (lane == 0) errors[row] += error;
    if (!classes) continue;
    predicted.gather(32);
    expected.gather(32);
    if (lane == 0) {
      best[2 * row].see(predicted);
      best[2 * row + 1].see(expected);
    }
  }
}

// At most the 99 KiB of compute capability 8.6. Shared memory: panels or a tile, then the rows' sums and largest
// numbers.
template <typename In>
constexpr int residual_shared_bytes() {
  return Pipeline<In, float, Rows>::kBytes + kTile * static_cast<int>(sizeof(double) + 2 * sizeof(Best));
}

template <typename In>
PHASEFAST_DEVICE void residual_body(const ResidualGroup& group, char* shared) {
  using Pipe = Pipeline<In, float, Rows>;
  float* tile = reinterpret_cast<float*>(shared);
  double* errors = reinterpret_cast<double*>(shared + Pipe::kBytes);
  Best* best = reinterpret_cast<Best*>(errors + kTile);
  const int64_t across = tiles_across(group.samples);
  for (int64_t item = Thread::block(); item < across * group.count; item += Thread::blocks()) {
    const ResidualCell& cell = group.cells[item / across];
    const int64_t first = item % across * kTile;
    const Source<In> rows{static_cast<const In*>(cell.rows) + first * cell.row_stride, cell.row_stride,
                          group.samples - first, cell.width};
    for (int block = 0; block < group.blocks; ++block) {
      Thread::sync();
      for (int row = Thread::index(); row < kTile; row += kThreads) {
        errors[row] = 0;
        best[2 * row] = best[2 * row + 1] = Best::none();
      }
      Thread::sync();
      const int64_t stop = group.edges[block + 1];
      for (int64_t left = group.edges[block]; left < stop; left += kTile) {
        const Source<float> weights{cell.weights + left, cell.weight_stride, cell.width, stop - left};
        Pipe(rows, weights, 0, cell.width, shared).run().spread(tile);
        const int64_t right = left + kTile < stop ? left + kTile : stop;
        compare(group, cell, tile, first, left, right, group.classes[block], errors, best);
      }
      Thread::sync();
      for (int row = Thread::index(); row < kTile && first + row < group.samples; row += kThreads) {
        const Best &predicted = best[2 * row], &expected = best[2 * row + 1];
        const bool hit = predicted.col >= 0 && predicted.col == expected.col;
        cell.errors[block * cell.error_stride + first + row] = errors[row];
        cell.hits[block * cell.hit_stride + first + row] = group.classes[block] && hit;
      }
    }
  }
}

}  // namespace phasefast::cuda
