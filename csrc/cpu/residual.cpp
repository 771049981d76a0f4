// Predictions tile by tile: each tile is multiplied out, reduced while it is in cache, and forgotten.
#include "residual.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>

#include "cpu/cpu.h"

namespace phasefast {
namespace {

constexpr int64_t kTileRows = 256;
constexpr int64_t kTileCols = 512;
constexpr int64_t kGrain = 1 << 21;  // operations that are worth a thread

// Where the first largest value of a row stands; a NaN anywhere makes it invalid for good.
template <typename T>
struct Best {
  T value;
  int64_t column = -1;
  bool valid = true;

  void see(T candidate, int64_t where) {
    if (std::isnan(candidate)) valid = false;
    if (column < 0 || candidate > value) {
      value = candidate;
      column = where;
    }
  }
};

// Sum over columns of (prediction + offset - target)^2: differences in P, squares and sums in float64.
template <typename T, typename P, typename S>
PHASEFAST_INLINE double miss(const T* prediction, const P* offset, const S* target, int64_t cols) {
  double lanes[16] = {};
  int64_t c = 0;
  for (; c + 16 <= cols; c += 16) {
    for (int64_t j = 0; j < 16; ++j) {
      const double d =
          static_cast<P>(prediction[c + j]) + offset[c + j] - static_cast<P>(static_cast<T>(target[c + j]));
      lanes[j] += d * d;
    }
  }
  for (int64_t j = 0; c < cols; ++c, ++j) {
    const double d = static_cast<P>(prediction[c]) + offset[c] - static_cast<P>(static_cast<T>(target[c]));
    lanes[j] += d * d;
  }
  for (int64_t half = 8; half; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

PHASEFAST_CLONES double squared(const float* a, const float* o, const float* t, int64_t n) {
  return miss(a, o, t, n);
}
PHASEFAST_CLONES double squared(const float* a, const float* o, const double* t, int64_t n) {
  return miss(a, o, t, n);
}
PHASEFAST_CLONES double squared(const float* a, const double* o, const float* t, int64_t n) {
  return miss(a, o, t, n);
}
PHASEFAST_CLONES double squared(const float* a, const double* o, const double* t, int64_t n) {
  return miss(a, o, t, n);
}
PHASEFAST_CLONES double squared(const double* a, const double* o, const float* t, int64_t n) {
  return miss(a, o, t, n);
}
PHASEFAST_CLONES double squared(const double* a, const double* o, const double* t, int64_t n) {
  return miss(a, o, t, n);
}

// One cell; T the type of weights and products, P that of predictions with their offset, S that of the targets.
template <typename T, typename P, typename S>
struct Cell {
  Tensor rows;
  Matrix<T> weights;
  std::vector<P> offset;
  Matrix<S> targets;
  const std::vector<int64_t>& edges;
  const std::vector<bool>& classes;
  Matrix<double> errors;
  Matrix<bool> hits;

  // Adds columns [left, right) of block j, which product holds, to the results of rows [start, stop).
  void reduce(const T* product, int64_t stride, int64_t start, int64_t stop, int64_t j, int64_t left, int64_t right,
              Best<P>* best) const {
    for (int64_t r = start; r < stop; ++r, product += stride) {
      const S* target = targets.data + r * targets.row_stride + left;
      errors.data[j * errors.row_stride + r] += squared(product, offset.data() + left, target, right - left);
      if (!classes[j]) continue;
      Best<P>& predicted = best[2 * (r - start)];
      Best<P>& expected = best[2 * (r - start) + 1];
      for (int64_t c = 0; c < right - left; ++c) {
        predicted.see(static_cast<P>(product[c]) + offset[left + c], left + c);
        expected.see(static_cast<T>(target[c]), left + c);
      }
    }
  }

  // All of rows [start, stop): columns strip by strip, each strip shared out among the blocks that it meets.
  void tile(int64_t start, int64_t stop, const Scratch<T>& wide, const Scratch<T>& scratch) const {
    const int64_t blocks = static_cast<int64_t>(classes.size());
    const int64_t height = stop - start;
    const Matrix<T> a = rows_as<T>(rows, start, stop, wide);
    std::vector<Best<P>> best(std::count(classes.begin(), classes.end(), true) ? 2 * height * blocks : 0);
    for (int64_t j = 0; j < blocks; ++j) std::fill_n(errors.data + j * errors.row_stride + start, height, 0.0);
    int64_t first = 0;
    for (int64_t left = edges.front(); left < edges.back(); left += kTileCols) {
      const int64_t cols = std::min(kTileCols, edges.back() - left);
      const Matrix<T> product = scratch.matrix(height, cols);
      multiply(product, a, weights.block(0, left, weights.rows, cols));
      while (edges[first + 1] <= left) ++first;
      for (int64_t j = first; j < blocks && edges[j] < left + cols; ++j) {
        const int64_t low = std::max(left, edges[j]);
        const int64_t high = std::min(left + cols, edges[j + 1]);
        if (low < high) {
          reduce(product.data + low - left, cols, start, stop, j, low, high, best.data() + 2 * height * j);
        }
      }
    }
    for (int64_t j = 0; j < blocks; ++j) {
      for (int64_t r = 0; r < height; ++r) {
        bool hit = false;
        if (classes[j]) {
          const Best<P>* pair = best.data() + 2 * (height * j + r);
          hit = pair[0].valid && pair[1].valid && pair[0].column == pair[1].column;
        }
        hits.data[j * hits.row_stride + start + r] = hit;
      }
    }
  }

  void run() const {
    const int64_t samples = rows.size(0);
    const int64_t height = std::clamp<int64_t>((samples / 8 + 31) / 32 * 32, 64, kTileRows);
    const int64_t work = 2 * height * weights.rows * weights.cols;
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(work, 1));
    torch::stable::parallel_for(0, (samples + height - 1) / height, grain, [&](int64_t begin, int64_t end) {
      const Scratch<T> wide(needs_conversion<T>(rows) ? height : 0, rows.size(1));
      const Scratch<T> scratch(height, kTileCols);
      for (int64_t i = begin; i < end; ++i) tile(i * height, std::min((i + 1) * height, samples), wide, scratch);
    });
  }
};

template <typename T>
std::vector<T> values_as(const Tensor& vector) {
  std::vector<T> out(vector.size(0));
  const int64_t stride = vector.stride(0);
  const bool wide = vector.scalar_type() == ScalarType::Double;
  const void* data = vector.data_ptr();
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t at = static_cast<int64_t>(i) * stride;
    out[i] = static_cast<T>(wide ? static_cast<const double*>(data)[at] : static_cast<const float*>(data)[at]);
  }
  return out;
}

void residual(const Tensors& rows, const Tensors& weights, const Tensors& offsets, const Tensor& targets,
              const std::vector<int64_t>& edges, const std::vector<bool>& classes, const Tensors& errors,
              const Tensors& hits) {
  check_residual(rows, weights, offsets, targets, edges, classes, errors, hits);
  const Tensor expected = targets.stride(1) == 1 ? targets : torch::stable::contiguous(targets);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto run = [&](auto product, auto prediction, auto target) {
      using T = decltype(product);
      using P = decltype(prediction);
      using S = decltype(target);
      Cell<T, P, S>{rows[i], matrix<T>(weights[i]),     values_as<P>(offsets[i]), matrix<S>(expected), edges,
                    classes, matrix<double>(errors[i]), matrix<bool>(hits[i])}
          .run();
    };
    const auto run_for = [&](auto product, auto prediction) {
      if (targets.scalar_type() == ScalarType::Double) {
        run(product, prediction, double());
      } else {
        run(product, prediction, float());
      }
    };
    if (weights[i].scalar_type() == ScalarType::Double) {
      run_for(double(), double());
    } else if (offsets[i].scalar_type() == ScalarType::Double) {
      run_for(float(), double());
    } else {
      run_for(float(), float());
    }
  }
}

}  // namespace
}  // namespace phasefast

STABLE_TORCH_LIBRARY_IMPL(phasefast, CPU, m) {
  m.impl("residual", TORCH_BOX(&phasefast::residual));
}
