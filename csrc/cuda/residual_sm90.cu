// Launches of the residual kernel for Hopper. Copies of boxes have to begin at multiples of 16 bytes
// (triton-lang/triton issue 7385), whatever column a block of targets begins at.
#include <algorithm>

#include "cuda/parts.cuh"
#include "cuda/residual_launch.h"
#include "cuda/residual_sm90_kernel.cuh"

namespace phasefast::cuda {
namespace {

static_assert(sizeof(HopperResidual) + sizeof(ResidualMaps) <= 32000);  // what a kernel takes since CUDA 12.1

__global__ void __launch_bounds__(kHopperThreads, 1)
    residual_sm90_kernel(const __grid_constant__ HopperResidual work, const __grid_constant__ ResidualMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char shared[];
  residual_sm90_body(work, maps, shared);
#endif
}

__global__ void __launch_bounds__(kPlainThreads)
    residual_sm90_reduce_kernel(const __grid_constant__ HopperResidual work) {
  residual_reduce_body(work, kPlainThreads);
}

Matrix rows_of(ScalarType type, const ResidualCell& cell, int64_t samples) {
  return {type, cell.rows, cell.row_stride, samples, cell.width};
}
Matrix weights_of(const ResidualGroup& group, const ResidualCell& cell) {
  return {ScalarType::Float, cell.weights, cell.weight_stride, cell.width, group.edges[group.blocks]};
}

// Whether a cell has the rows of the one before, as those of several penalties have.
bool same_rows(const ResidualGroup& group, int cell) {
  if (cell == 0) return false;
  const ResidualCell &own = group.cells[cell], &before = group.cells[cell - 1];
  return own.rows == before.rows && own.row_stride == before.row_stride && own.width == before.width;
}

// Rows [begin, begin + samples) of all cells.
void launch(HopperResidual& work, const ResidualMaps& maps, const Caller& caller) {
  using S = ResidualShape;
  const ResidualGroup& group = work.group;
  const int64_t clusters = caller.processors() / S::kBlocks;
  const int64_t items = work.down() * group.count;  // before they are cut into ranges
  work.tiles = all_tiles(group);
  work.ranges = residual_ranges(items, work.tiles, clusters);
  const int64_t places = group.samples * group.count * group.blocks;
  const Tensor partial = caller.scratch(work.ranges > 1 ? 2 * work.ranges * places : 0);
  work.partial = static_cast<double*>(partial.data_ptr());
  launch_clusters<S>(residual_sm90_kernel, std::min(work.items(), clusters), caller, work, maps);
  if (work.ranges == 1) return;
  const int64_t blocks = std::min<int64_t>(across(places, kPlainThreads), 8 * caller.processors());
  residual_sm90_reduce_kernel<<<static_cast<unsigned>(blocks), kPlainThreads, 0, caller.stream()>>>(work);
  check(cudaGetLastError(), "residual: reduction");
}

}  // namespace

void residual_sm90(ScalarType type, const ResidualGroup& all, const Caller& caller) {
  int64_t fixed = 0, each = 0, places = 0;
  for (int i = 0; i < all.count; ++i) {
    const Matrix weights = weights_of(all, all.cells[i]);
    fixed += halves_bytes(weights) * weights.rows;
    each += same_rows(all, i) ? 0 : halves_bytes(rows_of(type, all.cells[i], all.samples));
    places += largest_places(weights.cols) + largest_places(weights.rows);
  }
  const int64_t most = std::max<int64_t>(kScratch / each, ResidualShape::kSize.height);
  const Tensor largest = no_largest(places, caller), kept = caller.scratch(across(fixed, sizeof(float)));
  uint32_t* next = static_cast<uint32_t*>(largest.data_ptr());
  char* place = static_cast<char*>(kept.data_ptr());
  const uint32_t* features[kResidualCells];
  ResidualMaps maps{};
  maps.row_parts = halves_of(type);
  for (int i = 0; i < all.count; ++i) {
    const Matrix weights = weights_of(all, all.cells[i]);
    features[i] = same_rows(all, i) ? features[i - 1]
                                    : largest_of(rows_of(type, all.cells[i], all.samples), nullptr, next, caller);
    maps.largest[i] = largest_of(weights, features[i], next, caller);
    const Parts parts = halves(weights, features[i], maps.largest[i], place, caller);
    maps.weights[i] = tensor_map(parts, ResidualShape::kDepth);
  }
  for (int64_t begin = 0; begin < all.samples; begin += most) {
    HopperResidual work{all, 0, 1, nullptr};
    work.group.samples = std::min(most, all.samples - begin);
    work.group.targets += begin * all.target_stride;
    const Tensor held = caller.scratch(across(each * work.group.samples, sizeof(float)));
    char* scratch = static_cast<char*>(held.data_ptr());
    for (int i = 0; i < all.count; ++i) {
      const Matrix rows = rows_from(rows_of(type, all.cells[i], all.samples), begin, work.group.samples);
      maps.rows[i] =
          same_rows(all, i) ? maps.rows[i - 1] : tensor_map(halves(rows, nullptr, features[i], scratch, caller), kBox);
      work.group.cells[i].errors += begin;
      work.group.cells[i].hits += begin;
    }
    launch(work, maps, caller);
  }
}

}  // namespace phasefast::cuda
