// Predictions tile by tile: each tile is multiplied out, reduced while it is in cache, and forgotten.
#include "residual.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/products.h"

namespace phasefast {
namespace {

constexpr int64_t kTileRows = 256;
constexpr int64_t kTileCols = 512;
constexpr int64_t kGrain = 1 << 21;  // operations that are worth a thread
// Of a squared error: what products of split numbers may be expected to add to it, and the standard deviation that they
// may give it.
constexpr double kBias = 1e-6;
constexpr double kSpread = 1e-5;

bool worth_packing(const Tensor& rows, int64_t cols) {
  return products() != Products::kBlas && rows.scalar_type() != ScalarType::Double && rows.size(0) >= 256 &&
         rows.size(1) >= 64 && cols >= 32;
}

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

// Weights packed for products, and the squares that tell how far those of bfloat16 parts are from float32.
class PackedWeights {
 public:
  PackedWeights(const Matrix<float>& weights, const std::vector<int64_t>& edges, Formats formats)
      : depth_(weights.rows),
        blocks_(static_cast<int64_t>(edges.size()) - 1),
        formats_(formats),
        packed_(depth_, edges.back() - edges.front(), formats.right),
        squares_(formats.right == Format::kSplit ? depth_ * blocks_ : 0) {
    const int64_t cols = edges.back() - edges.front();
    const int64_t strips = (cols + kTileCols - 1) / kTileCols;
    torch::stable::parallel_for(0, spans(depth_) * strips, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / strips * kSpan;
        const int64_t col = i % strips * kTileCols;
        pack(weights.block(row, edges.front() + col, std::min(kSpan, depth_ - row), std::min(kTileCols, cols - col)),
             false, packed_.span(i / strips).block(col / kUnit));
      }
    });
    if (squares_.empty()) return;
    torch::stable::parallel_for(0, depth_, kSpan, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        for (int64_t j = 0; j < blocks_; ++j) squares_[k * blocks_ + j] = sum(weights, k, edges[j], edges[j + 1]);
      }
    });
  }

  // product = rows weights for columns from left on, counted from the first edge, a multiple of kUnit.
  void multiply(const PackedScratch& rows, int64_t left, const Matrix<float>& product) const {
    const ProductSession session;
    for (int64_t k = 0; k < depth_; k += kSpan) {
      multiply_span(rows.span(k / kSpan), packed_.span(k / kSpan).block(left / kUnit), std::min(kSpan, depth_ - k),
                    product, k > 0);
    }
  }

  Format left() const { return formats_.left; }
  bool exact() const { return squares_.empty(); }

  // What the parts left out are expected to add to the squared error of block j: each product's error is independent.
  double bias(const std::vector<double>& row_squares, int64_t j) const {
    double total = 0;
    for (int64_t k = 0; k < depth_; ++k) total += row_squares[k] * squares_[k * blocks_ + j];
    return kSplitError * kSplitError * total;
  }

 private:
  static double sum(const Matrix<float>& weights, int64_t k, int64_t start, int64_t stop) {
    double total = 0;
    const float* row = weights.data + k * weights.row_stride;
    for (int64_t c = start; c < stop; ++c) {
      const double w = row[c * weights.col_stride];
      total += w * w;
    }
    return total;
  }

  int64_t depth_, blocks_;
  Formats formats_;
  PackedScratch packed_;
  std::vector<double> squares_;
};

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

  // All of rows [start, stop): columns strip by strip, each strip shared out among the blocks that it meets. The
  // product of the rows and some columns of the weights is what predict(column, columns) returns.
  template <typename Predict>
  void tile(int64_t start, int64_t stop, const Predict& predict) const {
    const int64_t blocks = static_cast<int64_t>(classes.size());
    const int64_t height = stop - start;
    std::vector<Best<P>> best(std::count(classes.begin(), classes.end(), true) ? 2 * height * blocks : 0);
    for (int64_t j = 0; j < blocks; ++j) std::fill_n(errors.data + j * errors.row_stride + start, height, 0.0);
    int64_t first = 0;
    for (int64_t left = edges.front(); left < edges.back(); left += kTileCols) {
      const int64_t cols = std::min(kTileCols, edges.back() - left);
      const Matrix<T> product = predict(left, cols);
      while (edges[first + 1] <= left) ++first;
      for (int64_t j = first; j < blocks && edges[j] < left + cols; ++j) {
        const int64_t low = std::max(left, edges[j]);
        const int64_t high = std::min(left + cols, edges[j + 1]);
        if (low < high) {
          reduce(product.data + low - left, product.row_stride, start, stop, j, low, high,
                 best.data() + 2 * height * j);
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

  void tile_by_blas(int64_t start, int64_t stop, const Scratch<T>& wide, const Scratch<T>& scratch) const {
    const Matrix<T> a = rows_as<T>(rows, start, stop, wide);
    tile(start, stop, [&](int64_t left, int64_t cols) {
      const Matrix<T> product = scratch.matrix(stop - start, cols);
      multiply(product, a, weights.block(0, left, weights.rows, cols));
      return product;
    });
  }

  // False where the result may not be as good as float32's: where the error is next to nothing, or not finite.
  bool tile_packed(int64_t start, int64_t stop, const PackedWeights& packed, const PackedScratch& left_operand,
                   const ProductScratch& scratch) const {
    with_data(rows, [&](auto* data) {
      using X = std::remove_pointer_t<decltype(data)>;
      const Matrix<X> a = matrix<X>(rows).block(start, 0, stop - start, weights.rows);
      for (int64_t k = 0; k < a.cols; k += kSpan) {
        pack_rows(a.block(0, k, a.rows, std::min(kSpan, a.cols - k)), left_operand.span(k / kSpan));
      }
    });
    tile(start, stop, [&](int64_t left, int64_t cols) {
      const Matrix<float> product = scratch.matrix(stop - start, cols);
      packed.multiply(left_operand, left - edges.front(), product);
      return product;
    });
    return packed.exact() || split_is_enough(start, stop, packed);
  }

  bool split_is_enough(int64_t start, int64_t stop, const PackedWeights& packed) const {
    std::vector<double> squares(weights.rows);
    with_data(rows, [&](auto* data) {
      const auto a = matrix<std::remove_pointer_t<decltype(data)>>(rows);
      for (int64_t r = start; r < stop; ++r) {
        for (int64_t k = 0; k < a.cols; ++k) {
          const double value = widen(a.data[r * a.row_stride + k * a.col_stride]);
          squares[k] += value * value;
        }
      }
    });
    for (int64_t j = 0; j < errors.rows; ++j) {
      const double* error = errors.data + j * errors.row_stride;
      const double total = std::accumulate(error + start, error + stop, 0.0);
      // Errors of the n predictions that are independent, of mean square bias / n, move the sum by 2 sqrt(bias total /
      // n).
      const double count = static_cast<double>((stop - start) * (edges[j + 1] - edges[j]));
      if (!(packed.bias(squares, j) <= std::min(kBias, kSpread * kSpread / 4 * count) * total)) return false;
    }
    return true;
  }

  void run() const {
    const int64_t samples = rows.size(0);
    const auto height_of = [&](int64_t tiles) {
      return std::clamp<int64_t>((samples / tiles + 31) / 32 * 32, 64, kTileRows);
    };
    if constexpr (std::is_same_v<T, float>) {
      if (worth_packing(rows, edges.back() - edges.front())) {
        const PackedWeights packed(weights, edges, formats_of(rows.scalar_type(), ScalarType::Float));
        // About two for each thread: exact products have the same bits in tiles of any height.
        const int64_t tiles = packed.exact() ? std::max<int64_t>(8, 2 * torch::stable::get_num_threads()) : 8;
        const int64_t height = height_of(tiles);
        const auto make = [&] {
          return std::pair<PackedScratch, ProductScratch>{{weights.rows, height, packed.left()}, {height, kTileCols}};
        };
        share_out((samples + height - 1) / height, make, [&](int64_t i, const auto& scratch) {
          const int64_t start = i * height;
          const int64_t stop = std::min(start + height, samples);
          if (tile_packed(start, stop, packed, scratch.first, scratch.second)) return;
          tile_by_blas(start, stop, Scratch<T>(needs_conversion<T>(rows) ? height : 0, rows.size(1)),
                       Scratch<T>(height, kTileCols));
        });
        return;
      }
    }
    const int64_t height = height_of(8);
    const int64_t count = (samples + height - 1) / height;
    const int64_t work = 2 * height * weights.rows * weights.cols;
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(work, 1));
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      const Scratch<T> wide(needs_conversion<T>(rows) ? height : 0, rows.size(1));
      const Scratch<T> scratch(height, kTileCols);
      for (int64_t i = begin; i < end; ++i)
        tile_by_blas(i * height, std::min((i + 1) * height, samples), wide, scratch);
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
