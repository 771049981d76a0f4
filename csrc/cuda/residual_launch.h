// The variant of residual for Hopper.
#pragma once

#include "cuda/launch.h"
#include "cuda/residual_kernel.cuh"

namespace phasefast::cuda {

// Checked cells, rows of one type, all dense.
void residual_sm90(ScalarType type, const ResidualGroup& group, const Caller& caller);

}  // namespace phasefast::cuda
