// The ridge_solve kernels on the host, for tests/stand_in/test_ridge_solve.py.
#include <cstdio>

#include "../../csrc/cuda/ridge_solve_kernel.cuh"

using namespace phasefast::cuda;

extern "C" int ridge_solve_run(const SolveGroup* group, uint64_t seed) {
  try {
    solve_schedule(*group, [&]<SolveStage stage>(int64_t column, int64_t items) {
      Machine::now().run(items, kThreads, kSolveShared, seed,
                         [&](char* shared) { solve_body<stage>(*group, column, shared); });
    });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stand-in: %s\n", error.what());
    return 1;
  }
  return 0;
}
