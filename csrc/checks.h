// Checks of metadata, with messages that name the tensor, what was expected and what came. No check reads data.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace phasefast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

inline constexpr std::initializer_list<ScalarType> kFloats = {ScalarType::Float, ScalarType::Double,
                                                              ScalarType::BFloat16, ScalarType::Half};
inline constexpr std::initializer_list<ScalarType> kWide = {ScalarType::Float, ScalarType::Double};

// A tensor's name in a message: "targets" or "rows[3]".
struct Name {
  const char* list;
  int64_t index = -1;
};

// Without streams: where a compiler links its own C++ library into this one beside that of torch, numbers written to
// them end the process.
inline std::string text_of(const std::string& text) {
  return text;
}
template <typename T>
  requires std::is_integral_v<T>
std::string text_of(T number) {
  return std::to_string(number);
}
inline std::string text_of(const Name& name) {
  return name.index < 0 ? name.list : name.list + ('[' + text_of(name.index) + ']');
}

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw std::runtime_error(("phasefast: " + ... + text_of(parts)));
}

template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + text_of(size);
  return '[' + text + ']';
}

inline void check_count(const char* list, size_t got, const char* like, size_t expected) {
  if (got != expected) fail(list, " has ", got, " entries, expected ", expected, ", one for each of ", like);
}

inline void check_dtype(const Name& name, const Tensor& tensor, std::initializer_list<ScalarType> expected) {
  const ScalarType got = tensor.scalar_type();
  if (std::find(expected.begin(), expected.end(), got) != expected.end()) return;
  std::string text;
  for (const ScalarType type : expected) text += (text.empty() ? "" : " or ") + text_of(toString(type));
  fail(name, " has dtype ", toString(got), ", expected ", text);
}

inline void check_shape(const Name& name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  const auto sizes = tensor.sizes();
  if (sizes.size() == expected.size() && std::equal(sizes.begin(), sizes.end(), expected.begin())) return;
  fail(name, " has shape ", shape_text(sizes), ", expected ", shape_text(expected));
}

inline void check_dim(const Name& name, const Tensor& tensor, int64_t low, int64_t high) {
  const int64_t dim = tensor.dim();
  if (dim >= low && dim <= high) return;
  fail(name, " has shape ", shape_text(tensor.sizes()), ", expected ", low, " to ", high, " dimensions");
}

// Written tensors: elements of a row side by side, rows that do not overlap.
inline void check_row_major(const Name& name, const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t span = 1;  // elements from the first to the last of the dimensions seen, plus one
  for (size_t i = sizes.size(); i-- > 0;) {
    const bool bad = i + 1 == sizes.size() ? strides[i] != 1 : strides[i] < span;
    if (sizes[i] > 1 && bad) {
      fail(name, " has strides ", shape_text(strides), " for shape ", shape_text(sizes),
           ", expected rows of adjacent elements; give a contiguous tensor");
    }
    span += std::max<int64_t>(sizes[i] - 1, 0) * strides[i];
  }
}

}  // namespace phasefast
