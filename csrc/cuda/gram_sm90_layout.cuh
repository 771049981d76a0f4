// How the Hopper gram kernel cuts its work. Plain arithmetic, proved on the CPU by tests/stand_in/test_gram_sm90.py.
#pragma once

#include "gram_tiles.cuh"
#include "hopper_layout.cuh"

namespace phasefast::cuda {

constexpr int kFewestStages = 8;  // of a split
constexpr int kMostSplits = 16;
constexpr int kTileStages = 8;                   // that starting and ending a tile takes the time of
constexpr int64_t kPartials = int64_t{1} << 27;  // float32 values of unfinished sums

using Whole = Shape<256, 64, 4, 2, 1>;  // numbers that are bfloat16
using Split = Shape<128, 32, 4, 2, 3>;  // numbers that are sums of parts; sums are rounded after every stage

// How many ranges the samples are cut into: as many as leave clusters idle the least.
PHASEFAST_BOTH int hopper_splits(int64_t tiles, int64_t samples, TileSize size, int depth, int clusters) {
  const int64_t stages = across(samples, depth);
  int best = 1;
  int64_t least = 0;
  for (int64_t splits = 1; splits <= kMostSplits; ++splits) {
    if (splits > 1 && (stages < splits * kFewestStages || tiles * splits * size.places() > kPartials)) break;
    const int64_t time = across(tiles * splits, clusters) * (across(stages, splits) + kTileStages);
    if (splits > 1 && time >= least) continue;
    best = static_cast<int>(splits);
    least = time;
  }
  return best;
}

}  // namespace phasefast::cuda
