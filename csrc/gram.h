// gram: lower triangles of rows' rows (or none), and rows' targets, added to accumulators. See library.cpp for the
// shapes.
#pragma once

#include "checks.h"

namespace phasefast {

inline void check_gram(const Tensors& rows, const Tensor& targets, const Tensors& grams, const Tensors& crosses) {
  if (!grams.empty()) check_count("grams", grams.size(), "rows", rows.size());
  check_count("crosses", crosses.size(), "rows", rows.size());
  check_dim({"targets"}, targets, 2, 2);
  check_dtype({"targets"}, targets, {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16});
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t index = static_cast<int64_t>(i);
    check_dim({"rows", index}, rows[i], 2, 2);
    check_dtype({"rows", index}, rows[i], kFloats);
    const int64_t width = rows[i].size(1);
    check_shape({"rows", index}, rows[i], {targets.size(0), width});
    if (!grams.empty()) {
      check_shape({"grams", index}, grams[i], {width, width});
      check_dtype({"grams", index}, grams[i], kWide);
      check_row_major({"grams", index}, grams[i]);
    }
    check_shape({"crosses", index}, crosses[i], {width, targets.size(1)});
    check_dtype({"crosses", index}, crosses[i], kWide);
    check_row_major({"crosses", index}, crosses[i]);
  }
}

}  // namespace phasefast
