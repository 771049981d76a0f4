// The residual kernel on the host, for tests/stand_in/test_residual.py.
#include <cstdio>

#include "../../csrc/cuda/residual_kernel.cuh"

using namespace phasefast::cuda;

namespace {

template <typename In>
void run(const ResidualGroup& group, int blocks, uint64_t seed) {
  Machine::now().run(blocks, kThreads, residual_shared_bytes<In>(), seed,
                     [&](char* shared) { residual_body<In>(group, shared); });
}

}  // namespace

// Kinds of rows: 0 float32, 1 bfloat16, 2 float16.
extern "C" int residual_run(const ResidualGroup* group, int kind, int blocks, uint64_t seed) {
  try {
    if (kind == 0) run<float>(*group, blocks, seed);
    if (kind == 1) run<__nv_bfloat16>(*group, blocks, seed);
    if (kind == 2) run<__half>(*group, blocks, seed);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stand-in: %s\n", error.what());
    return 1;
  }
  return 0;
}
