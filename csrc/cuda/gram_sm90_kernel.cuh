// gram on Hopper's tensor cores (compute capability 9.0), for bfloat16 numbers and for sums of float16 parts.
//
// One warpgroup copies panels of both factors into a ring of slots, two multiply them; the two blocks of a cluster
// share the right panel. Both factors are row-major in samples, which is the layout that wgmma takes transposed, so
// nothing is turned. Sums of parts start anew with every stage, smallest products first, and are added up rounded: the
// tensor cores cut off.
#pragma once

#include <type_traits>

#include "gram_sm90_layout.cuh"
#include "hopper_pipeline.cuh"

namespace phasefast::cuda {

struct GramMaps {
  CUtensorMap rows[kCells], targets;  // [part, sample, column]
  int row_parts, target_parts;
  const uint32_t *row_largest[kCells], *target_largest;  // of their columns, where they are parts: see halves.cuh
};

// An item as a block of threads sees it.
struct HopperItem {
  GramTile tile;
  int64_t begin, end;
  int right_parts;

  template <typename S>
  static PHASEFAST_DEVICE HopperItem at(const GramGroup& group, const GramMaps& maps, int64_t item) {
    const GramTile tile = gram_tile(group, item / group.splits, S::kSize);
    const int split = static_cast<int>(item % group.splits);
    return {tile, split_begin(group.samples, group.splits, split, S::kDepth),
            split_begin(group.samples, group.splits, split + 1, S::kDepth),
            tile.cross ? maps.target_parts : maps.row_parts};
  }
};

// Keeps clusters that are ahead waiting, a little, for those behind: what they read is then still in the L2 cache.
struct Pace {
  static constexpr int kEvery = 16, kSlack = 32;  // stages
  static constexpr int kTries = 100;              // then it goes on: others may not be running
  int64_t* all;                                   // stages that all clusters have begun
  int64_t own = 0;

  PHASEFAST_DEVICE void step(int64_t clusters) {
    if (++own % kEvery) return;
    add_to(all, int64_t{kEvery});
    for (int i = 0; i < kTries && own > current(all) / clusters + kSlack; ++i) pause(200);
  }
  PHASEFAST_DEVICE void finish() { add_to(all, int64_t{1} << 40); }
};

// The thread that copies.
template <typename S>
PHASEFAST_DEVICE void produce(const GramGroup& group, const GramMaps& maps, const Ring<S>& ring, int rank) {
  Pace pace{group.pace};
  each_item<S>(group, [&](int64_t item, Turn& turn) {
    const HopperItem at = HopperItem::at<S>(group, maps, item);
    const CUtensorMap& rows = maps.rows[at.tile.cell];
    const Factors factors{rows,          at.tile.cross ? maps.targets : rows, at.tile.row, at.tile.col, maps.row_parts,
                          at.right_parts};
    for (int64_t begin = at.begin; begin < at.end; begin += S::kDepth) {
      if (rank == 0) pace.step(Thread::blocks() / S::kBlocks);
      fill<S, LeftColumns>(ring, turn, rank, factors, begin);
    }
  });
  if (rank == 0) pace.finish();
}

// Two neighbouring sums of a row, where the row and they are there; `pairs`: they are aligned to 8 bytes.
struct StorePair {
  PHASEFAST_DEVICE void operator()(float* to, float a, float b, int64_t left, bool) const {
    to[0] = a;
    if (left > 1) to[1] = b;
  }
};
struct AddPair {
  template <typename T>
  PHASEFAST_DEVICE void operator()(T* to, float a, float b, int64_t left, bool pairs) const {
    if (std::is_same_v<T, float> && pairs && left > 1) return add_pair_to(reinterpret_cast<float*>(to), a, b);
    add_to(to, static_cast<T>(a));
    if (left > 1) add_to(to + 1, static_cast<T>(b));
  }
};

// A thread's sums (PTX ISA, the accumulator of wgmma.m64nNk16) of its warpgroup's 64 rows, from `first` on.
template <typename T, typename S, typename Put>
PHASEFAST_DEVICE void put_sums(const float (&sum)[S::kSums], const GramSink& sink, int first, const Put& put) {
  const int lane = Thread::index() % 32, warp = Thread::index() / 32 % 4;
  PHASEFAST_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + warp * 16 + lane / 4 + half * 8;
    if (row >= sink.rows) continue;
    T* to = static_cast<T*>(sink.data) + row * sink.stride + lane % 4 * 2;
    const bool pairs = reinterpret_cast<uintptr_t>(to) % 8 == 0;
    PHASEFAST_UNROLL
    for (int i = 0; i < S::kSums / 4; ++i) {
      const int64_t left = sink.cols - i * 8 - lane % 4 * 2;
      if (left > 0) put(to + i * 8, sum[4 * i + 2 * half], sum[4 * i + 2 * half + 1], left, pairs);
    }
  }
}
template <typename S>
PHASEFAST_DEVICE void put_sums(const float (&sum)[S::kSums], const GramSink& sink, int first) {
  if (sink.wide) {
    put_sums<double, S>(sum, sink, first, AddPair());
  } else if (sink.fresh) {
    put_sums<float, S>(sum, sink, first, StorePair());
  } else {
    put_sums<float, S>(sum, sink, first, AddPair());
  }
}

