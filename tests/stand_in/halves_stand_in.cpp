// Taking numbers apart into float16, on the host, for tests/stand_in/test_halves.py.
#include <cstdio>

#include "../../csrc/cuda/halves.cuh"

using namespace phasefast::cuda;

namespace {

// The largest of all columns and the parts [part, row, col].
template <typename T>
void run(const void* data, int64_t stride, int64_t rows, int64_t cols, const uint32_t* turned, uint32_t* largest,
         void* parts, int64_t parts_stride, int blocks, uint64_t seed) {
  const Scaled<T> matrix{{static_cast<const T*>(data), stride, rows, cols}, turned, largest};
  const LargestGrid grid = LargestGrid::of(rows, cols, blocks);
  Machine::now().run(grid.across * grid.down, kPlainThreads, kLargestBytes, seed,
                     [&](char* shared) { largest_body(matrix, largest, grid, shared); });
  Machine::now().run(blocks, kPlainThreads, 0, seed,
                     [&](char*) { halves_body(matrix, static_cast<__half*>(parts), parts_stride, kPlainThreads); });
}

}  // namespace

extern "C" {

// Kinds of numbers: 0 float32, 1 bfloat16, 2 float16.
int halves_run(int kind, const void* data, int64_t stride, int64_t rows, int64_t cols, const uint32_t* turned,
               uint32_t* largest, void* parts, int64_t parts_stride, int blocks, uint64_t seed) {
  const auto of = [&](auto like) {
    run<decltype(like)>(data, stride, rows, cols, turned, largest, parts, parts_stride, blocks, seed);
  };
  try {
    if (kind == 0) of(float());
    if (kind == 1) of(__nv_bfloat16());
    if (kind == 2) of(__half());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stand-in: %s\n", error.what());
    return 1;
  }
  return 0;
}

void scale(uint32_t largest, float* out) {
  const Scale found = scale_of(largest);
  out[0] = found.by;
  out[1] = found.back;
}
float scale_back(float value, uint32_t row, uint32_t col) {
  return scaled(value, back_exponent(row) + back_exponent(col));
}
}
