// Symmetric products by panels: of each block column only the part on and below the diagonal is computed.
#include "gram.h"

#include <torch/csrc/stable/library.h>

#include "cpu/cpu.h"

namespace phasefast {
namespace {

constexpr int64_t kChunk = 4096;  // rows whose float32 sum is trusted before it goes into the accumulator
constexpr int64_t kPanel = 256;   // columns of a gram's panel
constexpr int64_t kStrip = 512;   // columns of a cross product's panel, at least
constexpr int64_t kProduct =
    1 << 21;  // elements of a product, where panels can be wider: BLAS packs the rows once for each

// out += product, where the accumulator is the wider of the two.
template <typename A, typename T>
void promote(const Matrix<A>& out, const Matrix<T>& product) {
  torch::stable::parallel_for(0, out.rows, std::max<int64_t>(1, 32768 / std::max<int64_t>(out.cols, 1)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t r = begin; r < end; ++r) {
                                  A* to = out.data + r * out.row_stride;
                                  const T* from = product.data + r * product.row_stride;
                                  for (int64_t c = 0; c < out.cols; ++c) to[c] += static_cast<A>(from[c]);
                                }
                              });
}

// out += left right, with the product in T. A tight product that is added afterwards beats one that BLAS adds in place.
template <typename A, typename T>
void accumulate(const Matrix<A>& out, const Matrix<T>& left, const Matrix<T>& right, const Scratch<T>& scratch) {
  const Matrix<T> product = scratch.matrix(out.rows, out.cols);
  multiply(product, left, right);
  promote(out, product);
}

template <typename A, typename T>
void add_gram(const Tensor& gram, const Matrix<T>& rows, const Scratch<T>& scratch) {
  const Matrix<A> out = matrix<A>(gram);
  const int64_t width = rows.cols;
  for (int64_t start = 0; start < width; start += kPanel) {
    const int64_t size = std::min(kPanel, width - start);
    accumulate(out.block(start, start, width - start, size),
               rows.block(0, start, rows.rows, width - start).transposed(), rows.block(0, start, rows.rows, size),
               scratch);
  }
}

int64_t strip_columns(int64_t width, int64_t cols) {
  return std::min(cols, std::max(kStrip, kProduct / std::max<int64_t>(width, 1)));
}

template <typename A, typename T>
void add_cross(const Tensor& cross, const Matrix<T>& rows, const Matrix<T>& targets, const Scratch<T>& scratch) {
  const Matrix<A> out = matrix<A>(cross);
  const int64_t strip = strip_columns(rows.cols, targets.cols);
  for (int64_t start = 0; start < targets.cols; start += strip) {
    const int64_t size = std::min(strip, targets.cols - start);
    accumulate(out.block(0, start, rows.cols, size), rows.transposed(), targets.block(0, start, rows.rows, size),
               scratch);
  }
}

template <typename T>
void gram_cell(const Tensor& rows, const Tensor& targets, const Tensor* gram, const Tensor& cross) {
  const int64_t samples = rows.size(0);
  const int64_t width = rows.size(1);
  const int64_t chunk = std::min(kChunk, samples);
  const Scratch<T> wide(needs_conversion<T>(rows) ? chunk : 0, width);
  const Scratch<T> wide_targets(needs_conversion<T>(targets) ? chunk : 0, targets.size(1));
  const Scratch<T> product(width, std::max(kPanel, strip_columns(width, targets.size(1))));
  for (int64_t start = 0; start < samples; start += chunk) {
    const int64_t stop = std::min(start + chunk, samples);
    const Matrix<T> a = rows_as<T>(rows, start, stop, wide);
    const Matrix<T> t = rows_as<T>(targets, start, stop, wide_targets);
    if (gram && gram->scalar_type() == ScalarType::Double) {
      add_gram<double>(*gram, a, product);
    } else if (gram) {
      add_gram<float>(*gram, a, product);
    }
    if (cross.scalar_type() == ScalarType::Double) {
      add_cross<double>(cross, a, t, product);
    } else {
      add_cross<float>(cross, a, t, product);
    }
  }
}

void gram(const Tensors& rows, const Tensor& targets, const Tensors& grams, const Tensors& crosses) {
  check_gram(rows, targets, grams, crosses);
  for (size_t i = 0; i < rows.size(); ++i) {
    const Tensor* own = grams.empty() ? nullptr : &grams[i];
    if (rows[i].scalar_type() == ScalarType::Double) {
      gram_cell<double>(rows[i], targets, own, crosses[i]);
    } else {
      gram_cell<float>(rows[i], targets, own, crosses[i]);
    }
  }
}

}  // namespace
}  // namespace phasefast

STABLE_TORCH_LIBRARY_IMPL(phasefast, CPU, m) {
  m.impl("gram", TORCH_BOX(&phasefast::gram));
}
