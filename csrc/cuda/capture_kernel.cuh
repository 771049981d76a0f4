// capture in one read of the activations.
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
constexpr int kPacked = 4;  // features of a thread, where they lie side by side
constexpr int kAhead = 8;   // samples that it reads before it goes on with the first

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
  const int64_t columns = across(cell.width, kCaptureThreads);
  for (int64_t item = Thread::block(); item < columns * cell.splits; item += Thread::blocks()) {
    const int64_t feature = item % columns * kCaptureThreads + Thread::index();
    const int split = static_cast<int>(item / columns);
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

// Features of a thread that are read and written at once.
template <typename T>
struct alignas(kPacked * sizeof(T)) Packed {
  T values[kPacked];
};

// How the threads of a block share the packed features: narrow cells leave some for further samples.
struct Lanes {
  int64_t packs, across, width;  // packs of a sample, blocks across it, packs of a block
  int count;                     // of samples at a time

  PHASEFAST_BOTH static Lanes of(int64_t features) {
    const int64_t packs = features / kPacked;
    if (packs >= kCaptureThreads) {
      return {packs, phasefast::cuda::across(packs, kCaptureThreads), kCaptureThreads, 1};
    }
    return {packs, 1, packs, static_cast<int>(kCaptureThreads / packs)};
  }
};

// What the lanes of a block have summed up of one kind, added in order by the first: `mine` of its own features.
PHASEFAST_DEVICE void add_lanes(const Lanes& lanes, double (&mine)[kPacked], double* shared) {
  PHASEFAST_UNROLL
  for (int i = 0; i < kPacked; ++i) shared[Thread::index() * kPacked + i] = mine[i];
  Thread::sync();
  if (Thread::index() < lanes.width) {
    for (int lane = 1; lane < lanes.count; ++lane) {
      for (int i = 0; i < kPacked; ++i) mine[i] += shared[(lane * lanes.width + Thread::index()) * kPacked + i];
    }
  }
  Thread::sync();
}

// Features side by side in the activations, too.
template <typename In, typename Out>
PHASEFAST_DEVICE void capture_packed(const Captured& cell, char* shared) {
  const Lanes lanes = Lanes::of(cell.width);
  const int lane = static_cast<int>(Thread::index() / lanes.width), ranges = cell.splits * lanes.count;
  for (int64_t item = Thread::block(); item < lanes.across * cell.splits; item += Thread::blocks()) {
    const int64_t pack = item % lanes.across * lanes.width + Thread::index() % lanes.width;
    const int split = static_cast<int>(item / lanes.across), range = split * lanes.count + lane;
    const bool there = lane < lanes.count && pack < lanes.packs;
    const int64_t feature = there ? pack * kPacked : 0;
    const In* from = static_cast<const In*>(cell.activations) + offset_of(cell, feature);
    Out* to = static_cast<Out*>(cell.rows) + feature;
    float shift[kPacked];
    for (int i = 0; i < kPacked; ++i) shift[i] = cell.shift[feature + i];
    double sums[kPacked] = {}, squares[kPacked] = {};
    const int64_t end = there ? first_sample(cell.samples, ranges, range + 1) : 0;
    for (int64_t first = there ? first_sample(cell.samples, ranges, range) : 0; first < end; first += kAhead) {
      Packed<In> in[kAhead];
      PHASEFAST_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const int64_t sample = first + i < end ? first + i : first;
        in[i] = *reinterpret_cast<const Packed<In>*>(from + sample * cell.sample_stride);
      }
      PHASEFAST_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= end) continue;
        Packed<Out> out;
        PHASEFAST_UNROLL
        for (int j = 0; j < kPacked; ++j) {
          out.values[j] = narrowed<Out>(widened(in[i].values[j]) - shift[j]);
          const double stored = widened(out.values[j]);
          sums[j] += stored;
          squares[j] += stored * stored;
        }
        *reinterpret_cast<Packed<Out>*>(to + (first + i) * cell.width) = out;
      }
    }
    if (lanes.count > 1) {
      add_lanes(lanes, sums, reinterpret_cast<double*>(shared));
      add_lanes(lanes, squares, reinterpret_cast<double*>(shared));
    }
    if (!there || lane > 0) continue;
    for (int j = 0; j < kPacked; ++j) Moments{sums[j], squares[j]}.put(cell, feature + j, split);
  }
}

