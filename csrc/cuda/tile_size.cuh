// The sides of a tile, for kernels of every compute capability.
#pragma once

#include "device.cuh"

namespace phasefast::cuda {

// Rows and columns of a tile; the height is a multiple of the width.
struct TileSize {
  int height, width;

  PHASEFAST_BOTH int64_t places() const { return int64_t{1} * height * width; }
  PHASEFAST_BOTH int64_t times() const { return height / width; }
};

}  // namespace phasefast::cuda
