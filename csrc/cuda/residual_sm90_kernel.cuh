// residual on Hopper's tensor cores (compute capability 9.0): predictions stay in the registers that they are summed up
// in, are compared with the targets there, and are forgotten.
#pragma once

#include "hopper_pipeline.cuh"
#include "residual_sm90_layout.cuh"

namespace phasefast::cuda {

struct ResidualMaps {
  CUtensorMap rows[kResidualCells], weights[kResidualCells];  // [part, row, column]
  int row_parts;
  const uint32_t* largest[kResidualCells];  // of the weights' columns, of rows that are scaled back: see halves.cuh
};

// An item: a range of the target tiles, for rows of a cell from `first` on.
struct ResidualItem {
  int cell, range;
  int64_t first;

  static PHASEFAST_DEVICE ResidualItem at(const HopperResidual& work, int64_t item) {
    const int64_t rest = item / work.ranges, down = work.down();
    return {static_cast<int>(rest / down), static_cast<int>(item % work.ranges),
            rest % down * ResidualShape::kSize.height};
  }
};

// The thread that copies.
PHASEFAST_DEVICE void produce(const HopperResidual& work, const ResidualMaps& maps, const Ring<ResidualShape>& ring,
                              int rank) {
  each_item<ResidualShape>(work, [&](int64_t item, Turn& turn) {
    const auto [cell, range, first] = ResidualItem::at(work, item);
    const int64_t depth = work.group.cells[cell].width;
    int64_t before = 0;
    for (int block = 0; block < work.group.blocks; ++block) {
      const Stretch own = stretch(work, block, before, range);
      before += block_tiles(work.group, block);
      for (int64_t tile = own.begin; tile < own.end; ++tile) {
        const int64_t col = block_start(work.group, block) + tile * ResidualShape::kSize.width;
        const Factors factors{maps.rows[cell], maps.weights[cell], first, col, maps.row_parts, kHalves<float>};
        for (int64_t at = 0; at < depth; at += ResidualShape::kDepth) {
          fill<ResidualShape, LeftRows>(ring, turn, rank, factors, at);
        }
      }
    }
  });
}

// What a thread knows of one of its rows in a block of targets.
struct RowMiss {
  double error = 0;
  Best predicted = Best::none(), expected = Best::none();

  PHASEFAST_DEVICE void see(float prediction, float target, int64_t col) {
    predicted.see(prediction, col);
    expected.see(target, col);
  }
  // Together with the other three threads of the row.
  PHASEFAST_DEVICE void gather() {
    for (int mask = 2; mask; mask /= 2) error += shuffle(error, mask);
    predicted.gather(4);
    expected.gather(4);
  }
  PHASEFAST_DEVICE bool hit() const { return predicted.col >= 0 && predicted.col == expected.col; }
};

constexpr float kLeastSum = 1e-20f, kMostSum = 1e30f;  // sums of some squares that float32 holds well

// A tile of predictions, less the offset, in the registers of its warpgroup (PTX ISA, the accumulator of
// wgmma.m64nNk16): rows `first` and `first` + 8 of a thread, columns from `left` on, of which those of the block count.
PHASEFAST_DEVICE void compare_sums(const HopperResidual& work, const ResidualCell& cell, const uint32_t* largest,
                                   const float (&sum)[ResidualShape::kSums], int64_t first, int64_t left, int block,
                                   RowMiss (&misses)[2]) {
  constexpr int kPairs = ResidualShape::kSums / 4;
  const int own = static_cast<int>(left) + Thread::index() % 4 * 2;
  const int begin = static_cast<int>(work.group.edges[block]), end = static_cast<int>(work.group.edges[block + 1]);
  const auto inside = [&](int col) { return col >= begin && col < end; };
  float expected[2][2 * kPairs], errors[2] = {};  // all on their way before the first is needed
  PHASEFAST_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + half * 8;
    const float* target = work.group.targets + row * work.group.target_stride;
    PHASEFAST_UNROLL
    for (int i = 0; i < 2 * kPairs; ++i) {
      const int col = own + i / 2 * 8 + i % 2;
      expected[half][i] = row < work.group.samples && inside(col) ? target[col] : 0.0f;
    }
  }
  PHASEFAST_UNROLL
  for (int i = 0; i < 2 * kPairs; ++i) {
    const int col = own + i / 2 * 8 + i % 2;
    if (!inside(col)) continue;
    const float back = scale_of(largest[col]).back, offset = cell.offset[col * cell.offset_stride];
    PHASEFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float prediction = sum[i / 2 * 4 + 2 * half + i % 2] * back + offset;
      const float miss = prediction - expected[half][i];
      errors[half] += miss * miss;
      if (work.group.classes[block]) misses[half].see(prediction, expected[half][i], col);
      expected[half][i] = miss;
    }
  }
  PHASEFAST_UNROLL
  for (int half = 0; half < 2; ++half) {
    if (errors[half] > kLeastSum && errors[half] < kMostSum) {
      misses[half].error += errors[half];
      continue;
    }
    // Numbers whose squares float32 may not hold.
    PHASEFAST_UNROLL
    for (int i = 0; i < 2 * kPairs; ++i) {
      if (!inside(own + i / 2 * 8 + i % 2)) continue;
      misses[half].error += static_cast<double>(expected[half][i]) * expected[half][i];
    }
  }
}

