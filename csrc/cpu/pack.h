// Operands of products of blocks: float32 numbers, or one or two bfloat16 parts of them, in the order in which vectors
// and tiles want them.
#pragma once

#include "cpu/cpu.h"
#include "cpu/processor.h"

#ifdef PHASEFAST_X86
#include <immintrin.h>
#define PHASEFAST_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")))
#endif

namespace phasefast {

enum class Format { kFloat32, kBFloat16, kSplit };

// Those of a product's factors.
struct Formats {
  Format left, right;
};

inline Formats formats_of(ScalarType left, ScalarType right) {
  const bool narrow = left == ScalarType::BFloat16 && right == ScalarType::BFloat16;
  const auto of_tiles = [](ScalarType type) {
    return type == ScalarType::BFloat16 ? Format::kBFloat16 : Format::kSplit;
  };
  if (products() == Products::kAmx) return {of_tiles(left), of_tiles(right)};
  return narrow && bfloat16_is_fast() ? Formats{Format::kBFloat16, Format::kBFloat16}
                                      : Formats{Format::kFloat32, Format::kFloat32};
}

// A unit is 32 columns by 32 of the summed index: float32 rows of 32 columns, or two tiles of 16 rows of 64 bytes for
// each part. A span is the units whose left operand stays in the first-level cache while columns go by.
constexpr int64_t kUnit = 32;
constexpr int64_t kTileBytes = 1024;
constexpr int64_t kSteps = 8;  // units of a span
constexpr int64_t kSpan = kSteps * kUnit;

inline int64_t units(int64_t count) {
  return (count + kUnit - 1) / kUnit;
}
inline int64_t spans(int64_t depth) {
  return (depth + kSpan - 1) / kSpan;
}

// One span of a packed operand, a block of 32 columns after the other.
struct Packed {
  char* data;
  Format format;

  int64_t unit_bytes() const { return (format == Format::kBFloat16 ? 2 : 4) * kTileBytes; }
  // A line is left free between blocks, so that they do not meet in the same sets of a cache.
  int64_t stride() const { return kSteps * unit_bytes() + 64; }
  Packed block(int64_t index) const { return {data + index * stride(), format}; }
};

// Memory for a packed operand of some spans, aligned to cache lines.
class PackedScratch {
 public:
  PackedScratch(int64_t depth, int64_t cols, Format format)
      : format_(format), bytes_(units(cols) * Packed{nullptr, format}.stride()), memory_(spans(depth) * bytes_ / 4) {}
  Packed span(int64_t index) const { return {reinterpret_cast<char*>(memory_.data()) + index * bytes_, format_}; }

 private:
  Format format_;
  int64_t bytes_;
  LineScratch memory_;
};

#ifdef PHASEFAST_X86
#pragma GCC diagnostic push  // false alarms in gcc 12's own headers (gcc bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// 16 pairs of numbers as pairs of bfloat16 parts.
struct Pairs {
  __m512i high, low;
};

// Two rows of 16 float32, rounded to nearest and laid side by side.
PHASEFAST_TARGET inline __m512i interleaved(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even)));
}

