// ridge_solve for all penalties of many cells at once.
//
// Left-looking Cholesky by block columns of 128 of the equilibrated matrices; diagonal blocks are inverted, so that
// panels and right-hand sides are products of matrices (Higham, Accuracy and Stability of Numerical Algorithms, 10,
// 13).
#pragma once

#include <cmath>

#include "device.cuh"
#include "panel.cuh"

namespace phasefast::cuda {

// One cell and its L penalties. Workspaces are dense: factor [L, d, d], inverse [L, block columns, kTile, kTile],
// solution [L, d, p], root [L, d]; factors_out may be none.
struct SolveCell {
  const float *gram, *cross;
  const double* penalties;
  float *weights, *factors_out, *factor, *inverse, *solution, *root;
  int32_t* info;
  int64_t gram_row, gram_col, cross_row, cross_col, penalty_stride, weight_stride, weight_batch, out_stride, out_batch;
  int64_t info_stride, width, cols;
  int steps;
};

constexpr int kSolveCells = 16;  // of a launch

struct SolveGroup {
  SolveCell cells[kSolveCells];
  int count;
};

PHASEFAST_DEVICE float inverse_root(float root) {
  return root == 0 ? 0.0f : 1 / root;
}

PHASEFAST_DEVICE int block_size(int64_t start, int64_t width) {
  return static_cast<int>(width - start < kTile ? width - start : kTile);
}

PHASEFAST_DEVICE float* inverse_block(const SolveCell& cell, int step, int64_t column) {
  return cell.inverse + (step * tiles_across(cell.width) + column) * kTile * kTile;
}

constexpr int64_t kPlaces = 8 * kThreads;  // of an item that is no tile

// Calls body(step, row, col) for the places of [., rows, cols] that belong to an item.
template <typename F>
PHASEFAST_DEVICE void each_place(int64_t item, int steps, int64_t rows, int64_t cols, const F& body) {
  const int64_t end = (item + 1) * kPlaces, count = steps * rows * cols;
  for (int64_t at = item * kPlaces + Thread::index(); at < end && at < count; at += kThreads) {
    body(static_cast<int>(at / cols / rows), at / cols % rows, at % cols);
  }
}

// The root of the diagonal: NaN where that is negative, which the factorisation then reports; 0 where dead.
PHASEFAST_DEVICE void solve_roots(const SolveCell& cell, int64_t item) {
  each_place(item, cell.steps, 1, cell.width, [&](int step, int64_t, int64_t at) {
    const float penalty = static_cast<float>(cell.penalties[step * cell.penalty_stride]);
    cell.root[step * cell.width + at] = sqrtf(cell.gram[at * (cell.gram_row + cell.gram_col)] + penalty);
    if (at == 0) cell.info[step * cell.info_stride] = 0;
  });
}

PHASEFAST_DEVICE void solve_scale(const SolveCell& cell, int64_t item) {
  each_place(item, cell.steps, cell.width, cell.width, [&](int step, int64_t row, int64_t col) {
    if (col > row) return;
    const float* root = cell.root + step * cell.width;
    float value = cell.gram[row * cell.gram_row + col * cell.gram_col];
    if (row == col) value += static_cast<float>(cell.penalties[step * cell.penalty_stride]);
    value *= inverse_root(root[row]) * inverse_root(root[col]);
    cell.factor[(step * cell.width + row) * cell.width + col] = row == col && root[row] == 0 ? 1.0f : value;
  });
}

// Calls put(row, col, value) for the places of a tile in shared memory that exist.
template <typename F>
PHASEFAST_DEVICE void each_sum(const float* tile, int64_t rows, int64_t cols, const F& put) {
  for (int at = Thread::index(); at < kTile * kTile; at += kThreads) {
    const int row = at / kTile, col = at % kTile;
    if (row < rows && col < cols) put(row, col, tile[row * kTileStride + col]);
  }
}

// Block column `column` less what the columns before it explain.
PHASEFAST_DEVICE void solve_update(const SolveCell& cell, int64_t column, int64_t item, char* shared) {
  float* tile = reinterpret_cast<float*>(shared);
  const int64_t d = cell.width, start = column * kTile, tiles = tiles_across(d) - column;
  float* factor = cell.factor + item / tiles * d * d;
  const int64_t row = start + item % tiles * kTile;
  const Source<float> left{factor + row * d, d, d - row, start}, right{factor + start * d, d, d - start, start};
  Pipeline<float, float, Rows, Rows>(left, right, 0, start, shared).run().spread(tile);
  each_sum(tile, d - row, d - start, [&](int r, int c, float sum) { factor[(row + r) * d + start + c] -= sum; });
}

constexpr int kDiagonalStride = kTile + 1;  // columns are read without bank conflicts
constexpr int kSub = 32;                    // columns that are eliminated before the rest of the block is updated
constexpr int kSubs = kTile / kSub;
constexpr int kGrid = 16;  // threads share a block as a grid of 16 x 16
static_assert(kGrid * kGrid == kThreads);

// A diagonal block in shared memory: its factor, and above the diagonal the transposed inverse of that.
struct DiagonalBlock {
  float *a, *inverted;  // [kTile, kDiagonalStride]; the inverse's own diagonal

