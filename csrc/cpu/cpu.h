// What the CPU kernels share: matrices as views on raw memory, ATen's products on them, scratch, row conversion.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "checks.h"
#include "cpu/convert.h"

namespace phasefast {

template <typename T>
inline int32_t dtype_code() {
  return std::is_same_v<T, double> ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// A matrix in memory that someone else owns; strides in elements.
template <typename T>
struct Matrix {
  T* data;
  int64_t rows, cols, row_stride, col_stride;

  Matrix block(int64_t row, int64_t col, int64_t height, int64_t width) const {
    return {data + row * row_stride + col * col_stride, height, width, row_stride, col_stride};
  }
  Matrix transposed() const { return {data, cols, rows, col_stride, row_stride}; }
  // A tensor on the same memory. It requires no gradient, whatever the tensor does that the memory came from.
  Tensor tensor() const {
    const int64_t sizes[] = {rows, cols};
    const int64_t strides[] = {row_stride, col_stride};
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(data, 2, sizes, strides, 0, dtype_code<T>(),
                                                              aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
  }
};

template <typename T>
Matrix<T> matrix(const Tensor& tensor) {
  return {static_cast<T*>(tensor.data_ptr()), tensor.size(0), tensor.size(1), tensor.stride(0), tensor.stride(1)};
}

// Slice l of a [L, rows, cols] tensor.
template <typename T>
Matrix<T> slice(const Tensor& tensor, int64_t l) {
  return {static_cast<T*>(tensor.data_ptr()) + l * tensor.stride(0), tensor.size(1), tensor.size(2), tensor.stride(1),
          tensor.stride(2)};
}

// Uninitialised memory from PyTorch's allocator, freed with the object.
template <typename T>
class Scratch {
 public:
  Scratch(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {
    const int64_t sizes[] = {rows, cols};
    const int64_t strides[] = {std::max<int64_t>(cols, 1), 1};
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(2, sizes, strides, dtype_code<T>(), aoti_torch_device_type_cpu(), 0, &handle));
    owner_ = Tensor(handle);
    data_ = static_cast<T*>(owner_.data_ptr());
  }
  T* data() const { return data_; }
  Matrix<T> matrix() const { return matrix(rows_, cols_); }
  Matrix<T> matrix(int64_t rows, int64_t cols) const { return {data_, rows, cols, cols, 1}; }

 private:
  int64_t rows_, cols_;
  Tensor owner_;
  T* data_;
};

// Uninitialised floats that begin with a cache line.
class LineScratch {
 public:
  explicit LineScratch(int64_t count) : memory_(1, count + 16) {
    const uintptr_t start = (reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64;
    data_ = reinterpret_cast<float*>(start);
  }
  float* data() const { return data_; }

 private:
  Scratch<float> memory_;
  float* data_;
};

// Elements from one row to the next in scratch: whole cache lines, and rows not all in the same sets of the cache.
template <typename T>
int64_t row_length(int64_t cols) {
  constexpr int64_t line = 64 / sizeof(T);
  constexpr int64_t page = 4096 / sizeof(T);
  const int64_t length = (cols + line - 1) / line * line;
  return length % page ? length : length + line;
}

// out = left right
template <typename T>
void multiply(const Matrix<T>& out, const Matrix<T>& left, const Matrix<T>& right) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.tensor().get(), left.tensor().get(), right.tensor().get()));
}

// out += alpha left right
template <typename T>
void multiply_add(const Matrix<T>& out, const Matrix<T>& left, const Matrix<T>& right, double alpha = 1) {
  const Tensor target = out.tensor();
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(target.get(), target.get(), left.tensor().get(), right.tensor().get(), 1, alpha));
}

// What f returns for the tensor's memory, typed.
template <typename F>
auto with_data(const Tensor& tensor, const F& f) {
  void* data = tensor.data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(static_cast<float*>(data));
    case ScalarType::Double:
      return f(static_cast<double*>(data));
    case ScalarType::BFloat16:
      return f(static_cast<BFloat16*>(data));
    default:
      return f(static_cast<Half*>(data));
  }
}

// Rows [start, stop) of a matrix of any float type as T: a view where they are T already, else converted into scratch.
template <typename T>
Matrix<T> rows_as(const Tensor& rows, int64_t start, int64_t stop, const Scratch<T>& scratch) {
  const int64_t cols = rows.size(1);
  const int64_t row_stride = rows.stride(0);
  const int64_t col_stride = rows.stride(1);
  const Matrix<T> out = scratch.matrix(stop - start, cols);
  const auto convert = [&](const auto* data) {
    torch::stable::parallel_for(start, stop, std::max<int64_t>(1, 32768 / std::max<int64_t>(cols, 1)),
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t r = begin; r < end; ++r) {
                                    T* to = out.data + (r - start) * cols;
                                    const auto* from = data + r * row_stride;
                                    for (int64_t c = 0; c < cols; ++c)
                                      to[c] = static_cast<T>(widen(from[c * col_stride]));
                                  }
                                });
    return out;
  };
  const auto take = [&](auto* data) {
    using From = std::remove_pointer_t<decltype(data)>;
    if constexpr (std::is_same_v<From, T>) {
      return Matrix<T>{data + start * row_stride, stop - start, cols, row_stride, col_stride};
    } else {
      return convert(data);
    }
  };
  return with_data(rows, take);
}

template <typename T>
bool needs_conversion(const Tensor& rows) {
  return rows.scalar_type() != (std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float);
}

}  // namespace phasefast
