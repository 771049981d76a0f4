// How the Hopper gram kernel cuts its work. Plain arithmetic, proved on the CPU by tests/stand_in/test_gram_sm90.py.
#pragma once

#include <algorithm>

#include "gram_tiles.cuh"
#include "hopper_layout.cuh"

namespace phasefast::cuda {

constexpr int kFewestStages = 8;  // of a split
constexpr int64_t kMostSplits = 16;
constexpr int kTileStages = 8;                   // that starting and ending a tile takes the time of
constexpr int64_t kPartials = int64_t{1} << 27;  // float32 values of unfinished sums

using Whole = Shape<256, 64, 4, 2, 1>;  // numbers that are bfloat16
using Split = Shape<128, 64, 3, 2, 2>;  // float16 parts, whose sums are rounded after every stage

// How many ranges the samples are cut into; `tiles` > 0.
inline int hopper_splits(int64_t tiles, int64_t samples, TileSize size, int depth, int64_t clusters) {
  const int64_t stages = across(samples, depth);
  const int64_t most = std::min({kMostSplits, stages / kFewestStages, kPartials / (tiles * size.places())});
  return fastest_cut(tiles, stages, kTileStages, most, clusters);
}

}  // namespace phasefast::cuda
