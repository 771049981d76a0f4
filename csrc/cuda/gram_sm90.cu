// Launches of the gram kernel for Hopper: numbers are taken apart, tensor maps made, tiles shared out.
#include <algorithm>

#include "cuda/gram_launch.h"
#include "cuda/gram_sm90_kernel.cuh"

namespace phasefast::cuda {
namespace {

constexpr int64_t kScratch = int64_t{1} << 29;  // bytes of parts at a time
constexpr int kSplitThreads = 256;

template <typename S>
__global__ void __launch_bounds__(kHopperThreads, 1)
    gram_sm90_kernel(const __grid_constant__ GramGroup group, const __grid_constant__ GramMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char shared[];
  gram_sm90_body<S>(group, maps, shared);
#endif
}

template <typename S>
__global__ void __launch_bounds__(kSplitThreads) gram_sm90_reduce_kernel(const __grid_constant__ GramGroup group) {
  gram_reduce_body(group, S::kSize, kSplitThreads);
}

// Rows as bfloat16 parts [part, row, col], `stride` values a row, of which those beyond the columns are zero.
template <typename T>
__global__ void __launch_bounds__(kSplitThreads) gram_parts_kernel(Source<T> from, __nv_bfloat16* to, int64_t stride) {
  const int64_t chunks = stride / kChunk, count = from.rows * chunks;
  const bool aligned = aligned16(from);
  for (int64_t at = Thread::block() * kSplitThreads + Thread::index(); at < count;
       at += Thread::blocks() * kSplitThreads) {
    const int64_t row = at / chunks, col = at % chunks * kChunk;
    Chunk<T> chunk;
    chunk.load(from, row, col, aligned);
    chunk.template store<kParts<T>>(to + row * stride + col, from.rows * stride);
  }
}

// Samples of a matrix as bfloat16 parts.
struct Parts {
  const void* data;
  int64_t rows, cols, stride, apart;  // in values
  int parts;
};

int parts_of(ScalarType type) {
  return type == ScalarType::Float ? kParts<float> : type == ScalarType::Half ? kParts<__half> : 1;
}

int64_t padded(int64_t cols) {
  return across(cols, kChunk) * kChunk;
}

bool usable(const Tensor& matrix) {
  return matrix.scalar_type() == ScalarType::BFloat16 && matrix.stride(1) == 1 && matrix.stride(0) % kChunk == 0 &&
         reinterpret_cast<uintptr_t>(matrix.data_ptr()) % 16 == 0;
}

// Bytes of scratch for one sample.
int64_t scratch_bytes(const Tensor& matrix) {
  return usable(matrix) ? 0 : 2 * parts_of(matrix.scalar_type()) * padded(matrix.size(1));
}

template <typename T>
void take_apart(const Tensor& matrix, int64_t begin, int64_t rows, const Parts& out, const Caller& caller) {
  const Source<T> from{static_cast<const T*>(matrix.data_ptr()) + begin * matrix.stride(0), matrix.stride(0), rows,
                       matrix.size(1)};
  const int64_t blocks = across(rows * out.stride / kChunk, kSplitThreads);
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(blocks, 16 * caller.processors()));
  gram_parts_kernel<T><<<grid, kSplitThreads, 0, caller.stream()>>>(
      from, static_cast<__nv_bfloat16*>(const_cast<void*>(out.data)), out.stride);
  check(cudaGetLastError(), "gram: parts");
}

// Samples [begin, begin + rows): where they are, or taken apart into `scratch`, which moves on.
Parts parts_at(const Tensor& matrix, int64_t begin, int64_t rows, char*& scratch, const Caller& caller) {
  const int64_t cols = matrix.size(1);
  const ScalarType type = matrix.scalar_type();
  if (usable(matrix)) {
    const int64_t stride = matrix.stride(0);
    return {static_cast<const char*>(matrix.data_ptr()) + 2 * begin * stride, rows, cols, stride, rows * stride, 1};
  }
  const int64_t stride = padded(cols);
  const Parts out{scratch, rows, cols, stride, rows * stride, parts_of(type)};
  scratch += 2 * out.parts * out.apart;
  if (type == ScalarType::Float) {
    take_apart<float>(matrix, begin, rows, out, caller);
  } else if (type == ScalarType::Half) {
    take_apart<__half>(matrix, begin, rows, out, caller);
  } else {
    take_apart<__nv_bfloat16>(matrix, begin, rows, out, caller);
  }
  return out;
}

// The driver's own function, asked for by name: linked to the driver, this extension would not load without one.
CUtensorMap tensor_map(const Parts& parts, int depth) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    check(status, "gram: the driver's tensor maps");
    if (found != cudaDriverEntryPointSuccess) fail("gram: this driver has no tensor maps; set PHASEFAST_SM90=0");
    return reinterpret_cast<Encode>(function);
  }();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(parts.cols), static_cast<cuuint64_t>(parts.rows),
                              static_cast<cuuint64_t>(parts.parts)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(2 * parts.stride), static_cast<cuuint64_t>(2 * parts.apart)};
  const cuuint32_t box[] = {kBox, static_cast<cuuint32_t>(depth), 1}, steps[] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(parts.data), sizes,
                                 strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) fail("gram: tensor map of [", parts.rows, ", ", parts.cols, "]: error ", int{status});
  return map;
}

