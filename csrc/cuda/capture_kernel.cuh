// capture in one read of the activations.
//
// Every thread owns some features and goes through a range of samples, so that indices are worked out once and column
// sums stay in registers. Ranges of samples are added up afterwards, in order. Means: capture_pool.cuh.
#pragma once

#include "capture_pool.cuh"

namespace phasefast::cuda {

constexpr int kSide = 32;  // of a tile that is transposed
constexpr int kSideRows = kCaptureThreads / kSide;
constexpr int kOwn = kSide / kSideRows;
constexpr int kPacked = 4;   // features of a thread, where they lie side by side
constexpr int kAhead = 8;    // samples that it reads before it goes on with the first
constexpr int kReduced = 8;  // features whose splits a block adds up: 64 bytes that lie side by side
constexpr int kReducing = kCaptureThreads / kReduced;

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

// The splits' sums, by several threads for each feature, which are added in order.
PHASEFAST_DEVICE void capture_reduce(const Captured& cell, char* shared) {
  double* sums = reinterpret_cast<double*>(shared);  // [kReducing, 2, kReduced]
  const int column = Thread::index() % kReduced, own = Thread::index() / kReduced;
  for (int64_t first = Thread::block() * kReduced; first < cell.width; first += Thread::blocks() * kReduced) {
    const int64_t feature = first + column < cell.width ? first + column : first;
    double sum = 0, square = 0;
    for (int split = own; split < cell.splits; split += kReducing) {
      sum += cell.partial[split * 2 * cell.width + feature];
      square += cell.partial[(split * 2 + 1) * cell.width + feature];
    }
    sums[2 * own * kReduced + column] = sum;
    sums[(2 * own + 1) * kReduced + column] = square;
    Thread::sync();
    if (own == 0 && first + column < cell.width) {
      for (int other = 1; other < kReducing; ++other) {
        sum += sums[2 * other * kReduced + column];
        square += sums[(2 * other + 1) * kReduced + column];
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

// Blocks of threads across the features of a sample.
PHASEFAST_BOTH int64_t capture_across(const Captured& cell, CaptureWay way) {
  if (way == CaptureWay::packed) return Lanes::of(cell.width).across;
  if (way == CaptureWay::pooled) return Teams::of(cell).across(cell);
  if (way == CaptureWay::transposed) return across(cell.sizes[2], kSide) * across(cell.sizes[3], kSide);
  return across(cell.width, kCaptureThreads);
}

// As many ranges of samples as give each of `processors` some blocks, of at least eight samples a lane. Means want more
// blocks, as not all of them fit at once, and of large windows fewer samples suffice.
PHASEFAST_BOTH int capture_splits(const Captured& cell, CaptureWay way, int processors) {
  const bool pooled = way == CaptureWay::pooled;
  const int lanes = way == CaptureWay::packed ? Lanes::of(cell.width).count : 1;
  const int least = pooled && Teams::of(cell).places >= kEnoughPlaces ? kSamplesAtOnce : 8 * lanes;
  const int64_t wanted = across((pooled ? 16 : 4) * processors, capture_across(cell, way));
  const int64_t most = cell.samples / least;
  const int64_t splits = wanted < most ? wanted : most;
  return splits < 1 ? 1 : static_cast<int>(splits);
}

constexpr int kCaptureShared = kCaptureThreads * kPacked * 8;
static_assert(kSide * (kSide + 1) * 4 <= kCaptureShared && 2 * kCaptureThreads * 8 <= kCaptureShared);

// Packed features and means are kernels of their own, which need more registers than the others.
template <bool packed, typename In, typename Out>
PHASEFAST_DEVICE void capture_body(const Captured& cell, CaptureWay way, char* shared) {
  if constexpr (packed) {
    capture_packed<In, Out>(cell, shared);
  } else if (way == CaptureWay::transposed) {
    capture_transposed<In, Out>(cell, shared);
  } else {
    capture_plain<In, Out>(cell);
  }
}

}  // namespace phasefast::cuda
