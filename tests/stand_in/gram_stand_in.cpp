// The gram kernel on the host, for tests/cuda/test_gram.py.
#include "../../csrc/cuda/gram_kernel.cuh"

using namespace phasefast::cuda;

namespace {

template <typename In, int row_parts, int target_parts>
void run(const GramGroup& group, int blocks, uint64_t seed) {
  constexpr int kRows = Pipeline<In, In, row_parts, row_parts>::kBytes;
  constexpr int kCross = Pipeline<In, float, row_parts, target_parts>::kBytes;
  Machine::now().run(blocks, kThreads, std::max(kRows, kCross), seed,
                     [&](char* shared) { gram_body<In, row_parts, target_parts>(group, shared); });
  if (group.splits > 1) {
    Machine::now().run(blocks, kThreads, 0, seed, [&](char*) { gram_reduce_body(group); });
  }
}

}  // namespace

extern "C" {

// kind: 0 float32, 1 bfloat16, 2 float16; fast: one part of every number.
int gram_run(GramGroup* group, int kind, int fast, int blocks, uint64_t seed) {
  const auto choose = [&](auto in, auto parts) {
    if (fast) {
      run<decltype(in), 1, 1>(*group, blocks, seed);
    } else {
      run<decltype(in), decltype(parts)::value, 3>(*group, blocks, seed);
    }
  };
  try {
    if (kind == 0) choose(float(), std::integral_constant<int, 3>());
    if (kind == 1) choose(__nv_bfloat16(), std::integral_constant<int, 1>());
    if (kind == 2) choose(__half(), std::integral_constant<int, 2>());
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}

int64_t gram_count(int64_t width, int64_t cols, int with_gram) { return gram_tiles(width, cols, with_gram); }

// cell, row, col, cross of each tile.
void gram_schedule(const GramGroup* group, int64_t* out) {
  for (int64_t tile = 0; tile < group->tiles; ++tile) {
    const GramTile at = gram_tile(*group, tile);
    const int64_t values[] = {at.cell, at.row, at.col, at.cross};
    std::copy_n(values, 4, out + 4 * tile);
  }
}

int64_t gram_split(int64_t samples, int splits, int split) { return split_begin(samples, splits, split); }

int gram_swizzled(int sample, int chunk) { return swizzled(sample, chunk); }
}