// What is known of a row and a block goes to the caller, or to the range's own place.
PHASEFAST_DEVICE void put_row(const HopperResidual& work, int cell, int block, int64_t row, int range, bool seen,
                              const RowMiss& miss) {
  const ResidualCell& own = work.group.cells[cell];
  const bool classes = work.group.classes[block];
  if (work.ranges > 1) {
    const int64_t place = (int64_t{range} * work.group.count + cell) * work.group.blocks + block;
    work.partial[place * work.group.samples + row] = miss.error;
  } else {
    own.errors[block * own.error_stride + row] = miss.error;
  }
  if (classes ? seen : range == 0) own.hits[block * own.hit_stride + row] = classes && miss.hit();
}

// A warpgroup that multiplies and compares.
PHASEFAST_DEVICE void consume(const HopperResidual& work, const ResidualMaps& maps, const Ring<ResidualShape>& ring,
                              int rank, int own) {
  using S = ResidualShape;
  const int lane = Thread::index() % 32, warp = Thread::index() / 32 % 4;
  each_item<S>(work, [&](int64_t item, Turn& turn) {
    const auto [cell, range, start] = ResidualItem::at(work, item);
    const ResidualCell& of = work.group.cells[cell];
    const int64_t first = start + rank * kBlockRows + own * 64 + warp * 16 + lane / 4;
    const int stages = static_cast<int>(across(of.width, S::kDepth));
    int64_t before = 0;
    for (int block = 0; block < work.group.blocks; ++block) {
      const Stretch tiles = stretch(work, block, before, range);
      before += block_tiles(work.group, block);
      RowMiss misses[2];
      for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
        float sum[S::kSums] = {};
        add_stages_of_parts<S, LeftRows>(sum, ring, turn, stages, own, maps.row_parts, kHalves<float>);
        const int64_t left = block_start(work.group, block) + tile * S::kSize.width;
        compare_sums(work, of, maps.largest[cell], sum, first, left, block, misses);
      }
      PHASEFAST_UNROLL
      for (int half = 0; half < 2; ++half) {
        misses[half].gather();
        const int64_t row = first + half * 8;
        if (lane % 4 == 0 && row < work.group.samples) {
          put_row(work, cell, block, row, range, tiles.begin < tiles.end, misses[half]);
        }
      }
    }
  });
}

PHASEFAST_DEVICE void residual_sm90_body(const HopperResidual& work, const ResidualMaps& maps, char* shared) {
  run_roles<ResidualShape>(
      shared, [&](const Ring<ResidualShape>& ring, int rank) { produce(work, maps, ring, rank); },
      [&](const Ring<ResidualShape>& ring, int rank, int own) { consume(work, maps, ring, rank, own); });
}

// The ranges' errors, added up in order.
PHASEFAST_DEVICE void residual_reduce_body(const HopperResidual& work, int threads) {
  const int64_t samples = work.group.samples, count = int64_t{work.group.count} * work.group.blocks * samples;
  for (int64_t at = Thread::block() * threads + Thread::index(); at < count; at += Thread::blocks() * threads) {
    const int64_t row = at % samples, block = at / samples % work.group.blocks;
    const ResidualCell& cell = work.group.cells[at / samples / work.group.blocks];
    double error = 0;
    for (int range = 0; range < work.ranges; ++range) error += work.partial[range * count + at];
    cell.errors[block * cell.error_stride + row] = error;
  }
}

}  // namespace phasefast::cuda
