// Cholesky factor and substitution of a float32 system, small enough for one core's caches, straight from registers: no
// packing, no inverted blocks, no calls. With the factor upper triangular and row-major, all three steps are one
// kernel: 8 rows of 16 or 32 columns, less what the rows before (or after) them take away, solved against their
// diagonal block. Up-looking, a strip of columns after the other (Golub and Van Loan, Matrix Computations, ch. 4.2), so
// that only the multipliers come from beyond the first-level cache.
#pragma once

#include <cmath>

#include "cpu/pack.h"

namespace phasefast {

#ifdef PHASEFAST_X86

class SmallCholesky {
 public:
  static constexpr int64_t kRows = 8;

  // Takes the lower triangle of gram + penalty I, scaled by inverse_scale on both sides; 1 on a diagonal without scale.
  SmallCholesky(const Matrix<float>& gram, float penalty, const float* inverse_scale)
      : width_(gram.rows),
        height_((width_ + kRows - 1) / kRows * kRows),
        stride_(row_length<float>(units(width_) * kUnit)),
        reciprocals_(height_),
        memory_(units(width_) * kUnit * stride_),
        u_(memory_.data()) {
    take(gram, inverse_scale);
    for (int64_t r = 0; r < height_; ++r) {
      const float own = r < width_ ? gram.data[r * (gram.row_stride + 1)] + penalty : 0;
      u_[r * stride_ + r] = own == 0 ? 1 : own * inverse_scale[r] * inverse_scale[r];
    }
  }

  // 0, or the order of the minor that failed.
  int32_t factorise() {
    for (int64_t left = 0; left < width_; left += kUnit) {
      for (int64_t row = 0; row < std::min(height_, left + kUnit); row += kRows) {
        if (row < left) {
          forward<2>(u_ + left, stride_, row);
        } else if (const int64_t failed = diagonal(left, row)) {
          return static_cast<int32_t>(failed);
        }
      }
    }
    return 0;
  }

  // weights = scale (factor' factor)^-1 scale cross
  void substitute(const Matrix<float>& cross, const float* inverse_scale, const Matrix<float>& weights) const {
    torch::stable::parallel_for(0, units(cross.cols), 1, [&](int64_t begin, int64_t end) {
      const LineScratch memory(height_ * kUnit);
      float* y = memory.data();
      for (int64_t i = begin; i < end; ++i) {
        const int64_t cols = std::min(kUnit, cross.cols - i * kUnit);
        const Matrix<float> from = cross.block(0, i * kUnit, width_, cols);
        const Matrix<float> to = weights.block(0, i * kUnit, width_, cols);
        for (int64_t r = 0; r < height_; ++r) {
          for (int64_t c = 0; c < kUnit; ++c) {
            const bool there = r < width_ && c < cols;
            y[r * kUnit + c] = there ? from.data[r * from.row_stride + c * from.col_stride] * inverse_scale[r] : 0.0F;
          }
        }
        if (cols > 16) {
          solve<2>(y);
        } else {
          solve<1>(y);
        }
        for (int64_t r = 0; r < width_; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            to.data[r * to.row_stride + c * to.col_stride] = y[r * kUnit + c] * inverse_scale[r];
          }
        }
      }
    });
  }

  // The lower triangle of the factor of the scaled matrix.
  void put(const Matrix<float>& out) const {
    for (int64_t r = 0; r < width_; ++r) {
      for (int64_t c = 0; c <= r; ++c) out.data[r * out.row_stride + c * out.col_stride] = u_[c * stride_ + r];
    }
  }

 private:
  template <int kVectors>
  using Sums = __m512[kRows][kVectors];

  PHASEFAST_TARGET void take(const Matrix<float>& gram, const float* inverse_scale) {
    alignas(64) char tile[kTileBytes];
    alignas(64) float scale[16] = {};
    for (int64_t r = 0; r < units(width_) * kUnit; r += 16) {
      for (int64_t i = 0; i < 16; ++i) scale[i] = r + i < width_ ? inverse_scale[r + i] : 0.0F;
      for (int64_t c = 0; c <= r; c += 16) {
        for (int64_t i = 0; i < 16; ++i) {
          // What is above the diagonal may be anything.
          const int64_t count = r + i < width_ ? r + i + 1 - c : 0;
          const float* from = gram.data + (r + i) * gram.row_stride + c;
          _mm512_store_ps(tile + 64 * i, count > 0 ? _mm512_maskz_loadu_ps(mask(count), from) : _mm512_setzero_ps());
        }
        transpose(tile);
        for (int64_t i = 0; i < 16; ++i) {
          const __m512 factor = _mm512_set1_ps(c + i < width_ ? inverse_scale[c + i] : 0.0F);
          const __m512 scaled =
              _mm512_mul_ps(_mm512_mul_ps(_mm512_load_ps(tile + 64 * i), factor), _mm512_load_ps(scale));
          _mm512_store_ps(u_ + (c + i) * stride_ + r, scaled);
        }
      }
      for (int64_t c = r + 16; c < units(r + 16) * kUnit; ++c) {  // beside the diagonal block, in its strip
        _mm512_store_ps(u_ + c * stride_ + r, _mm512_setzero_ps());
      }
    }
  }

