// The capture kernels on the host, for tests/stand_in/test_capture.py.
#include <cstdio>

#include "../../csrc/cuda/capture_kernel.cuh"

using namespace phasefast::cuda;

namespace {

template <typename In, typename Out>
void run(const Captured& cell, int blocks, uint64_t seed) {
  const CaptureWay way = capture_way(cell);
  Machine::now().run(blocks, kCaptureThreads, kCaptureShared, seed, [&](char* shared) {
    if (way == CaptureWay::pooled) {
      capture_pooled<In, Out>(cell, Teams::of(cell));
    } else if (way == CaptureWay::packed) {
      capture_body<true, In, Out>(cell, way, shared);
    } else {
      capture_body<false, In, Out>(cell, way, shared);
    }
  });
  if (cell.splits > 1) {
    Machine::now().run(blocks, kCaptureThreads, kCaptureShared, seed,
                       [&](char* shared) { capture_reduce(cell, shared); });
  }
}

template <typename In>
void run_from(const Captured& cell, int out, int blocks, uint64_t seed) {
  if (out == 0) run<In, float>(cell, blocks, seed);
  if (out == 1) run<In, __nv_bfloat16>(cell, blocks, seed);
  if (out == 2) run<In, __half>(cell, blocks, seed);
}

}  // namespace

extern "C" {

// The way taken (0 plain, 1 transposed, 2 pooled, 3 packed), or -1 where there are too many dimensions.
int capture_prepare(Captured* cell, const int64_t* sizes, const int64_t* strides, int count) {
  return set_dimensions(*cell, sizes, strides, count) ? static_cast<int>(capture_way(*cell)) : -1;
}

// Kinds: 0 float32, 1 bfloat16, 2 float16.
int capture_run(const Captured* cell, int in, int out, int blocks, uint64_t seed) {
  try {
    if (in == 0) run_from<float>(*cell, out, blocks, seed);
    if (in == 1) run_from<__nv_bfloat16>(*cell, out, blocks, seed);
    if (in == 2) run_from<__half>(*cell, out, blocks, seed);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stand-in: %s\n", error.what());
    return 1;
  }
  return 0;
}

// Lanes that share a window, negative where neighbouring teams take neighbouring channels.
int capture_lanes(const Captured* cell) {
  const Teams teams = Teams::of(*cell);
  return teams.along_channels ? -teams.lanes : teams.lanes;
}

int capture_split_count(const Captured* cell, int processors) {
  return capture_splits(*cell, capture_way(*cell), processors);
}
}
