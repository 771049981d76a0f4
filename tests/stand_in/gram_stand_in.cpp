// The gram kernel on the host, for tests/stand_in/test_gram.py.
#include <cstdio>

#include "../../csrc/cuda/gram_kernel.cuh"

using namespace phasefast::cuda;

namespace {

template <typename In, typename Targets>
void run(const GramGroup& group, int blocks, uint64_t seed) {
  Machine::now().run(blocks, kThreads, gram_shared_bytes<In, Targets>(), seed,
                     [&](char* shared) { gram_body<In, Targets>(group, shared); });
  if (group.splits > 1) {
    Machine::now().run(blocks, kThreads, 0, seed, [&](char*) { gram_reduce_body(group, kTileSize, kThreads); });
  }
}

template <typename Targets>
int run_kind(const void* pointer, int kind, int blocks, uint64_t seed) {
  const auto& group = *static_cast<const GramGroup*>(pointer);
  try {
    if (kind == 0) run<float, Targets>(group, blocks, seed);
    if (kind == 1) run<__nv_bfloat16, Targets>(group, blocks, seed);
    if (kind == 2) run<__half, Targets>(group, blocks, seed);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stand-in: %s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace

extern "C" {

// Kinds of rows and targets: 0 float32, 1 bfloat16, 2 float16.
int gram_run(const void* group, int rows, int targets, int blocks, uint64_t seed) {
  return targets ? run_kind<__nv_bfloat16>(group, rows, blocks, seed) : run_kind<float>(group, rows, blocks, seed);
}

int64_t gram_count(int64_t width, int64_t cols, int with_gram, int tile_height, int tile_width) {
  return gram_tiles(width, cols, with_gram, {tile_height, tile_width});
}

// cell, row, col, cross of each tile.
void gram_schedule(const GramGroup* group, int tile_height, int tile_width, int64_t* out) {
  for (int64_t tile = 0; tile < group->tiles; ++tile) {
    const GramTile at = gram_tile(*group, tile, {tile_height, tile_width});
    const int64_t values[] = {at.cell, at.row, at.col, at.cross};
    std::copy_n(values, 4, out + 4 * tile);
  }
}

int64_t gram_split(int64_t samples, int splits, int split) {
  return split_begin(samples, splits, split, kDepth);
}

int gram_split_count(int64_t tiles, int64_t samples, int processors) {
  return gram_splits(tiles, samples, processors);
}

int gram_swizzled(int sample, int chunk) {
  return Columns::place(sample, chunk);
}
}