  PHASEFAST_DEVICE float& at(int row, int col) const { return a[row * kDiagonalStride + col]; }
  PHASEFAST_DEVICE float& inverse(int row, int col) const { return at(col, row); }
};

// Columns [start, start + kSub) of the factor; `report` hears of pivots that are not positive.
template <typename F>
PHASEFAST_DEVICE void eliminate(const DiagonalBlock& block, int start, const F& report) {
  for (int j = start; j < start + kSub; ++j) {
    const float pivot = block.at(j, j), scale = 1 / sqrtf(pivot);  // NaN or infinite where not positive
    Thread::sync();
    if (Thread::index() == 0 && !(pivot > 0 && pivot < INFINITY)) report(j);
    for (int row = j + Thread::index(); row < kTile; row += kThreads) block.at(row, j) *= scale;
    Thread::sync();
    for (int at = Thread::index(); at < (kTile - j - 1) * kSub; at += kThreads) {
      const int row = j + 1 + at / kSub, col = j + 1 + at % kSub;
      if (col < start + kSub && col <= row) block.at(row, col) -= block.at(row, j) * block.at(col, j);
    }
    Thread::sync();
  }
  // What is right of them, less their products.
  constexpr int kMost = kTile / kGrid;
  const int first = start + kSub, down = Thread::index() / kGrid, right = Thread::index() % kGrid;
  float sum[kMost][kMost] = {};
  for (int k = start; k < first; ++k) {
    float left[kMost], above[kMost];
    PHASEFAST_UNROLL
    for (int i = 0; i < kMost; ++i) {
      const int row = first + down + i * kGrid, col = first + right + i * kGrid;
      left[i] = row < kTile ? block.at(row, k) : 0;
      above[i] = col < kTile ? block.at(col, k) : 0;
    }
    PHASEFAST_UNROLL
    for (int i = 0; i < kMost; ++i) {
      PHASEFAST_UNROLL
      for (int j = 0; j < kMost; ++j) sum[i][j] += left[i] * above[j];
    }
  }
  PHASEFAST_UNROLL
  for (int i = 0; i < kMost; ++i) {
    PHASEFAST_UNROLL
    for (int j = 0; j < kMost; ++j) {
      const int row = first + down + i * kGrid, col = first + right + j * kGrid;
      if (row < kTile && col <= row) block.at(row, col) -= sum[i][j];
    }
  }
  Thread::sync();
}

// The inverse of a factor [L11 0; L21 L22] is [L11^-1 0; -L22^-1 L21 L11^-1, L22^-1]: first the blocks on the diagonal
// column by column, then those below them, the nearest first.
PHASEFAST_DEVICE void invert(const DiagonalBlock& block) {
  const int thread = Thread::index();
  if (thread < kTile) block.inverted[thread] = 1 / block.at(thread, thread);
  Thread::sync();
  if (thread < kTile) {
    const int col = thread;
    for (int row = col + 1; row < col / kSub * kSub + kSub; ++row) {
      float sum = block.at(row, col) * block.inverted[col];
      for (int k = col + 1; k < row; ++k) sum += block.at(row, k) * block.inverse(k, col);
      block.inverse(row, col) = -sum * block.inverted[row];
    }
  }
  Thread::sync();
  constexpr int kMost = (kSubs - 1) * kSub * kSub / kThreads;
  for (int apart = 1; apart < kSubs; ++apart) {
    const int count = (kSubs - apart) * kSub * kSub / kThreads;
    const auto place = [&](int i, int& row, int& col) {
      const int at = thread + i * kThreads, down = apart + at / (kSub * kSub);
      row = down * kSub + at / kSub % kSub;
      col = (down - apart) * kSub + at % kSub;
    };
    for (int i = 0; i < count; ++i) {  // L21 L11^-1
      int row, col;
      place(i, row, col);
      float sum = block.at(row, col) * block.inverted[col];
      for (int k = col + 1; k < row / kSub * kSub; ++k) sum += block.at(row, k) * block.inverse(k, col);
      block.inverse(row, col) = sum;
    }
    Thread::sync();
    float sums[kMost];
    PHASEFAST_UNROLL
    for (int i = 0; i < kMost; ++i) {
      if (i >= count) continue;
      int row, col;
      place(i, row, col);
      float sum = block.inverted[row] * block.inverse(row, col);
      for (int k = row / kSub * kSub; k < row; ++k) sum += block.inverse(row, k) * block.inverse(k, col);
      sums[i] = -sum;
    }
    Thread::sync();
    PHASEFAST_UNROLL
    for (int i = 0; i < kMost; ++i) {
      if (i >= count) continue;
      int row, col;
      place(i, row, col);
      block.inverse(row, col) = sums[i];
    }
    Thread::sync();
  }
}

// Factors and inverts the diagonal block of one penalty, in shared memory; what is missing of it is the identity.
PHASEFAST_DEVICE void solve_diagonal(const SolveCell& cell, int64_t column, int step, char* shared) {
  float* a = reinterpret_cast<float*>(shared);
  const DiagonalBlock block{a, a + kTile * kDiagonalStride};
  const int64_t d = cell.width, start = column * kTile;
  const int size = block_size(start, d);
  float* factor = cell.factor + step * d * d + start * d + start;
  float* inverse = inverse_block(cell, step, column);
  Thread::sync();
  for (int at = Thread::index(); at < kTile * kTile; at += kThreads) {
    const int row = at / kTile, col = at % kTile;
    block.at(row, col) = row < size && col <= row ? factor[row * d + col] : static_cast<float>(row == col);
  }
  Thread::sync();
  int32_t& info = cell.info[step * cell.info_stride];
  const auto report = [&](int at) {
    if (info == 0) info = static_cast<int32_t>(start + at + 1);
  };
  for (int sub = 0; sub < size; sub += kSub) eliminate(block, sub, report);
  invert(block);
  for (int at = Thread::index(); at < kTile * kTile; at += kThreads) {
    const int row = at / kTile, col = at % kTile;
    if (row >= size) continue;
    if (col <= row) factor[row * d + col] = block.at(row, col);
    inverse[row * kTile + col] = row < col ? 0.0f : row == col ? block.inverted[row] : block.inverse(row, col);
  }
}

// The tiles below the diagonal block, times its inverse transposed.
PHASEFAST_DEVICE void solve_panel(const SolveCell& cell, int64_t column, int64_t item, char* shared) {
  float* tile = reinterpret_cast<float*>(shared);
  const int64_t d = cell.width, start = column * kTile, tiles = tiles_across(d) - column - 1;
  const int step = static_cast<int>(item / tiles);
  const int64_t row = start + (1 + item % tiles) * kTile;
  float* panel = cell.factor + step * d * d + row * d + start;
  const Source<float> left{panel, d, d - row, kTile}, right{inverse_block(cell, step, column), kTile, kTile, kTile};
  Pipeline<float, float, Rows, Rows>(left, right, 0, kTile, shared).run().spread(tile);
  each_sum(tile, d - row, kTile, [&](int r, int c, float value) { panel[r * d + c] = value; });
}

// Block row `column` of the solution: forward, L Y = scaled cross, or backward, L' X = Y, in place.
template <bool forward>
PHASEFAST_DEVICE void solve_substitute(const SolveCell& cell, int64_t column, int64_t item, char* shared) {
  float* tile = reinterpret_cast<float*>(shared);
  const int64_t d = cell.width, p = cell.cols, start = column * kTile, across = tiles_across(p);
  const int size = block_size(start, d);
  const int step = static_cast<int>(item / across);
  const int64_t col = item % across * kTile;
  const float* factor = cell.factor + step * d * d;
  float* solution = cell.solution + step * d * p + col;
  float* own = solution + start * p;
  const Source<float> known{solution, p, d, p - col}, rest{own, p, size, p - col};
  const Source<float> inverse{inverse_block(cell, step, column), kTile, size, size};
  if constexpr (forward) {
    const Source<float> left{factor + start * d, d, d - start, start};
    const Source<float> before{solution, p, start, p - col};
    Pipeline<float, float, Rows>(left, before, 0, start, shared).run().spread(tile);
    each_sum(tile, size, p - col, [&](int r, int c, float sum) {
      const float cross = cell.cross[(start + r) * cell.cross_row + (col + c) * cell.cross_col];
      own[r * p + c] = cross * inverse_root(cell.root[step * d + start + r]) - sum;
    });
    Pipeline<float, float, Rows>(inverse, rest, 0, size, shared).run().spread(tile);
  } else {
    const Source<float> left{factor + start, d, d, d - start};
    Pipeline<float, float, Columns>(left, known, start + size, d, shared).run().spread(tile);
    each_sum(tile, size, p - col, [&](int r, int c, float sum) { own[r * p + c] -= sum; });
    Pipeline<float, float, Columns>(inverse, rest, 0, size, shared).run().spread(tile);
  }
  each_sum(tile, size, p - col, [&](int r, int c, float value) { own[r * p + c] = value; });
}

PHASEFAST_DEVICE void solve_weights(const SolveCell& cell, int64_t item) {
  const int64_t d = cell.width, p = cell.cols;
  each_place(item, cell.steps, d, p, [&](int step, int64_t row, int64_t col) {
    const bool failed = cell.info[step * cell.info_stride] != 0;
    const float value = cell.solution[(step * d + row) * p + col] * inverse_root(cell.root[step * d + row]);
    cell.weights[step * cell.weight_batch + row * cell.weight_stride + col] = failed ? NAN : value;
  });
}

PHASEFAST_DEVICE void solve_factors(const SolveCell& cell, int64_t item) {
  const int64_t d = cell.width;
  each_place(item, cell.steps, d, d, [&](int step, int64_t row, int64_t col) {
    const bool failed = cell.info[step * cell.info_stride] != 0;
    const float root = cell.root[step * d + row];
    const float value = col > row ? 0.0f : cell.factor[(step * d + row) * d + col] * (root == 0 ? 1.0f : root);
    cell.factors_out[step * cell.out_batch + row * cell.out_stride + col] = failed ? NAN : value;
  });
}

constexpr int kSolveShared = Pipeline<float, float, Rows>::kBytes;
static_assert(kTile * (kDiagonalStride + 1) * 4 <= kSolveShared);

enum class SolveStage { roots, scale, update, diagonal, panel, forward, backward, weights, factors };

PHASEFAST_BOTH constexpr bool is_elementwise(SolveStage stage) {
  return stage == SolveStage::roots || stage == SolveStage::scale || stage >= SolveStage::weights;
}

// Items of a cell in one launch: tiles or ranges of places, of all penalties. Narrower cells have fewer columns.
template <SolveStage stage>
PHASEFAST_BOTH int64_t solve_items(const SolveCell& cell, int64_t column) {
  const int64_t columns = tiles_across(cell.width), steps = cell.steps, width = cell.width;
  const auto ranges = [](int64_t places) { return (places + kPlaces - 1) / kPlaces; };
  if constexpr (stage == SolveStage::roots) return ranges(steps * width);
  if constexpr (stage == SolveStage::scale) return ranges(steps * width * width);
  if constexpr (stage == SolveStage::weights) return ranges(steps * width * cell.cols);
  if constexpr (stage == SolveStage::factors) return cell.factors_out ? ranges(steps * width * width) : 0;
  if (column >= columns) return 0;
  if constexpr (stage == SolveStage::update) return column ? steps * (columns - column) : 0;
  if constexpr (stage == SolveStage::diagonal) return steps;
  if constexpr (stage == SolveStage::panel) return steps * (columns - column - 1);
  return steps * tiles_across(cell.cols);
}

template <SolveStage stage>
PHASEFAST_BOTH int64_t solve_items(const SolveGroup& group, int64_t column) {
  int64_t items = 0;
  for (int i = 0; i < group.count; ++i) items += solve_items<stage>(group.cells[i], column);
  return items;
}

template <SolveStage stage>
PHASEFAST_DEVICE void solve_item(const SolveCell& cell, int64_t column, int64_t item, char* shared) {
  if constexpr (stage == SolveStage::roots) solve_roots(cell, item);
  if constexpr (stage == SolveStage::scale) solve_scale(cell, item);
  if constexpr (stage == SolveStage::update) solve_update(cell, column, item, shared);
  if constexpr (stage == SolveStage::diagonal) solve_diagonal(cell, column, static_cast<int>(item), shared);
  if constexpr (stage == SolveStage::panel) solve_panel(cell, column, item, shared);
  if constexpr (stage == SolveStage::forward) solve_substitute<true>(cell, column, item, shared);
  if constexpr (stage == SolveStage::backward) solve_substitute<false>(cell, column, item, shared);
  if constexpr (stage == SolveStage::weights) solve_weights(cell, item);
  if constexpr (stage == SolveStage::factors) solve_factors(cell, item);
}

// One block of threads does one item.
template <SolveStage stage>
PHASEFAST_DEVICE void solve_body(const SolveGroup& group, int64_t column, char* shared) {
  int64_t item = Thread::block();
  int cell = 0;
  for (int64_t items; item >= (items = solve_items<stage>(group.cells[cell], column)); ++cell) item -= items;
  solve_item<stage>(group.cells[cell], column, item, shared);
}

// The whole solution as launches: run.template operator()<stage>(column, items) for every stage in its turn.
template <typename Run>
void solve_schedule(const SolveGroup& group, const Run& run) {
  int64_t columns = 0;
  for (int i = 0; i < group.count; ++i) {
    const int64_t own = tiles_across(group.cells[i].width);
    columns = own > columns ? own : columns;
  }
  const auto launch = [&]<SolveStage stage>(int64_t column) {
    if (const int64_t items = solve_items<stage>(group, column)) run.template operator()<stage>(column, items);
  };
  launch.template operator()<SolveStage::roots>(0);
  launch.template operator()<SolveStage::scale>(0);
  for (int64_t column = 0; column < columns; ++column) {
    launch.template operator()<SolveStage::update>(column);
    launch.template operator()<SolveStage::diagonal>(column);
    launch.template operator()<SolveStage::panel>(column);
  }
  for (int64_t column = 0; column < columns; ++column) launch.template operator()<SolveStage::forward>(column);
  for (int64_t column = columns; column-- > 0;) launch.template operator()<SolveStage::backward>(column);
  launch.template operator()<SolveStage::weights>(0);
  launch.template operator()<SolveStage::factors>(0);
}

}  // namespace phasefast::cuda
