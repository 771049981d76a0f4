// Products of bfloat16 tiles (Intel AMX) that are as good as float32: a float32 number is the sum of two bfloat16
// parts, high and low, to 16 bits, and high high + high low + low high are summed in float32 (Henry, Tang and Heinecke
// 2019, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations"). What is left
// out is about 2^-17 of a product, of either sign, and averages out over long sums. bfloat16 numbers are one part.
// Numbers below 2^-126, parts included, count as zero.
#pragma once

#include "cpu/pack.h"

namespace phasefast {

// Of a product of float32 numbers in two parts each: standard deviation of what is left out.
constexpr double kSplitError = 0.6 / (1 << 17);

#ifdef PHASEFAST_X86

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

#else  // never used: products() is not kAmx

struct TileSession {
  TileSession() {}
};
template <int kLeft, int kRight, bool kLow = false>
void multiply_units(const char*, const char*, int64_t, float*, int64_t, bool) {}

#endif

inline auto tile_product(Format left, Format right, bool with_low) {
  const bool one = left == Format::kBFloat16;
  if (right == Format::kBFloat16) return one ? multiply_units<1, 1> : multiply_units<2, 1>;
  if (one) return multiply_units<1, 2>;
  return with_low ? multiply_units<2, 2, true> : multiply_units<2, 2>;
}

}  // namespace phasefast
