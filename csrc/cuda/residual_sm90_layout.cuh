// How the Hopper residual kernel cuts its work. Plain arithmetic, proved on the CPU by
// tests/stand_in/test_residual_sm90.py.
#pragma once

#include <algorithm>

#include "hopper_layout.cuh"
#include "residual_kernel.cuh"

namespace phasefast::cuda {

using ResidualShape = Shape<128, 64, 3, 2, 2>;  // depth: what is summed over lies along the left rows' 128 bytes
constexpr int64_t kMostRanges = 8;
constexpr int kRangeTiles = 1;  // that beginning and ending a range takes the time of

// What a launch does: items are ranges of the tiles that target columns are cut into, of some rows of a cell.
struct HopperResidual {
  ResidualGroup group;
  int64_t tiles;  // of all blocks of targets
  int ranges;
  double* partial;  // [ranges, cells, blocks, samples] where ranges > 1

  // Tiles that a cell's rows are cut into.
  PHASEFAST_BOTH int64_t down() const { return across(group.samples, ResidualShape::kSize.height); }
  PHASEFAST_BOTH int64_t items() const { return down() * group.count * ranges; }
};

// Where the tiles of a block begin: with copies of boxes at a multiple of 16 bytes, so maybe a little before the block.
PHASEFAST_BOTH int64_t block_start(const ResidualGroup& group, int block) {
  return group.edges[block] / kChunk * kChunk;
}

PHASEFAST_BOTH int64_t block_tiles(const ResidualGroup& group, int block) {
  if (group.edges[block + 1] == group.edges[block]) return 0;
  return across(group.edges[block + 1] - block_start(group, block), ResidualShape::kSize.width);
}

PHASEFAST_BOTH int64_t all_tiles(const ResidualGroup& group) {
  int64_t tiles = 0;
  for (int block = 0; block < group.blocks; ++block) tiles += block_tiles(group, block);
  return tiles;
}

// A block of targets as a range sees it: its tiles from `begin` to `end`, counted from its own first one.
struct Stretch {
  int64_t begin, end;
};

// Of a block whose tiles come after `before` others. Classes lie in one range, for their largest number.
PHASEFAST_BOTH Stretch stretch(const HopperResidual& work, int block, int64_t before, int range) {
  const int64_t own = block_tiles(work.group, block);
  const int64_t first = work.tiles * range / work.ranges, last = work.tiles * (range + 1) / work.ranges;
  if (work.group.classes[block]) return before >= first && before < last ? Stretch{0, own} : Stretch{0, 0};
  const auto inside = [&](int64_t tile) { return tile < before ? 0 : tile - before > own ? own : tile - before; };
  return {inside(first), inside(last)};
}

// How many ranges the tiles of each of `items` are cut into.
inline int residual_ranges(int64_t items, int64_t tiles, int64_t clusters) {
  return fastest_cut(items, tiles, kRangeTiles, std::min(kMostRanges, tiles), clusters);
}

}  // namespace phasefast::cuda
