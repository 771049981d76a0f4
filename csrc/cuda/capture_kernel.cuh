// capture in one read of the activations. Not yet run on a GPU: the reference is the default route.
//
// Every thread owns some features and goes through a range of samples, so that indices are worked out once and column
// sums stay in registers. Ranges of samples are added up afterwards, in order.
#pragma once

#include "device.cuh"

namespace phasefast::cuda {

constexpr int kCaptureThreads = 256;
constexpr int kMerged = 4;  // dimensions of a sample after those that lie one behind the other are merged
constexpr int kSide = 32;   // of a tile that is transposed
constexpr int kSideRows = kCaptureThreads / kSide;
constexpr int kOwn = kSide / kSideRows;

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

// Where a feature lies in its sample.
PHASEFAST_BOTH int64_t offset_of(const Captured& cell, int64_t feature) {
  int64_t offset = 0;
  for (int i = kMerged - 1; i >= 0; --i) {
    offset += feature % cell.sizes[i] * cell.strides[i];
    feature /= cell.sizes[i];
  }
  return offset;
}

// Features as they come: coalesced where the last dimension is dense.
template <typename In, typename Out>
PHASEFAST_DEVICE void capture_plain(const Captured& cell) {
  const int64_t across = (cell.width + kCaptureThreads - 1) / kCaptureThreads;
  for (int64_t item = Thread::block(); item < across * cell.splits; item += Thread::blocks()) {
    const int64_t feature = item % across * kCaptureThreads + Thread::index();
    const int split = static_cast<int>(item / across);
    if (feature >= cell.width) continue;
    const In* from = static_cast<const In*>(cell.activations) + offset_of(cell, feature);
    const float shift = cell.shift[feature];
    Moments moments;
    const int64_t end = first_sample(cell.samples, cell.splits, split + 1);
    for (int64_t sample = first_sample(cell.samples, cell.splits, split); sample < end; ++sample) {
      moments.add(store<Out>(cell, sample, feature, widened(from[sample * cell.sample_stride]) - shift));
    }
    moments.put(cell, feature, split);
  }
}

// Samples [sizes[2], sizes[3]] whose first dimension is the dense one (channels last): read along the first, written
// along the second, through tiles in shared memory.
template <typename In, typename Out>
PHASEFAST_DEVICE void capture_transposed(const Captured& cell, char* shared) {
  float* tile = reinterpret_cast<float*>(shared);  // [kSide][kSide + 1]
  const int64_t height = cell.sizes[2], width = cell.sizes[3];
  const int64_t down = (height + kSide - 1) / kSide, across = (width + kSide - 1) / kSide;
  const int fast = Thread::index() % kSide, slow = Thread::index() / kSide;
  for (int64_t item = Thread::block(); item < down * across * cell.splits; item += Thread::blocks()) {
    const int64_t top = item / across % down * kSide, left = item % across * kSide;
    const int split = static_cast<int>(item / (down * across));
    Moments moments[kOwn];
    const int64_t end = first_sample(cell.samples, cell.splits, split + 1);
    for (int64_t sample = first_sample(cell.samples, cell.splits, split); sample < end; ++sample) {
      const In* from = static_cast<const In*>(cell.activations) + sample * cell.sample_stride;
      PHASEFAST_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        const int64_t row = top + fast, col = left + slow + i * kSideRows;
        if (row < height && col < width) {
          tile[fast * (kSide + 1) + slow + i * kSideRows] =
              widened(from[row * cell.strides[2] + col * cell.strides[3]]);
        }
      }
      Thread::sync();
      PHASEFAST_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        const int64_t row = top + slow + i * kSideRows, col = left + fast;
        if (row < height && col < width) {
          const int64_t feature = row * width + col;
          const float value = tile[(slow + i * kSideRows) * (kSide + 1) + fast] - cell.shift[feature];
          moments[i].add(store<Out>(cell, sample, feature, value));
        }
      }
      Thread::sync();
    }
    PHASEFAST_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int64_t row = top + slow + i * kSideRows, col = left + fast;
      if (row < height && col < width) moments[i].put(cell, row * width + col, split);
    }
  }
}

// Bin `bin` of `bins` over `size` places: [begin, end), as PyTorch's adaptive pooling cuts them.
PHASEFAST_BOTH int64_t bin_begin(int64_t bin, int64_t bins, int64_t size) {
  return bin * size / bins;
}
PHASEFAST_BOTH int64_t bin_end(int64_t bin, int64_t bins, int64_t size) {
  return ((bin + 1) * size + bins - 1) / bins;
}