// Sums of parts as those of the columns themselves; `rows`, `cols`: the largest from the warpgroup's first on.
template <typename S>
PHASEFAST_DEVICE void scale_back(float (&sum)[S::kSums], const uint32_t* rows, const uint32_t* cols) {
  const int lane = Thread::index() % 32, row = Thread::index() / 32 % 4 * 16 + lane / 4;
  const int exponents[] = {back_exponent(rows[row]), back_exponent(rows[row + 8])};
  PHASEFAST_UNROLL
  for (int i = 0; i < S::kSums / 4; ++i) {
    PHASEFAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int exponent = back_exponent(cols[i * 8 + lane % 4 * 2 + j]);
      PHASEFAST_UNROLL
      for (int half = 0; half < 2; ++half) {
        float& own = sum[4 * i + 2 * half + j];
        own = scaled(own, exponents[half] + exponent);
      }
    }
  }
}

// A warpgroup that multiplies.
template <typename S>
PHASEFAST_DEVICE void consume(const GramGroup& group, const GramMaps& maps, const Ring<S>& ring, int rank, int own) {
  each_item<S>(group, [&](int64_t item, Turn& turn) {
    const HopperItem at = HopperItem::at<S>(group, maps, item);
    int left = at.begin < at.end ? static_cast<int>(across(at.end - at.begin, S::kDepth)) : 0;
    bool fresh = group.splits > 1;
    const int first = rank * kBlockRows + own * 64;
    do {  // an empty split gives zeros
      constexpr int kWindow = S::kParts > 1 ? INT32_MAX : static_cast<int>(kPromote / S::kDepth);
      const int stages = left < kWindow ? left : kWindow;
      float sum[S::kSums] = {};
      if constexpr (S::kParts > 1) {
        add_stages_of_parts<S, LeftColumns>(sum, ring, turn, stages, own, maps.row_parts, at.right_parts);
        const uint32_t* rows = maps.row_largest[at.tile.cell];
        scale_back<S>(sum, rows + at.tile.row + first, (at.tile.cross ? maps.target_largest : rows) + at.tile.col);
      } else {
        add_stages<S, LeftColumns>(sum, ring, turn, stages, own);
      }
      GramSink sink = item_sink(group, at.tile, item, S::kSize);
      sink.fresh = fresh;
      put_sums<S>(sum, sink, first);
      fresh = false;
      left -= stages;
    } while (left > 0);
  });
}

template <typename S>
PHASEFAST_DEVICE void gram_sm90_body(const GramGroup& group, const GramMaps& maps, char* shared) {
  run_roles<S>(
      shared, [&](const Ring<S>& ring, int rank) { produce<S>(group, maps, ring, rank); },
      [&](const Ring<S>& ring, int rank, int own) { consume<S>(group, maps, ring, rank, own); });
}

}  // namespace phasefast::cuda