  static __mmask16 mask(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1); }

  // sum[i] -= u[i row_step + k step] strip[k stride] for k < count
  template <int kVectors>
  PHASEFAST_TARGET static inline __attribute__((always_inline)) void reduce(Sums<kVectors>& sum, const float* u,
                                                                            int64_t row_step, int64_t step,
                                                                            const float* strip, int64_t stride,
                                                                            int64_t count) {
    for (int64_t k = 0; k < count; ++k, u += step, strip += stride) {
      __m512 row[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) row[v] = _mm512_load_ps(strip + 16 * v);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const __m512 each = _mm512_set1_ps(u[i * row_step]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_fnmadd_ps(each, row[v], sum[i][v]);
      }
    }
  }

  template <int kVectors>
  PHASEFAST_TARGET static inline __attribute__((always_inline)) void load(Sums<kVectors>& sum, const float* strip,
                                                                          int64_t stride) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_load_ps(strip + i * stride + 16 * v);
    }
  }

  template <int kVectors>
  PHASEFAST_TARGET static inline __attribute__((always_inline)) void store(const Sums<kVectors>& sum, float* strip,
                                                                           int64_t stride) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) _mm512_store_ps(strip + i * stride + 16 * v, sum[i][v]);
    }
  }

  // Against the diagonal block of rows from row on: its transpose, or itself.
  template <int kVectors, bool kBackward>
  PHASEFAST_TARGET inline __attribute__((always_inline)) void against_diagonal(Sums<kVectors>& sum, int64_t row) const {
    const float* block = u_ + row * stride_ + row;
#pragma GCC unroll 8
    for (int step = 0; step < kRows; ++step) {
      const int i = kBackward ? kRows - 1 - step : step;
      const __m512 reciprocal = _mm512_set1_ps(reciprocals_[row + i]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_mul_ps(sum[i][v], reciprocal);
#pragma GCC unroll 8
      for (int other = kBackward ? 0 : i + 1; other < (kBackward ? i : kRows); ++other) {
        const __m512 each = _mm512_set1_ps(kBackward ? block[other * stride_ + i] : block[i * stride_ + other]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[other][v] = _mm512_fnmadd_ps(each, sum[i][v], sum[other][v]);
      }
    }
  }

  // Rows from row on of a strip, which has those before them.
  template <int kVectors>
  PHASEFAST_TARGET __attribute__((noinline)) void forward(float* strip, int64_t stride, int64_t row) const {
    Sums<kVectors> sum;
    load<kVectors>(sum, strip + row * stride, stride);
    reduce<kVectors>(sum, u_ + row, 1, stride_, strip, stride, row);
    against_diagonal<kVectors, false>(sum, row);
    store<kVectors>(sum, strip + row * stride, stride);
  }

  // Rows from row on of a strip, which has those after them.
  template <int kVectors>
  PHASEFAST_TARGET __attribute__((noinline)) void backward(float* strip, int64_t row) const {
    const int64_t after = row + kRows;
    Sums<kVectors> sum;
    load<kVectors>(sum, strip + row * kUnit, kUnit);
    reduce<kVectors>(sum, u_ + row * stride_ + after, stride_, 1, strip + after * kUnit, kUnit, height_ - after);
    against_diagonal<kVectors, true>(sum, row);
    store<kVectors>(sum, strip + row * kUnit, kUnit);
  }

  template <int kVectors>
  void solve(float* strip) const {
    for (int64_t row = 0; row < height_; row += kRows) forward<kVectors>(strip, kUnit, row);
    for (int64_t row = height_ - kRows; row >= 0; row -= kRows) backward<kVectors>(strip, row);
  }

  // The rows of a strip that has their diagonal block; 0, or the order of the minor that failed.
  PHASEFAST_TARGET __attribute__((noinline)) int64_t diagonal(int64_t left, int64_t row) {
    float* strip = u_ + left;
    Sums<2> sum;
    load<2>(sum, strip + row * stride_, stride_);
    reduce<2>(sum, u_ + row, 1, stride_, strip, stride_, row);
    store<2>(sum, strip + row * stride_, stride_);
    float* block = u_ + row * stride_ + row;
    float own[kRows][kRows] = {};
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t c = i; c < kRows; ++c) {
        double value = block[i * stride_ + c];
        for (int64_t k = 0; k < i; ++k) value -= static_cast<double>(own[k][i]) * own[k][c];
        if (c == i) {
          if (!(value > 0 && std::isfinite(value))) return row + i + 1;
          const double root = std::sqrt(value);
          own[i][i] = static_cast<float>(root);
          reciprocals_[row + i] = static_cast<float>(1 / root);
        } else {
          own[i][c] = static_cast<float>(value * reciprocals_[row + i]);
        }
      }
    }
    const auto put_back = [&] {
      for (int64_t i = 0; i < kRows; ++i) std::copy_n(own[i], kRows, block + i * stride_);
    };
    put_back();
    against_diagonal<2, false>(sum, row);
    store<2>(sum, strip + row * stride_, stride_);
    put_back();  // the columns before them hold nothing, but they are read
    return 0;
  }

  int64_t width_, height_, stride_;
  std::vector<float> reciprocals_;
  LineScratch memory_;
  float* u_;
};

#endif

}  // namespace phasefast
