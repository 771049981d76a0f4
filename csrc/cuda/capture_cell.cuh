// What the ways of capture share: a cell, its dimensions, and the column sums of a feature.
#pragma once

#include "device.cuh"

namespace phasefast::cuda {

constexpr int kCaptureThreads = 256;
constexpr int kMerged = 4;  // dimensions of a sample after those that lie one behind the other are merged

// One cell. Sizes and strides of a sample's dimensions, the last fastest in the rows; pool: bins per dimension but the
// first, or 0; width: features.
struct Captured {
  const void* activations;
  const float* shift;
  void* rows;
  double *sums, *squares;
  double* partial;  // [splits, 2, width] where splits > 1
  int64_t samples, sample_stride, width, sizes[kMerged], strides[kMerged];
  int pool, splits;
};

// Column sums of one feature on their way.
struct Moments {
  double sum = 0, square = 0;

  PHASEFAST_DEVICE void add(float stored) {
    sum += stored;
    square += static_cast<double>(stored) * stored;
  }
  PHASEFAST_DEVICE void put(const Captured& cell, int64_t feature, int split) const {
    if (cell.splits > 1) {
      double* slot = cell.partial + split * 2 * cell.width;
      slot[feature] = sum;
      slot[cell.width + feature] = square;
    } else {
      cell.sums[feature] += sum;
      cell.squares[feature] += square;
    }
  }
};

template <typename Out>
PHASEFAST_DEVICE float store(const Captured& cell, int64_t sample, int64_t feature, float value) {
  const Out stored = narrowed<Out>(value);
  static_cast<Out*>(cell.rows)[sample * cell.width + feature] = stored;
  return widened(stored);
}

PHASEFAST_BOTH int64_t first_sample(int64_t samples, int splits, int split) {
  return samples * split / splits;
}

// A sample's dimensions as the kernels take them, outermost first: merged where one lies behind the other, but for the
// channels of means, and the space that several bins cut; false where more than kMerged are left.
PHASEFAST_BOTH bool set_dimensions(Captured& cell, const int64_t* sizes, const int64_t* strides, int count) {
  int64_t size[16], stride[16];
  int kept = 0;
  bool single = cell.pool > 0;  // means of one value each are as well taken as they come
  for (int i = 1; i < count; ++i) single = single && sizes[i] == cell.pool;
  if (single) cell.pool = 0;
  const bool merges = cell.pool <= 1;
  const int apart = cell.pool ? 1 : 0;
  for (int i = 0; i < count; ++i) {
    if (merges && i >= apart && sizes[i] == 1) continue;
    if (merges && kept > apart && stride[kept - 1] == sizes[i] * strides[i]) {
      size[kept - 1] *= sizes[i];
      stride[kept - 1] = strides[i];
    } else {
      size[kept] = sizes[i];
      stride[kept++] = strides[i];
    }
  }
  if (kept > kMerged) return false;
  for (int i = 0; i < kMerged; ++i) {
    // The last dimension last, and before it ones; or zeros, behind the channels of means.
    const int at = i < apart ? i : i - (kMerged - kept);
    const bool there = at >= (i < apart ? 0 : apart);
    cell.sizes[i] = there ? size[at] : cell.pool ? 0 : 1;
    cell.strides[i] = there ? stride[at] : 0;
  }
  return true;
}

}  // namespace phasefast::cuda