PHASEFAST_TARGET inline Pairs split(__m512 even, __m512 odd) {
  const __m512i high = interleaved(even, odd);
  const __m512 even_high = _mm512_castsi512_ps(_mm512_slli_epi32(high, 16));
  const __m512 odd_high = _mm512_castsi512_ps(_mm512_and_si512(high, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  return {high, interleaved(_mm512_sub_ps(even, even_high), _mm512_sub_ps(odd, odd_high))};
}

PHASEFAST_TARGET inline __m512 load16(const float* from) {
  return _mm512_loadu_ps(from);
}
PHASEFAST_TARGET inline __m512 load16(const double* from) {
  const __m256 low = _mm512_cvtpd_ps(_mm512_loadu_pd(from));
  const __m256 high = _mm512_cvtpd_ps(_mm512_loadu_pd(from + 8));
  return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(low)), _mm256_castps_pd(high), 1));
}
PHASEFAST_TARGET inline __m512 load16(const Half* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
PHASEFAST_TARGET inline __m512 widened(__m256i bfloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16));
}
PHASEFAST_TARGET inline __m512 load16(const BFloat16* from) {
  return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Numbers from, from + stride, ... as float32; zero from the count-th on.
template <typename X>
PHASEFAST_TARGET inline __m512 load_some(const X* from, int64_t stride, int64_t count) {
  if (stride == 1 && count >= 16) return load16(from);
  alignas(64) float out[16] = {};
  for (int64_t i = 0; i < std::min<int64_t>(count, 16); ++i) out[i] = static_cast<float>(widen(from[i * stride]));
  return _mm512_load_ps(out);
}

// Transposes a tile of 16 x 16 pairs in place.
PHASEFAST_TARGET inline void transpose(char* tile) {
  __m512i r[16];
  __m512i t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(tile + 64 * i);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    const __m512i d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    _mm512_store_si512(tile + 64 * i, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_store_si512(tile + 64 * (4 + i), _mm512_shuffle_i32x4(c, d, 0x88));
    _mm512_store_si512(tile + 64 * (8 + i), _mm512_shuffle_i32x4(a, b, 0xdd));
    _mm512_store_si512(tile + 64 * (12 + i), _mm512_shuffle_i32x4(c, d, 0xdd));
  }
}

// Packs a [depth, cols] matrix that is summed over depth <= kSteps kUnit, zeros beyond its edges: as a right operand,
// whose tiles have rows of pairs (2k, 2k + 1) for 16 columns, or as a left one, whose tiles are those transposed.
template <typename X, int kParts>
PHASEFAST_TARGET void pack_units(const Matrix<X> from, bool left, const Packed out) {
  constexpr int64_t kAhead = 8;  // rows: each lies on a page of its own, where hardware does not look ahead
  const int64_t stride = out.stride();
  const auto put = [](char* tile, __m512 even, __m512 odd) PHASEFAST_TARGET {
    if constexpr (kParts == 1) {
      _mm512_store_si512(tile, interleaved(even, odd));
    } else {
      const Pairs pairs = split(even, odd);
      _mm512_store_si512(tile, pairs.high);
      _mm512_store_si512(tile + 2 * kTileBytes, pairs.low);
    }
  };
  for (int64_t k = 0; k < kUnit * units(from.rows); k += 2) {
    const X* even = from.data + k * from.row_stride;
    const X* odd = even + from.row_stride;
    char* to = out.data + (k >> 5) * out.unit_bytes() + (k & 31) * 32;
    int64_t c = 0;
    if (from.col_stride == 1 && k + 1 < from.rows) {
      const int64_t ahead = k + kAhead + 1 < from.rows ? kAhead * from.row_stride : 0;
      for (; c + 16 <= from.cols; c += 16) {
        _mm_prefetch(reinterpret_cast<const char*>(even + ahead + c), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(odd + ahead + c), _MM_HINT_T0);
        put(to + (c >> 5) * stride + (c & 16) * 64, load16(even + c), load16(odd + c));
      }
    }
    for (; c < kUnit * units(from.cols); c += 16) {
      const __m512 first = load_some(even + c * from.col_stride, from.col_stride, k < from.rows ? from.cols - c : 0);
      const __m512 second =
          load_some(odd + c * from.col_stride, from.col_stride, k + 1 < from.rows ? from.cols - c : 0);
      put(to + (c >> 5) * stride + (c & 16) * 64, first, second);
    }
  }
  for (int64_t b = 0; left && b < units(from.cols); ++b) {
    for (int64_t t = 0; t < 2 * kParts * units(from.rows); ++t) transpose(out.data + b * stride + t * kTileBytes);
  }
}

// Packs [cols, depth] rows as a left operand: pairs lie side by side already.
template <typename X>
PHASEFAST_TARGET void pack_row_units(const Matrix<X> from, const Packed out) {
  for (int64_t r = 0; r < kUnit * units(from.rows); ++r) {
    char* to = out.data + r / kUnit * out.stride() + r % kUnit * 64;  // rows 16 to 31 lie in the second tile
    for (int64_t k = 0; k < from.cols; k += kUnit, to += out.unit_bytes()) {
      const X* at = from.data + r * from.row_stride + k * from.col_stride;
      const int64_t width = r < from.rows ? from.cols - k : 0;
      const __m512 low = load_some(at, from.col_stride, width);
      const __m512 high = load_some(at + 16 * from.col_stride, from.col_stride, width - 16);
      const __m512i rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
      _mm512_store_si512(to, rounded);
      if (out.format == Format::kBFloat16) continue;
      const __m512 low_rest = _mm512_sub_ps(low, widened(_mm512_castsi512_si256(rounded)));
      const __m512 high_rest = _mm512_sub_ps(high, widened(_mm512_extracti64x4_epi64(rounded, 1)));
      _mm512_store_si512(to + 2 * kTileBytes, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high_rest, low_rest)));
    }
  }
}

