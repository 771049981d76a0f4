// residual: squared errors and arg-max hits of predictions that are never stored whole. See library.cpp for the shapes.
#pragma once

#include "checks.h"

namespace phasefast {

inline void check_residual(const Tensors& rows, const Tensors& weights, const Tensors& offsets, const Tensor& targets,
                           const std::vector<int64_t>& blocks, const std::vector<bool>& classes, const Tensors& errors,
                           const Tensors& hits) {
  const size_t cells = rows.size();
  check_count("weights", weights.size(), "rows", cells);
  check_count("offsets", offsets.size(), "rows", cells);
  check_count("errors", errors.size(), "rows", cells);
  check_count("hits", hits.size(), "rows", cells);
  check_dim({"targets"}, targets, 2, 2);
  check_dtype({"targets"}, targets, kWide);
  const int64_t samples = targets.size(0);
  const int64_t columns = targets.size(1);
  check_count("blocks", blocks.size(), "classes, plus one", classes.size() + 1);
  for (size_t j = 0; j < blocks.size(); ++j) {
    if (blocks[j] < (j ? blocks[j - 1] : 0) || blocks[j] > columns) {
      fail("blocks is ", shape_text(blocks), ", expected edges that ascend from 0 to at most ", columns);
    }
    if (j && classes[j - 1] && blocks[j] == blocks[j - 1]) fail("blocks[", j - 1, "] holds classes but no column");
  }
  const int64_t count = static_cast<int64_t>(classes.size());
  for (size_t i = 0; i < cells; ++i) {
    const int64_t index = static_cast<int64_t>(i);
    check_dim({"rows", index}, rows[i], 2, 2);
    check_dtype({"rows", index}, rows[i], kFloats);
    const int64_t width = rows[i].size(1);
    check_shape({"rows", index}, rows[i], {samples, width});
    check_shape({"weights", index}, weights[i], {width, columns});
    check_dtype({"weights", index}, weights[i], kWide);
    check_shape({"offsets", index}, offsets[i], {columns});
    check_dtype({"offsets", index}, offsets[i], kWide);
    check_shape({"errors", index}, errors[i], {count, samples});
    check_dtype({"errors", index}, errors[i], {ScalarType::Double});
    check_row_major({"errors", index}, errors[i]);
    check_shape({"hits", index}, hits[i], {count, samples});
    check_dtype({"hits", index}, hits[i], {ScalarType::Bool});
    check_row_major({"hits", index}, hits[i]);
  }
}

}  // namespace phasefast
