// ridge_solve: (gram + penalty I)^-1 cross for every penalty of a path. See library.cpp for the shapes.
#pragma once

#include "checks.h"

namespace phasefast {

inline void check_ridge_solve(const Tensors& grams, const Tensors& crosses, const Tensors& penalties,
                              const Tensors& weights, const Tensors& factors, const Tensor& info) {
  const size_t cells = grams.size();
  check_count("crosses", crosses.size(), "grams", cells);
  check_count("penalties", penalties.size(), "grams", cells);
  check_count("weights", weights.size(), "grams", cells);
  if (!factors.empty()) check_count("factors", factors.size(), "grams", cells);
  check_dim({"info"}, info, 2, 2);
  check_shape({"info"}, info, {static_cast<int64_t>(cells), info.size(1)});
  check_dtype({"info"}, info, {ScalarType::Int});
  for (size_t i = 0; i < cells; ++i) {
    const int64_t index = static_cast<int64_t>(i);
    const int64_t steps = info.size(1);
    check_dim({"grams", index}, grams[i], 2, 2);
    check_dtype({"grams", index}, grams[i], kWide);
    const ScalarType dtype = grams[i].scalar_type();
    const int64_t width = grams[i].size(0);
    check_shape({"grams", index}, grams[i], {width, width});
    check_dim({"crosses", index}, crosses[i], 2, 2);
    check_shape({"crosses", index}, crosses[i], {width, crosses[i].size(1)});
    check_dtype({"crosses", index}, crosses[i], {dtype});
    check_shape({"penalties", index}, penalties[i], {steps});
    check_dtype({"penalties", index}, penalties[i], {ScalarType::Double});
    check_shape({"weights", index}, weights[i], {steps, width, crosses[i].size(1)});
    check_dtype({"weights", index}, weights[i], {dtype});
    check_row_major({"weights", index}, weights[i]);
    if (factors.empty()) continue;
    check_shape({"factors", index}, factors[i], {steps, width, width});
    check_dtype({"factors", index}, factors[i], {dtype});
    check_row_major({"factors", index}, factors[i]);
  }
}

}  // namespace phasefast
