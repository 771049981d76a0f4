// Launches of the capture kernels.
#include <torch/csrc/stable/library.h>

#include <climits>

#include "capture.h"
#include "cuda/capture_kernel.cuh"
#include "cuda/launch.h"

namespace phasefast::cuda {
namespace {

// Four blocks of a processor hide what waits for memory, where the registers allow them.
template <bool packed, typename In, typename Out>
__global__ void __launch_bounds__(kCaptureThreads, packed ? 1 : 4)
    capture_kernel(const __grid_constant__ Captured cell, CaptureWay way) {
  __shared__ __align__(16) char shared[kCaptureShared];
  capture_body<packed, In, Out>(cell, way, shared);
}

template <typename In, typename Out>
__global__ void __launch_bounds__(kCaptureThreads, kPooledBlocks)
    capture_pooled_kernel(const __grid_constant__ Captured cell, const __grid_constant__ Teams teams) {
  capture_pooled<In, Out>(cell, teams);
}

__global__ void __launch_bounds__(kCaptureThreads) capture_reduce_kernel(const __grid_constant__ Captured cell) {
  __shared__ __align__(16) char shared[kCaptureShared];
  capture_reduce(cell, shared);
}

template <typename In, typename Out>
void launch(const Captured& cell, const Caller& caller) {
  const CaptureWay way = capture_way(cell);
  const int64_t tiles = capture_across(cell, way);
  const int64_t most = int64_t{32} * caller.processors();
  const auto blocks = static_cast<unsigned>(std::min(tiles * cell.splits, most));
  if (way == CaptureWay::pooled) {
    capture_pooled_kernel<In, Out><<<blocks, kCaptureThreads, 0, caller.stream()>>>(cell, Teams::of(cell));
  } else {
    const auto kernel = way == CaptureWay::packed ? capture_kernel<true, In, Out> : capture_kernel<false, In, Out>;
    kernel<<<blocks, kCaptureThreads, 0, caller.stream()>>>(cell, way);
  }
  check(cudaGetLastError(), "capture: launch");
}

template <typename In>
void launch_to(ScalarType out, const Captured& cell, const Caller& caller) {
  if (out == ScalarType::Float) {
    launch<In, float>(cell, caller);
  } else if (out == ScalarType::BFloat16) {
    launch<In, __nv_bfloat16>(cell, caller);
  } else {
    launch<In, __half>(cell, caller);
  }
}

// float64 is refused: the reference takes it.
void capture(const Tensors& activations, const Tensors& shifts, const std::vector<int64_t>& pools, const Tensors& rows,
             const Tensors& sums, const Tensors& squares) {
  check_capture(activations, shifts, pools, rows, sums, squares);
  if (activations.empty()) return;
  check_devices(
      activations[0],
      {{"activations", &activations}, {"shifts", &shifts}, {"rows", &rows}, {"sums", &sums}, {"squares", &squares}});
  for (size_t i = 0; i < activations.size(); ++i) {
    const int64_t index = static_cast<int64_t>(i);
    const auto types = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half};
    check_dtype({"activations", index}, activations[i], types);
    check_dtype({"rows", index}, rows[i], types);
    if (rows[i].numel() == 0) continue;
    const Caller caller(rows[i]);
    Tensor x = activations[i];
    Captured cell{};
    cell.pool = static_cast<int>(pools[i]);
    if (!set_dimensions(cell, x.sizes().data() + 1, x.strides().data() + 1, static_cast<int>(x.dim()) - 1)) {
      x = torch::stable::contiguous(x);
      set_dimensions(cell, x.sizes().data() + 1, x.strides().data() + 1, static_cast<int>(x.dim()) - 1);
    }
    for (int j = 1; cell.pool && j < kMerged; ++j) {
      if (cell.sizes[j] <= INT_MAX) continue;
      fail(Name{"activations", index}, " has ", cell.sizes[j], " places side by side, expected less than 2^31 to pool");
    }
    const Tensor shift = torch::stable::contiguous(shifts[i]);
    cell.activations = x.data_ptr();
    cell.shift = static_cast<const float*>(shift.data_ptr());
    cell.rows = rows[i].data_ptr();
    cell.sums = static_cast<double*>(sums[i].data_ptr());
    cell.squares = static_cast<double*>(squares[i].data_ptr());
    cell.samples = x.size(0);
    cell.sample_stride = x.stride(0);
    cell.width = rows[i].size(1);
    cell.splits = capture_splits(cell, capture_way(cell), caller.processors());
    const Tensor partial = caller.scratch(cell.splits > 1 ? 4 * cell.splits * cell.width : 0);  // two float64 each
    cell.partial = static_cast<double*>(partial.data_ptr());
    if (x.scalar_type() == ScalarType::Float) {
      launch_to<float>(rows[i].scalar_type(), cell, caller);
    } else if (x.scalar_type() == ScalarType::BFloat16) {
      launch_to<__nv_bfloat16>(rows[i].scalar_type(), cell, caller);
    } else {
      launch_to<__half>(rows[i].scalar_type(), cell, caller);
    }
    if (cell.splits == 1) continue;
    const auto blocks = static_cast<unsigned>(across(cell.width, kReduced));
    capture_reduce_kernel<<<blocks, kCaptureThreads, 0, caller.stream()>>>(cell);
    check(cudaGetLastError(), "capture: reduction");
  }
}

}  // namespace
}  // namespace phasefast::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(phasefast_cuda, m) {
  m.def(
      "capture(Tensor[] activations, Tensor[] shifts, int[] pools, Tensor(a!)[] rows, Tensor(b!)[] sums, "
      "Tensor(c!)[] squares) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(phasefast_cuda, CUDA, m) {
  m.impl("capture", TORCH_BOX(&phasefast::cuda::capture));
}
