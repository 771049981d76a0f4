// The ridge_solve kernels on the host, for tests/stand_in/test_ridge_solve.py.
#include <cstdio>

#include "../../csrc/cuda/ridge_solve_kernel.cuh"

using namespace phasefast::cuda;

extern "C" int ridge_solve_run(const SolveCell* cell, int blocks, uint64_t seed) {
  try {
    solve_schedule(*cell, [&]<SolveStage stage>(int64_t column, int64_t items) {
      Machine::now().run(std::min<int64_t>(items, blocks), kThreads, kSolveShared, seed,
                         [&](char* shared) { solve_body<stage>(*cell, column, shared); });
    });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stand-in: %s\n", error.what());
    return 1;
  }
  return 0;
}
