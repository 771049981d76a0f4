// The op residual for CUDA tensors: checks, and launches of the kernel that is made for the device.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/residual_launch.h"
#include "residual.h"

namespace phasefast::cuda {
namespace {

template <typename In>
__global__ void __launch_bounds__(kThreads) residual_kernel(const __grid_constant__ ResidualGroup group) {
  extern __shared__ __align__(16) char shared[];
  residual_body<In>(group, shared);
}

template <typename In>
void launch(const ResidualGroup& group, const Caller& caller) {
  const auto kernel = residual_kernel<In>;
  constexpr int kBytes = residual_shared_bytes<In>();
  static_assert(kBytes <= kSharedBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "residual: shared memory");
  const int64_t items = tiles_across(group.samples) * group.count;
  const int64_t resident = int64_t{2} * caller.processors();
  kernel<<<static_cast<unsigned>(std::min(items, resident)), kThreads, kBytes, caller.stream()>>>(group);
  check(cudaGetLastError(), "residual: launch");
}

// Whether the variant for Hopper takes these cells.
bool suits_sm90(const ResidualGroup& group) {
  const auto some = [](const ResidualCell& cell) { return cell.width > 0; };
  return group.edges[group.blocks] > 0 && std::all_of(group.cells, group.cells + group.count, some);
}

void launch_as(ScalarType type, const ResidualGroup& group, const Caller& caller, bool hopper) {
  if (group.count == 0 || group.blocks == 0 || group.samples == 0) return;
  if (hopper && suits_sm90(group)) {
    residual_sm90(type, group, caller);
  } else if (type == ScalarType::Float) {
    launch<float>(group, caller);
  } else if (type == ScalarType::BFloat16) {
    launch<__nv_bfloat16>(group, caller);
  } else {
    launch<__half>(group, caller);
  }
}

// float64, and more blocks of targets than a launch takes, are refused: the reference takes them.
void residual(const Tensors& rows, const Tensors& weights, const Tensors& offsets, const Tensor& targets,
              const std::vector<int64_t>& edges, const std::vector<bool>& classes, const Tensors& errors,
              const Tensors& hits) {
  check_residual(rows, weights, offsets, targets, edges, classes, errors, hits);
  check_dtype({"targets"}, targets, {ScalarType::Float});
  if (classes.size() > kTargetBlocks) fail("classes has ", classes.size(), " entries, expected ", kTargetBlocks);
  const Tensors one = {targets};
  check_devices(rows.empty() ? targets : rows[0], {{"targets", &one},
                                                   {"rows", &rows},
                                                   {"weights", &weights},
                                                   {"offsets", &offsets},
                                                   {"errors", &errors},
                                                   {"hits", &hits}});
  const Caller caller(targets);
  const bool hopper = is_hopper(targets);
  const Tensor expected = dense_rows(targets);
  ResidualGroup group{};
  group.blocks = static_cast<int>(classes.size());
  std::copy(edges.begin(), edges.end(), group.edges);
  std::copy(classes.begin(), classes.end(), group.classes);
  group.targets = static_cast<const float*>(expected.data_ptr());
  group.target_stride = expected.stride(0);
  group.samples = expected.size(0);
  Tensors kept;  // copies live until the launches are queued; the allocator keeps their memory for the stream
  for (const ScalarType type : {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}) {
    for (size_t i = 0; i < rows.size(); ++i) {
      check_dtype({"rows", static_cast<int64_t>(i)}, rows[i],
                  {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
      check_dtype({"weights", static_cast<int64_t>(i)}, weights[i], {ScalarType::Float});
      check_dtype({"offsets", static_cast<int64_t>(i)}, offsets[i], {ScalarType::Float});
      if (rows[i].scalar_type() != type) continue;
      const Tensor& row = kept.emplace_back(dense_rows(rows[i]));
      const int64_t row_stride = row.stride(0);
      const void* row_data = row.data_ptr();
      const Tensor& weight = kept.emplace_back(dense_rows(weights[i]));
      group.cells[group.count++] = {
          row_data,
          static_cast<const float*>(weight.data_ptr()),
          static_cast<const float*>(offsets[i].data_ptr()),
          static_cast<double*>(errors[i].data_ptr()),
          static_cast<bool*>(hits[i].data_ptr()),
          row_stride,
          weight.stride(0),
          offsets[i].stride(0),
          errors[i].stride(0),
          hits[i].stride(0),
          rows[i].size(1),
      };
      if (group.count < kResidualCells) continue;
      launch_as(type, group, caller, hopper);
      group.count = 0;
    }
    launch_as(type, group, caller, hopper);
    group.count = 0;
  }
}

}  // namespace
}  // namespace phasefast::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(phasefast_cuda, m) {
  m.def(
      "residual(Tensor[] rows, Tensor[] weights, Tensor[] offsets, Tensor targets, int[] blocks, bool[] classes, "
      "Tensor(a!)[] errors, Tensor(b!)[] hits) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(phasefast_cuda, CUDA, m) {
  m.impl("residual", TORCH_BOX(&phasefast::cuda::residual));
}