template <typename S>
void launch(GramGroup& group, const GramMaps& maps, const Caller& caller) {
  static_assert(sizeof(GramGroup) + sizeof(GramMaps) <= 4000);  // kernels take 4 KiB of arguments
  const auto kernel = gram_sm90_kernel<S>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes), "gram: shared memory");
  const int64_t clusters = caller.processors() / S::kBlocks;
  group.splits = hopper_splits(group.tiles, group.samples, S::kSize, S::kDepth, static_cast<int>(clusters));
  const int64_t items = group.tiles * group.splits;
  Tensor partial = caller.scratch(group.splits > 1 ? items * S::kSize.places() : 0);
  group.partial = static_cast<float*>(partial.data_ptr());
  const unsigned blocks = static_cast<unsigned>(std::min(items, clusters) * S::kBlocks);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {S::kBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = {blocks, 1, 1};
  config.blockDim = {kHopperThreads, 1, 1};
  config.dynamicSmemBytes = S::kBytes;
  config.stream = caller.stream();
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, group, maps), "gram: launch");
  if (group.splits == 1) return;
  const unsigned reducers = static_cast<unsigned>(std::min<int64_t>(group.tiles, 8 * caller.processors()));
  gram_sm90_reduce_kernel<S><<<reducers, kSplitThreads, 0, caller.stream()>>>(group);
  check(cudaGetLastError(), "gram: reduction");
}

// At most kCells cells, whose samples are taken apart some at a time.
void gram_cells(GramGroup& group, const Tensors& rows, const Tensor& targets, const Caller& caller) {
  const int64_t samples = targets.size(0), count = static_cast<int64_t>(rows.size());
  const bool whole = rows[0].scalar_type() == ScalarType::BFloat16 && targets.scalar_type() == ScalarType::BFloat16;
  const TileSize size = whole ? Whole::kSize : Split::kSize;
  const int depth = whole ? Whole::kDepth : Split::kDepth;
  int64_t bytes = scratch_bytes(targets);
  for (const Tensor& row : rows) bytes += scratch_bytes(row);
  const int64_t most = bytes ? std::max<int64_t>(kScratch / bytes / depth, 1) * depth : samples;
  for (int64_t begin = 0; begin < samples; begin += most) {
    group.samples = std::min(most, samples - begin);
    const Tensor held = caller.scratch(across(bytes * group.samples, sizeof(float)));
    char* scratch = static_cast<char*>(held.data_ptr());
    GramMaps maps{};
    const auto map_of = [&](const Tensor& matrix) {
      return tensor_map(parts_at(matrix, begin, group.samples, scratch, caller), depth);
    };
    maps.row_parts = parts_of(rows[0].scalar_type());
    maps.target_parts = parts_of(targets.scalar_type());
    if (group.cols) maps.targets = map_of(targets);
    group.tiles = 0;
    for (int64_t i = 0; i < count; ++i) {
      GramCell& cell = group.cells[i];
      maps.rows[i] = map_of(rows[i]);
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
