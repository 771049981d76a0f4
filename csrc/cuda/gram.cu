// The op gram for CUDA tensors: checks, and launches of the kernel that is made for the device.
#include <torch/csrc/stable/library.h>

#include "cuda/gram_kernel.cuh"
#include "cuda/gram_launch.h"
#include "gram.h"

namespace phasefast::cuda {
namespace {

template <typename In, typename Targets>
__global__ void __launch_bounds__(kThreads) gram_kernel(const __grid_constant__ GramGroup group) {
  extern __shared__ __align__(16) char shared[];
  gram_body<In, Targets>(group, shared);
}

__global__ void __launch_bounds__(kThreads) gram_reduce_kernel(const __grid_constant__ GramGroup group) {
  gram_reduce_body(group, kTileSize, kThreads);
}

template <typename In, typename Targets>
void launch(GramGroup& group, const Caller& caller) {
  const auto kernel = gram_kernel<In, Targets>;
  constexpr int kBytes = gram_shared_bytes<In, Targets>();
  static_assert(kBytes <= kSharedBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "gram: shared memory");
  group.splits = gram_splits(group.tiles, group.samples, caller.processors());
  Tensor partial = caller.scratch(group.splits > 1 ? group.items() * kTileSize.places() : 0);
  group.partial = static_cast<float*>(partial.data_ptr());
  const int64_t resident = int64_t{2} * caller.processors();
  kernel<<<static_cast<unsigned>(std::min(group.items(), resident)), kThreads, kBytes, caller.stream()>>>(group);
  check(cudaGetLastError(), "gram: launch");
  if (group.splits == 1) return;
  const int64_t reducers = std::min(reduce_items(group, kTileSize), 4 * resident);
  gram_reduce_kernel<<<static_cast<unsigned>(reducers), kThreads, 0, caller.stream()>>>(group);
  check(cudaGetLastError(), "gram: reduction");
}

template <typename Targets>
void launch(ScalarType type, GramGroup& group, const Caller& caller) {
  if (type == ScalarType::Float) {
    if constexpr (std::is_same_v<Targets, float>) launch<float, Targets>(group, caller);
  } else if (type == ScalarType::BFloat16) {
    launch<__nv_bfloat16, Targets>(group, caller);
  } else {
    launch<__half, Targets>(group, caller);
  }
}

void gram_sm80(ScalarType type, const Tensors& rows, const Tensor& targets, const Tensors& grams,
               const Tensors& crosses) {
  const Caller caller(targets);
  const Tensor dense = dense_rows(targets);
  GramGroup group{};
  group.targets = dense.data_ptr();
  group.target_stride = dense.stride(0);
  group.cols = targets.size(1);
  group.samples = targets.size(0);
  const auto flush = [&] {
    if (group.tiles > 0 && group.samples > 0) {
      if (targets.scalar_type() == ScalarType::Float) {
        launch<float>(type, group, caller);
      } else {
        launch<__nv_bfloat16>(type, group, caller);
      }
    }
    group.count = 0;
    group.tiles = 0;
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].scalar_type() != type) continue;
    GramCell& cell = group.cells[group.count++];
    set_outputs(cell, i, grams, crosses);
    cell.rows = rows[i].data_ptr();
    cell.row_stride = rows[i].stride(0);
    cell.width = rows[i].size(1);
    cell.first = group.tiles;
    group.tiles += gram_tiles(cell.width, group.cols, !grams.empty(), kTileSize);
    if (group.count == kCells) flush();
  }
  flush();
}

// float64, and bfloat16 targets of float32 rows, are refused: the reference takes them.
void gram(const Tensors& rows, const Tensor& targets, const Tensors& grams, const Tensors& crosses) {
  check_gram(rows, targets, grams, crosses);
  check_dtype({"targets"}, targets, {ScalarType::Float, ScalarType::BFloat16});
  const Tensors one = {targets};
  const Tensor& like = rows.empty() ? targets : rows[0];
  check_devices(like, {{"targets", &one}, {"rows", &rows}, {"grams", &grams}, {"crosses", &crosses}});
  Tensors dense;
  for (size_t i = 0; i < rows.size(); ++i) {
    check_dtype({"rows", static_cast<int64_t>(i)}, rows[i],
                {ScalarType::BFloat16, ScalarType::Half,
                 targets.scalar_type() == ScalarType::Float ? ScalarType::Float : ScalarType::Half});
    dense.push_back(dense_rows(rows[i]));
  }
  const auto variant = is_hopper(targets) ? gram_sm90 : gram_sm80;
  for (const ScalarType type : {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}) {
    variant(type, dense, dense_rows(targets), grams, crosses);
  }
}

}  // namespace
}  // namespace phasefast::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(phasefast_cuda, m) {
  m.def("gram(Tensor[] rows, Tensor targets, Tensor(a!)[] grams, Tensor(b!)[] crosses) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(phasefast_cuda, CUDA, m) {
  m.impl("gram", TORCH_BOX(&phasefast::cuda::gram));
}
