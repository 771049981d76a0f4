// Products of packed operands, whichever way this processor multiplies them best.
#pragma once

#include <atomic>
#include <optional>

#include "cpu/tiles.h"
#include "cpu/vectors.h"

namespace phasefast {

// What a thread holds while it multiplies: its tiles, where there are any.
class ProductSession {
 public:
  ProductSession() {
    if (products() == Products::kAmx) tiles_.emplace();
  }

 private:
  std::optional<TileSession> tiles_;
};

// out (+)= left right over a span of that depth, block by block. Of a Gram matrix, which is given by its diagonal,
// blocks above that are left out, j > i + diagonal, but not the product of the low parts: without it the matrix may
// have negative eigenvalues, with it the matrix is that of numbers of 16 bits.
inline void multiply_span(const Packed& left, const Packed& right, int64_t depth, const Matrix<float>& out, bool add,
                          std::optional<int64_t> diagonal = std::nullopt) {
  const auto multiply_pair = products() == Products::kAmx
                                 ? tile_product(left.format, right.format, diagonal.has_value())
                                 : vector_product(left.format);
  const int64_t cols = units(out.cols);
  for (int64_t i = 0; i < units(out.rows); ++i) {
    for (int64_t j = 0; j < (diagonal ? std::min(cols, i + *diagonal + 1) : cols); ++j) {
      multiply_pair(left.block(i).data, right.block(j).data, units(depth), out.data + kUnit * (i * out.row_stride + j),
                    out.row_stride, add);
    }
  }
}

// Tasks taken one after the other by as many threads as there are, each with scratch of its own.
template <typename Make, typename Run>
void share_out(int64_t tasks, const Make& make, const Run& run) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const auto scratch = make();
    for (int64_t task = next++; task < tasks; task = next++) run(task, scratch);
  });
}

// Memory for a float32 product in whole units. The rows' distance is no power of two, so that they do not meet in the
// same sets of a cache.
class ProductScratch {
 public:
  ProductScratch(int64_t rows, int64_t cols)
      : stride_(kUnit * units(cols) + 16), memory_(kUnit * units(rows), stride_) {}
  Matrix<float> matrix(int64_t rows, int64_t cols) const { return {memory_.data(), rows, cols, stride_, 1}; }

 private:
  int64_t stride_;
  Scratch<float> memory_;
};

}  // namespace phasefast