// Samples [sizes[2], sizes[3]] whose first dimension is the dense one (channels last): read along the first, written
// along the second, through tiles in shared memory.
template <typename In, typename Out>
PHASEFAST_DEVICE void capture_transposed(const Captured& cell, char* shared) {
  float* tile = reinterpret_cast<float*>(shared);  // [kSide][kSide + 1]
  const int64_t height = cell.sizes[2], width = cell.sizes[3];
  const int64_t down = across(height, kSide), columns = across(width, kSide);
  const int fast = Thread::index() % kSide, slow = Thread::index() / kSide;
  for (int64_t item = Thread::block(); item < down * columns * cell.splits; item += Thread::blocks()) {
    const int64_t top = item / columns % down * kSide, left = item % columns * kSide;
    const int split = static_cast<int>(item / (down * columns));
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
  const int64_t columns = across(cell.width, kCaptureThreads);
  for (int64_t item = Thread::block(); item < columns * cell.splits; item += Thread::blocks()) {
    const int64_t feature = item % columns * kCaptureThreads + Thread::index();
    const int split = static_cast<int>(item / columns);
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

// The splits' sums, by eight threads for each feature, which are added in order.
PHASEFAST_DEVICE void capture_reduce(const Captured& cell, char* shared) {
  double* sums = reinterpret_cast<double*>(shared);  // [kSideRows, 2, kSide]
  const int column = Thread::index() % kSide, own = Thread::index() / kSide;
  for (int64_t first = Thread::block() * kSide; first < cell.width; first += Thread::blocks() * kSide) {
    const int64_t feature = first + column < cell.width ? first + column : first;
    double sum = 0, square = 0;
    for (int split = own; split < cell.splits; split += kSideRows) {
      sum += cell.partial[split * 2 * cell.width + feature];
      square += cell.partial[(split * 2 + 1) * cell.width + feature];
    }
    sums[2 * own * kSide + column] = sum;
    sums[(2 * own + 1) * kSide + column] = square;
    Thread::sync();
    if (own == 0 && first + column < cell.width) {
      for (int other = 1; other < kSideRows; ++other) {
        sum += sums[2 * other * kSide + column];
        square += sums[(2 * other + 1) * kSide + column];
      }
      cell.sums[feature] += sum;
      cell.squares[feature] += square;
    }
    Thread::sync();
  }
}

enum class CaptureWay { plain, transposed, pooled, packed };

// Whether all features lie side by side by kPacked, where a load or a store of so many is aligned.
PHASEFAST_BOTH bool is_packed(const Captured& cell) {
  const auto aligned = [](const void* place) { return reinterpret_cast<uintptr_t>(place) % 16 == 0; };
  bool even = cell.sizes[kMerged - 1] % kPacked == 0 && cell.sample_stride % kPacked == 0;
  for (int i = 0; i < kMerged - 1; ++i) even = even && (cell.sizes[i] == 1 || cell.strides[i] % kPacked == 0);
  return even && cell.strides[kMerged - 1] == 1 && aligned(cell.activations) && aligned(cell.rows);
}

PHASEFAST_BOTH CaptureWay capture_way(const Captured& cell) {
  if (cell.pool) return CaptureWay::pooled;
  const bool flat = cell.sizes[0] == 1 && cell.sizes[1] == 1;
  const bool turned = cell.strides[2] == 1 && cell.strides[3] != 1;
  if (flat && turned && cell.sizes[2] > 1 && cell.sizes[3] > 1) return CaptureWay::transposed;
  return is_packed(cell) ? CaptureWay::packed : CaptureWay::plain;
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

// Blocks of threads across the features of a sample.
PHASEFAST_BOTH int64_t capture_across(const Captured& cell, CaptureWay way) {
  if (way == CaptureWay::packed) return Lanes::of(cell.width).across;
  if (way == CaptureWay::transposed) return across(cell.sizes[2], kSide) * across(cell.sizes[3], kSide);
  return across(cell.width, kCaptureThreads);
}

// As many ranges of samples as give each of `processors` some blocks, of at least eight samples a lane.
PHASEFAST_BOTH int capture_splits(const Captured& cell, CaptureWay way, int processors) {
  const int lanes = way == CaptureWay::packed ? Lanes::of(cell.width).count : 1;
  const int64_t wanted = across(4 * processors, capture_across(cell, way));
  const int64_t most = cell.samples / (8 * lanes);
  const int64_t splits = wanted < most ? wanted : most;
  return splits < 1 ? 1 : static_cast<int>(splits);
}

constexpr int kCaptureShared = kCaptureThreads * kPacked * 8;
static_assert(kSide * (kSide + 1) * 4 <= kCaptureShared);

// Packed features are a kernel of their own, which needs more registers than the others.
template <bool packed, typename In, typename Out>
PHASEFAST_DEVICE void capture_body(const Captured& cell, CaptureWay way, char* shared) {
  if constexpr (packed) {
    capture_packed<In, Out>(cell, shared);
  } else if (way == CaptureWay::pooled) {
    capture_pooled<In, Out>(cell);
  } else if (way == CaptureWay::transposed) {
    capture_transposed<In, Out>(cell, shared);
  } else {
    capture_plain<In, Out>(cell);
  }
}

}  // namespace phasefast::cuda
