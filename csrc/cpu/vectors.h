// Products of vectors of 8 (AVX2) or 16 float32, and of pairs of bfloat16 (AVX512_BF16), which are summed in float32. A
// block of the result stays in registers over a span (Goto and van de Geijn 2008, "Anatomy of high-performance matrix
// multiplication"). Pairs count numbers below 2^-126 as zero.
#pragma once

#include "cpu/pack.h"

namespace phasefast {

#ifdef PHASEFAST_X86

// out [32, 32] (+)= one column block of left times one of right, over some steps; kPairs: of bfloat16 numbers, which
// lie as the tiles want them.
template <bool kPairs>
PHASEFAST_TARGET __attribute__((noinline)) void multiply_avx512(const char* left, const char* right, int64_t steps,
                                                                float* out, int64_t stride, bool add) {
  constexpr int kRows = 8;  // with two vectors of columns: 16 sums, enough to hide the latency of one
  constexpr int64_t kDepth = kPairs ? 16 : 32;
  constexpr int64_t kLeftRow = kPairs ? 64 : 4;
  constexpr int64_t kLeftStep = kPairs ? 4 : 128;
  constexpr int64_t kRightHigh = kPairs ? kTileBytes : 64;
  constexpr int64_t kRightStep = kPairs ? 64 : 128;
  constexpr int64_t kBytes = (kPairs ? 2 : 4) * kTileBytes;  // of a unit
  for (int64_t row = 0; row < kUnit; row += kRows, left += kRows * kLeftRow) {
    __m512 sum[kRows][2];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (int64_t s = 0; s < steps; ++s) {
      const char* a = left + s * kBytes;
      const char* b = right + s * kBytes;
      for (int64_t k = 0; k < kDepth; ++k, a += kLeftStep, b += kRightStep) {
        const __m512 low = _mm512_load_ps(b);
        const __m512 high = _mm512_load_ps(b + kRightHigh);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const __m512 each = _mm512_set1_ps(*reinterpret_cast<const float*>(a + i * kLeftRow));
          if constexpr (kPairs) {
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], reinterpret_cast<__m512bh>(each), reinterpret_cast<__m512bh>(low));
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], reinterpret_cast<__m512bh>(each), reinterpret_cast<__m512bh>(high));
          } else {
            sum[i][0] = _mm512_fmadd_ps(each, low, sum[i][0]);
            sum[i][1] = _mm512_fmadd_ps(each, high, sum[i][1]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      float* to = out + (row + i) * stride;
      _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sum[i][0]) : sum[i][0]);
      _mm512_storeu_ps(to + 16, add ? _mm512_add_ps(_mm512_loadu_ps(to + 16), sum[i][1]) : sum[i][1]);
    }
  }
}

#define PHASEFAST_AVX2 __attribute__((target("avx2,fma")))

// The same of float32, kRows x 16 columns of them: at most 12 of the 16 registers for sums.
template <int kRows>
PHASEFAST_AVX2 inline void multiply_rows(const float* left, const float* right, int64_t depth, float* out,
                                         int64_t stride, bool add) {
  __m256 sum[kRows][2];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < depth; ++k, left += kUnit, right += kUnit) {
    const __m256 low = _mm256_load_ps(right);
    const __m256 high = _mm256_load_ps(right + 8);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const __m256 each = _mm256_broadcast_ss(left + i);
      sum[i][0] = _mm256_fmadd_ps(each, low, sum[i][0]);
      sum[i][1] = _mm256_fmadd_ps(each, high, sum[i][1]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    float* to = out + i * stride;
    _mm256_storeu_ps(to, add ? _mm256_add_ps(_mm256_loadu_ps(to), sum[i][0]) : sum[i][0]);
    _mm256_storeu_ps(to + 8, add ? _mm256_add_ps(_mm256_loadu_ps(to + 8), sum[i][1]) : sum[i][1]);
  }
}

PHASEFAST_AVX2 inline void multiply_avx2(const char* left, const char* right, int64_t steps, float* out, int64_t stride,
                                         bool add) {
  const float* a = reinterpret_cast<const float*>(left);
  const float* b = reinterpret_cast<const float*>(right);
  for (int64_t col = 0; col < kUnit; col += 16) {
    int64_t row = 0;
    for (; row < 24; row += 6) {
      multiply_rows<6>(a + row, b + col, steps * kUnit, out + row * stride + col, stride, add);
    }
    for (; row < kUnit; row += 4) {
      multiply_rows<4>(a + row, b + col, steps * kUnit, out + row * stride + col, stride, add);
    }
  }
}

inline auto vector_product(Format format) {
  if (format == Format::kBFloat16) return multiply_avx512<true>;
  return products() == Products::kAvx512 ? multiply_avx512<false> : multiply_avx2;
}

#else  // never used: products() is kBlas

inline auto vector_product(Format) {
  return +[](const char*, const char*, int64_t, float*, int64_t, bool) {};
}

#endif

}  // namespace phasefast