// Means over bins of the last three dimensions; those of size 0 are not there.
template <typename In, typename Out>
PHASEFAST_DEVICE void capture_pooled(const Captured& cell) {
  const int64_t across = (cell.width + kCaptureThreads - 1) / kCaptureThreads;
  for (int64_t item = Thread::block(); item < across * cell.splits; item += Thread::blocks()) {
    const int64_t feature = item % across * kCaptureThreads + Thread::index();
    const int split = static_cast<int>(item / across);
    if (feature >= cell.width) continue;
    int64_t begin[kMerged], end[kMerged], rest = feature;
    float places = 1;
    for (int i = kMerged - 1; i >= 1; --i) {
      const bool there = cell.sizes[i] > 0;
      begin[i] = there ? bin_begin(rest % cell.pool, cell.pool, cell.sizes[i]) : 0;
      end[i] = there ? bin_end(rest % cell.pool, cell.pool, cell.sizes[i]) : 1;
      if (there) rest /= cell.pool;
      places *= static_cast<float>(end[i] - begin[i]);
    }
    const In* from = static_cast<const In*>(cell.activations) + rest * cell.strides[0];
    const float shift = cell.shift[feature];
    Moments moments;
    const int64_t last = first_sample(cell.samples, cell.splits, split + 1);
    for (int64_t sample = first_sample(cell.samples, cell.splits, split); sample < last; ++sample) {
      float sum = 0;
      for (int64_t i = begin[1]; i < end[1]; ++i) {
        for (int64_t j = begin[2]; j < end[2]; ++j) {
          for (int64_t k = begin[3]; k < end[3]; ++k) {
            sum += widened(
                from[sample * cell.sample_stride + i * cell.strides[1] + j * cell.strides[2] + k * cell.strides[3]]);
          }
        }
      }
      moments.add(store<Out>(cell, sample, feature, sum / places - shift));
    }
    moments.put(cell, feature, split);
  }
}

PHASEFAST_DEVICE void capture_reduce(const Captured& cell) {
  const int64_t stride = Thread::blocks() * kCaptureThreads;
  for (int64_t f = Thread::block() * kCaptureThreads + Thread::index(); f < cell.width; f += stride) {
    double sum = 0, square = 0;
    for (int split = 0; split < cell.splits; ++split) {
      sum += cell.partial[split * 2 * cell.width + f];
      square += cell.partial[(split * 2 + 1) * cell.width + f];
    }
    cell.sums[f] += sum;
    cell.squares[f] += square;
  }
}

enum class CaptureWay { plain, transposed, pooled };

PHASEFAST_BOTH CaptureWay capture_way(const Captured& cell) {
  if (cell.pool) return CaptureWay::pooled;
  const bool flat = cell.sizes[0] == 1 && cell.sizes[1] == 1;
  const bool turned = cell.strides[2] == 1 && cell.strides[3] != 1;
  return flat && turned && cell.sizes[2] > 1 && cell.sizes[3] > 1 ? CaptureWay::transposed : CaptureWay::plain;
}

// A sample's dimensions as the kernels take them, outermost first: merged where one lies behind the other (or only set
// in place, for pooling); false where more than kMerged are left.
PHASEFAST_BOTH bool set_dimensions(Captured& cell, const int64_t* sizes, const int64_t* strides, int count) {
  int64_t size[16], stride[16];
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    if (!cell.pool && sizes[i] == 1) continue;
    if (!cell.pool && kept && stride[kept - 1] == sizes[i] * strides[i]) {
      size[kept - 1] *= sizes[i];
      stride[kept - 1] = strides[i];
    } else {
      size[kept] = sizes[i];
      stride[kept++] = strides[i];
    }
  }
  if (kept > kMerged) return false;
  for (int i = 0; i < kMerged; ++i) {
    // Pooled: channels first, then space, absent dimensions last. Else: the last dimension last, ones before.
    const int at = cell.pool ? i : i - (kMerged - kept);
    const bool there = at >= 0 && at < kept;
    cell.sizes[i] = there ? size[at] : cell.pool ? 0 : 1;
    cell.strides[i] = there ? stride[at] : 0;
  }
  return true;
}

// As many ranges of samples as give each of `processors` some blocks, of at least eight samples.
PHASEFAST_BOTH int capture_splits(int64_t width, int64_t samples, int processors) {
  const int64_t blocks = (width + kCaptureThreads - 1) / kCaptureThreads;
  const int64_t wanted = (8 * processors + blocks - 1) / (blocks ? blocks : 1);
  const int64_t most = samples / 8;
  const int64_t splits = wanted < most ? wanted : most;
  return splits < 1 ? 1 : static_cast<int>(splits);
}

constexpr int kCaptureShared = kSide * (kSide + 1) * 4;

template <typename In, typename Out>
PHASEFAST_DEVICE void capture_body(const Captured& cell, CaptureWay way, char* shared) {
  if (way == CaptureWay::pooled) {
    capture_pooled<In, Out>(cell);
  } else if (way == CaptureWay::transposed) {
    capture_transposed<In, Out>(cell, shared);
  } else {
    capture_plain<In, Out>(cell);
  }
}

}  // namespace phasefast::cuda
