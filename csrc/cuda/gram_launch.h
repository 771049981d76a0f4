// What the variants of gram share on the host, and the one for Hopper.
#pragma once

#include "cuda/gram_tiles.cuh"
#include "cuda/launch.h"

namespace phasefast::cuda {

// Where the sums of cell `index` go.
inline void set_outputs(GramCell& cell, size_t index, const Tensors& grams, const Tensors& crosses) {
  cell = {};
  cell.cross = crosses[index].data_ptr();
  cell.cross_stride = crosses[index].stride(0);
  cell.cross_wide = crosses[index].scalar_type() == ScalarType::Double;
  if (grams.empty()) return;
  cell.gram = grams[index].data_ptr();
  cell.gram_stride = grams[index].stride(0);
  cell.gram_wide = grams[index].scalar_type() == ScalarType::Double;
}

// Checked arguments of the op, rows of one type.
void gram_sm90(ScalarType type, const Tensors& rows, const Tensor& targets, const Tensors& grams,
               const Tensors& crosses);

}  // namespace phasefast::cuda
