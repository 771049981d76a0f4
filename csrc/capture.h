// capture: activations of a batch become rows, with column sums and sums of squares. See library.cpp for the shapes.
#pragma once

#include "checks.h"

namespace phasefast {

inline void check_capture(const Tensors& activations, const Tensors& shifts, const std::vector<int64_t>& pools,
                          const Tensors& rows, const Tensors& sums, const Tensors& squares) {
  const size_t cells = activations.size();
  check_count("shifts", shifts.size(), "activations", cells);
  check_count("pools", pools.size(), "activations", cells);
  check_count("rows", rows.size(), "activations", cells);
  check_count("sums", sums.size(), "activations", cells);
  check_count("squares", squares.size(), "activations", cells);
  for (size_t i = 0; i < cells; ++i) {
    const int64_t index = static_cast<int64_t>(i);
    const Name name{"activations", index};
    const auto sizes = activations[i].sizes();
    if (pools[i] < 0) fail("pools[", i, "] is ", pools[i], ", expected 0 or a size");
    check_dtype(name, activations[i], kFloats);
    check_dim(name, activations[i], pools[i] ? 3 : 2, pools[i] ? 5 : 16);
    int64_t width = 1;
    for (size_t j = 1; j < sizes.size(); ++j) {
      width *= pools[i] && j > 1 ? pools[i] : sizes[j];
      if (pools[i] && j > 1 && sizes[j] == 0) fail(name, " has shape ", shape_text(sizes), ": nothing to pool");
    }
    check_shape({"shifts", index}, shifts[i], {width});
    check_dtype({"shifts", index}, shifts[i], {ScalarType::Float});
    check_shape({"rows", index}, rows[i], {sizes[0], width});
    check_dtype({"rows", index}, rows[i], kFloats);
    if (!rows[i].is_contiguous()) fail(Name{"rows", index}, " is not contiguous");
    for (const auto& [label, list] : {std::pair{"sums", &sums}, std::pair{"squares", &squares}}) {
      check_shape({label, index}, (*list)[i], {width});
      check_dtype({label, index}, (*list)[i], {ScalarType::Double});
      check_row_major({label, index}, (*list)[i]);
    }
  }
}

}  // namespace phasefast
