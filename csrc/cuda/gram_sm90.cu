// Launches of the gram kernel for Hopper.
#include <algorithm>

#include "cuda/gram_launch.h"
#include "cuda/gram_sm90_kernel.cuh"
#include "cuda/parts.cuh"

namespace phasefast::cuda {
namespace {

template <typename S>
__global__ void __launch_bounds__(kHopperThreads, 1)
    gram_sm90_kernel(const __grid_constant__ GramGroup group, const __grid_constant__ GramMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char shared[];
  gram_sm90_body<S>(group, maps, shared);
#endif
}

template <typename S>
__global__ void __launch_bounds__(kPlainThreads) gram_sm90_reduce_kernel(const __grid_constant__ GramGroup group) {
  gram_reduce_body(group, S::kSize, kPlainThreads);
}

template <typename S>
void launch(GramGroup& group, const GramMaps& maps, const Caller& caller) {
  const int64_t clusters = caller.processors() / S::kBlocks;
  group.splits = hopper_splits(group.tiles, group.samples, S::kSize, S::kDepth, clusters);
  Tensor partial = caller.scratch(group.splits > 1 ? group.items() * S::kSize.places() : 0), pace = caller.scratch(2);
  group.partial = static_cast<float*>(partial.data_ptr());
  group.pace = static_cast<int64_t*>(pace.data_ptr());
  check(cudaMemsetAsync(group.pace, 0, sizeof(int64_t), caller.stream()), "gram: pace");
  launch_clusters<S>(gram_sm90_kernel<S>, std::min(group.items(), clusters), caller, group, maps);
  if (group.splits == 1) return;
  const int64_t reducers = std::min<int64_t>(reduce_items(group, S::kSize), 8 * caller.processors());
  gram_sm90_reduce_kernel<S><<<static_cast<unsigned>(reducers), kPlainThreads, 0, caller.stream()>>>(group);
  check(cudaGetLastError(), "gram: reduction");
}

// At most kCells cells, whose samples are taken apart some at a time.
void gram_cells(GramGroup& group, const Tensors& rows, const Tensor& targets, const Caller& caller) {
  const int64_t samples = targets.size(0), count = static_cast<int64_t>(rows.size());
  const bool whole = rows[0].scalar_type() == ScalarType::BFloat16 && targets.scalar_type() == ScalarType::BFloat16;
  const TileSize size = whole ? Whole::kSize : Split::kSize;
  const int depth = whole ? Whole::kDepth : Split::kDepth;
  const auto bytes_of = [&](const Tensor& matrix) {
    return whole ? whole_bytes(matrix_of(matrix)) : halves_bytes(matrix_of(matrix));
  };
  int64_t bytes = bytes_of(targets), places = largest_places(group.cols);
  for (const Tensor& row : rows) {
    bytes += bytes_of(row);
    places += largest_places(row.size(1));
  }
  const int64_t most = bytes ? std::max<int64_t>(kScratch / bytes / depth, 1) * depth : samples;
  GramMaps maps{};
  maps.row_parts = halves_of(rows[0].scalar_type());
  maps.target_parts = halves_of(targets.scalar_type());
  const Tensor kept = no_largest(whole ? 0 : places, caller);
  if (!whole) {
    uint32_t* place = static_cast<uint32_t*>(kept.data_ptr());
    if (group.cols) maps.target_largest = largest_of(matrix_of(targets), nullptr, place, caller);
    for (int64_t i = 0; i < count; ++i) maps.row_largest[i] = largest_of(matrix_of(rows[i]), nullptr, place, caller);
  }
  for (int64_t begin = 0; begin < samples; begin += most) {
    group.samples = std::min(most, samples - begin);
    const Tensor held = caller.scratch(across(bytes * group.samples, sizeof(float)));
    char* scratch = static_cast<char*>(held.data_ptr());
    const auto map_of = [&](const Tensor& tensor, const uint32_t* largest) {
      const Matrix matrix = rows_from(matrix_of(tensor), begin, group.samples);
      const Parts parts =
          whole ? whole_parts(matrix, scratch, caller) : halves(matrix, nullptr, largest, scratch, caller);
      return tensor_map(parts, depth);
    };
    if (group.cols) maps.targets = map_of(targets, maps.target_largest);
    group.tiles = 0;
    for (int64_t i = 0; i < count; ++i) {
      GramCell& cell = group.cells[i];
      maps.rows[i] = map_of(rows[i], maps.row_largest[i]);
      cell.first = group.tiles;
      group.tiles += gram_tiles(cell.width, group.cols, cell.gram != nullptr, size);
    }
    if (group.tiles == 0) continue;
    if (whole) {
      launch<Whole>(group, maps, caller);
    } else {
      launch<Split>(group, maps, caller);
    }
  }
}

}  // namespace

void gram_sm90(ScalarType type, const Tensors& rows, const Tensor& targets, const Tensors& grams,
               const Tensors& crosses) {
  const Caller caller(targets);
  GramGroup group{};
  group.cols = targets.size(1);
  Tensors together;
  const auto flush = [&] {
    if (!together.empty() && targets.size(0) > 0) gram_cells(group, together, targets, caller);
    together.clear();
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].scalar_type() != type || rows[i].size(1) == 0) continue;
    group.count = static_cast<int>(together.size()) + 1;
    set_outputs(group.cells[together.size()], i, grams, crosses);
    group.cells[together.size()].width = rows[i].size(1);
    together.push_back(rows[i]);
    if (group.count == kCells) flush();
  }
  flush();
}

}  // namespace phasefast::cuda
