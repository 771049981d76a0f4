// How the Hopper residual kernel cuts its work, on the host, for tests/stand_in/test_residual_sm90.py.
#include "../../csrc/cuda/residual_sm90_layout.cuh"

using namespace phasefast::cuda;

extern "C" {

// Begin and end of every block's tiles in every range [ranges, blocks, 2].
void cut(const int64_t* edges, const int* classes, int blocks, int ranges, int64_t* out) {
  HopperResidual work{};
  work.group.blocks = blocks;
  std::copy_n(edges, blocks + 1, work.group.edges);
  std::copy_n(classes, blocks, work.group.classes);
  work.tiles = all_tiles(work.group);
  work.ranges = ranges;
  for (int range = 0; range < ranges; ++range) {
    int64_t before = 0;
    for (int block = 0; block < blocks; ++block) {
      const Stretch own = stretch(work, block, before, range);
      before += block_tiles(work.group, block);
      *out++ = own.begin;
      *out++ = own.end;
    }
  }
}

int range_count(int64_t items, int64_t tiles, int64_t clusters) {
  return residual_ranges(items, tiles, clusters);
}
}
