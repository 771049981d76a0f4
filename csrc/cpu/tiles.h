// Products of bfloat16 tiles (Intel AMX) that are as good as float32: a float32 number is the sum of two bfloat16
// parts, high and low, to 16 bits, and high high + high low + low high are summed in float32 (Henry, Tang and Heinecke
// 2019, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations"). What is left
// out is about 2^-17 of a product, of either sign, and averages out over long sums. bfloat16 numbers are one part.
// Numbers below 2^-126, parts included, count as zero.
#pragma once

#include <atomic>
#include <optional>

#include "cpu/pack.h"

namespace phasefast {

// Of a product of float32 numbers in two parts each: standard deviation of what is left out.
constexpr double kSplitError = 0.6 / (1 << 17);

#ifdef PHASEFAST_AMX

// Tiles of this thread, all of 16 rows of 64 bytes, while the object lives. Plain "m" operands: the compiler's own
// intrinsics do not say which memory they read.
class TileSession {
 public:
  PHASEFAST_TARGET TileSession() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  PHASEFAST_TARGET ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

// out [32, 32] (+)= one column block of left times one of right, over some steps; with kLow the product of the low
// parts is not left out. The tiles round after every addition, so they sum a span alone, and what they sum is added to
// the other spans' sums afterwards: rounding grows with the root of the number of additions in a row (Higham, Accuracy
// and Stability of Numerical Algorithms, ch. 4: blocked summation).
template <int kLeft, int kRight, bool kLow = false>
PHASEFAST_TARGET __attribute__((noinline)) void multiply_units(const char* left, const char* right, int64_t steps,
                                                               float* out, int64_t stride, bool add) {
  constexpr int64_t kHalf = 64;
  alignas(64) float own[kUnit * kUnit];
  float* const sum = add ? own : out;
  const int64_t sum_stride = add ? kUnit : stride;
  __asm__ volatile("" ::: "memory");  // the intrinsics do not say which memory they read and write
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
#define PHASEFAST_PRODUCTS \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7)
  for (int64_t s = 0; s < steps; ++s, left += 2 * kLeft * kTileBytes, right += 2 * kRight * kTileBytes) {
    _tile_loadd(4, left, kHalf);
    _tile_loadd(5, left + kTileBytes, kHalf);
    if constexpr (kRight == 2) {
      _tile_loadd(6, right + 2 * kTileBytes, kHalf);
      _tile_loadd(7, right + 3 * kTileBytes, kHalf);
      PHASEFAST_PRODUCTS;
    }
    _tile_loadd(6, right, kHalf);
    _tile_loadd(7, right + kTileBytes, kHalf);
    PHASEFAST_PRODUCTS;
    if constexpr (kLeft == 2) {
      _tile_loadd(4, left + 2 * kTileBytes, kHalf);
      _tile_loadd(5, left + 3 * kTileBytes, kHalf);
      PHASEFAST_PRODUCTS;
    }
    if constexpr (kLow) {
      _tile_loadd(6, right + 2 * kTileBytes, kHalf);
      _tile_loadd(7, right + 3 * kTileBytes, kHalf);
      PHASEFAST_PRODUCTS;
    }
  }
#undef PHASEFAST_PRODUCTS
  _tile_stored(0, sum, 4 * sum_stride);
  _tile_stored(1, sum + 16, 4 * sum_stride);
  _tile_stored(2, sum + 16 * sum_stride, 4 * sum_stride);
  _tile_stored(3, sum + 16 * sum_stride + 16, 4 * sum_stride);
  __asm__ volatile("" ::: "memory");
  for (int64_t r = 0; add && r < kUnit; ++r) {
    float* to = out + r * stride;
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_load_ps(own + r * kUnit)));
    _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), _mm512_load_ps(own + r * kUnit + 16)));
  }
}

#else  // never used: tiles_available() is false

struct TileSession {
  TileSession() {}
};
template <int kLeft, int kRight, bool kLow = false>
void multiply_units(const char*, const char*, int64_t, float*, int64_t, bool) {}

#endif

// out (+)= left right over a span of that depth, block by block. Of a Gram matrix, which is given by its diagonal,
// blocks above that are left out, j > i + diagonal, but not the product of the low parts: without it the matrix may
// have negative eigenvalues, with it the matrix is that of numbers of 16 bits.
inline void multiply_span(const Packed& left, const Packed& right, int64_t depth, const Matrix<float>& out, bool add,
                          std::optional<int64_t> diagonal = std::nullopt) {
  auto multiply_pair = left.parts == 1 ? (right.parts == 1 ? multiply_units<1, 1> : multiply_units<1, 2>)
                                       : (right.parts == 1 ? multiply_units<2, 1> : multiply_units<2, 2>);
  if (diagonal && left.parts == 2) multiply_pair = multiply_units<2, 2, true>;
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