// Packs [cols, depth] rows as a left operand of float32: blocks of 16 x 16 numbers are transposed.
template <typename X>
PHASEFAST_TARGET void pack_row_vectors(const Matrix<X> from, const Packed out) {
  alignas(64) char tile[kTileBytes];
  for (int64_t r = 0; r < kUnit * units(from.rows); r += 16) {
    char* to = out.block(r / kUnit).data + r % kUnit * 4;
    for (int64_t k = 0; k < kUnit * units(from.cols); k += 16, to += 16 * kUnit * 4) {
      for (int64_t i = 0; i < 16; ++i) {
        const X* at = from.data + (r + i) * from.row_stride + k * from.col_stride;
        _mm512_store_ps(tile + 64 * i, load_some(at, from.col_stride, r + i < from.rows ? from.cols - k : 0));
      }
      transpose(tile);
      for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(to + i * kUnit * 4, _mm512_load_si512(tile + 64 * i));
    }
  }
}

#pragma GCC diagnostic pop
#endif

// Packs a [depth, cols] matrix as float32 rows of 32 columns, zeros beyond its edges.
template <typename X>
void pack_floats(const Matrix<X>& from, const Packed& out) {
  constexpr int64_t kAhead = 8;  // rows: each lies on a page of its own, where hardware does not look ahead
  const int64_t wide = from.col_stride == 1 ? from.cols / kUnit * kUnit : 0;
  for (int64_t k = 0; k < kUnit * units(from.rows); ++k) {
    const int64_t cols = k < from.rows ? from.cols : 0;
    const X* row = from.data + k * from.row_stride;
    const int64_t ahead = k + kAhead < from.rows ? kAhead * from.row_stride : 0;
    for (int64_t c = 0; c < from.cols; c += kUnit) {
      float* to = reinterpret_cast<float*>(out.block(c / kUnit).data) + k * kUnit;
      if (c < std::min(wide, cols)) {
        for (int64_t j = 0; j < kUnit; j += 64 / sizeof(X)) __builtin_prefetch(row + ahead + c + j);
        for (int64_t j = 0; j < kUnit; ++j) to[j] = static_cast<float>(widen(row[c + j]));
      } else {
        for (int64_t j = 0; j < kUnit; ++j) {
          to[j] = c + j < cols ? static_cast<float>(widen(row[(c + j) * from.col_stride])) : 0.0F;
        }
      }
    }
  }
}

// Packs a [depth, cols] matrix, depth at most a span, as a left or a right operand.
template <typename X>
void pack(const Matrix<X>& from, [[maybe_unused]] bool left, const Packed& out) {
#ifdef PHASEFAST_X86
  if (out.format == Format::kBFloat16) return pack_units<X, 1>(from, left, out);
  if (out.format == Format::kSplit) return pack_units<X, 2>(from, left, out);
#endif
  pack_floats(from, out);
}

// Packs [cols, depth] rows as a left operand, depth at most a span.
template <typename X>
void pack_rows(const Matrix<X>& from, const Packed& out) {
#ifdef PHASEFAST_X86
  if (out.format != Format::kFloat32) return pack_row_units(from, out);
  if (products() == Products::kAvx512) return pack_row_vectors(from, out);
#endif
  pack_floats(from.transposed(), out);
}

}  // namespace phasefast
