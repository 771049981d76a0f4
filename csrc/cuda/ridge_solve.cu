// Launches of the ridge_solve kernels.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <utility>

#include "cuda/launch.h"
#include "cuda/ridge_solve_kernel.cuh"
#include "ridge_solve.h"

namespace phasefast::cuda {
namespace {

constexpr int64_t kWorkspace = int64_t{1} << 29;  // float32 values that the systems solved together may take

static_assert(kSolveShared <= kSharedBytes);
static_assert(sizeof(SolveGroup) <= 4000);  // kernels take 4 KiB of arguments

template <SolveStage stage>
__global__ void __launch_bounds__(kThreads)
    ridge_solve_kernel(const __grid_constant__ SolveGroup group, int64_t column) {
  extern __shared__ __align__(16) char shared[];
  solve_body<stage>(group, column, shared);
}

void launch(const SolveGroup& group, const Caller& caller) {
  solve_schedule(group, [&]<SolveStage stage>(int64_t column, int64_t items) {
    constexpr int kBytes = is_elementwise(stage) ? 0 : kSolveShared;
    const auto kernel = ridge_solve_kernel<stage>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "ridge_solve: memory");
    kernel<<<static_cast<unsigned>(items), kThreads, kBytes, caller.stream()>>>(group, column);
    check(cudaGetLastError(), "ridge_solve: launch");
  });
}

// Values that a system takes beside its results; what a cell takes of each kind begins at a multiple of 16 bytes.
int64_t workspace(int64_t d, int64_t p) {
  return d * d + tiles_across(d) * kTile * kTile + d * p + d + 4 * 3;
}

// float64 is refused: the reference takes it.
void ridge_solve(const Tensors& grams, const Tensors& crosses, const Tensors& penalties, const Tensors& weights,
                 const Tensors& factors, const Tensor& info) {
  check_ridge_solve(grams, crosses, penalties, weights, factors, info);
  for (size_t i = 0; i < grams.size(); ++i) {
    check_dtype({"grams", static_cast<int64_t>(i)}, grams[i], {ScalarType::Float});
  }
  if (grams.empty() || info.size(1) == 0) return;
  const Tensors one = {info};
  check_devices(grams[0], {{"grams", &grams},
                           {"crosses", &crosses},
                           {"penalties", &penalties},
                           {"weights", &weights},
                           {"factors", &factors},
                           {"info", &one}});
  const Caller caller(info);
  SolveGroup group{};
  int64_t used = 0;
  const auto flush = [&] {
    if (group.count == 0) return;
    const Tensor scratch = caller.scratch(used);
    float* next = static_cast<float*>(scratch.data_ptr());
    const auto take = [&](int64_t values) { return std::exchange(next, next + (values + 3) / 4 * 4); };
    for (int i = 0; i < group.count; ++i) {
      SolveCell& cell = group.cells[i];
      const int64_t d = cell.width;
      cell.factor = take(cell.steps * d * d);
      cell.inverse = take(cell.steps * tiles_across(d) * kTile * kTile);
      cell.solution = take(cell.steps * d * cell.cols);
      cell.root = take(cell.steps * d);
    }
    launch(group, caller);
    group.count = 0;
    used = 0;
  };
  for (size_t i = 0; i < grams.size(); ++i) {
    const int64_t d = grams[i].size(0), p = crosses[i].size(1), steps = info.size(1);
    if (d == 0) continue;
    const int64_t together = std::clamp<int64_t>(kWorkspace / workspace(d, p), 1, steps);
    for (int64_t first = 0; first < steps; first += together) {
      const int64_t count = std::min(together, steps - first), need = count * workspace(d, p);
      if (group.count == kSolveCells || used + need > kWorkspace) flush();
      used += need;
      SolveCell& cell = group.cells[group.count++];
      cell = {};
      cell.gram = static_cast<const float*>(grams[i].data_ptr());
      cell.cross = static_cast<const float*>(crosses[i].data_ptr());
      cell.penalties = static_cast<const double*>(penalties[i].data_ptr()) + first * penalties[i].stride(0);
      cell.weight_batch = weights[i].stride(0);
      cell.weight_stride = weights[i].stride(1);
      cell.weights = static_cast<float*>(weights[i].data_ptr()) + first * cell.weight_batch;
      if (!factors.empty()) {
        cell.out_batch = factors[i].stride(0);
        cell.out_stride = factors[i].stride(1);
        cell.factors_out = static_cast<float*>(factors[i].data_ptr()) + first * cell.out_batch;
      }
      cell.info_stride = info.stride(1);
      cell.info =
          static_cast<int32_t*>(info.data_ptr()) + static_cast<int64_t>(i) * info.stride(0) + first * cell.info_stride;
      cell.gram_row = grams[i].stride(0);
      cell.gram_col = grams[i].stride(1);
      cell.cross_row = crosses[i].stride(0);
      cell.cross_col = crosses[i].stride(1);
      cell.penalty_stride = penalties[i].stride(0);
      cell.width = d;
      cell.cols = p;
      cell.steps = static_cast<int>(count);
    }
  }
  flush();
}

}  // namespace
}  // namespace phasefast::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(phasefast_cuda, m) {
  m.def(
      "ridge_solve(Tensor[] grams, Tensor[] crosses, Tensor[] penalties, Tensor(a!)[] weights, Tensor(b!)[] factors, "
      "Tensor(c!) info) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(phasefast_cuda, CUDA, m) {
  m.impl("ridge_solve", TORCH_BOX(&phasefast::cuda::ridge_solve));
}
