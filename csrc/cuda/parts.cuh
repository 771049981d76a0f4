// On the host, for kernels on Hopper: matrices taken apart into bfloat16, tensor maps of them, launches in clusters.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "hopper.cuh"
#include "hopper_layout.cuh"
#include "panel.cuh"

namespace phasefast::cuda {

constexpr int64_t kScratch = int64_t{1} << 29;  // bytes of parts at a time
constexpr int kSplitThreads = 256;

// Rows as bfloat16 parts [part, row, col], `stride` values a row, of which those beyond the columns are zero.
template <typename T>
__global__ void __launch_bounds__(kSplitThreads) parts_kernel(Source<T> from, __nv_bfloat16* to, int64_t stride) {
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

// A matrix on the device, elements of a row side by side.
struct Matrix {
  ScalarType type;
  const void* data;
  int64_t stride, rows, cols;
};

inline Matrix matrix_of(const Tensor& tensor) {
  return {tensor.scalar_type(), tensor.data_ptr(), tensor.stride(0), tensor.size(0), tensor.size(1)};
}

// Some of its rows as bfloat16 parts.
struct Parts {
  const void* data;
  int64_t rows, cols, stride, apart;  // in values
  int parts;
};

inline int parts_of(ScalarType type) {
  return type == ScalarType::Float ? kParts<float> : type == ScalarType::Half ? kParts<__half> : 1;
}

inline int64_t padded(int64_t cols) {
  return across(cols, kChunk) * kChunk;
}

inline bool usable(const Matrix& matrix) {
  return matrix.type == ScalarType::BFloat16 && matrix.stride % kChunk == 0 && matrix.stride >= matrix.cols &&
         reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0;
}

// Bytes of scratch for one row.
inline int64_t scratch_bytes(const Matrix& matrix) {
  return usable(matrix) ? 0 : 2 * parts_of(matrix.type) * padded(matrix.cols);
}

template <typename T>
void take_apart(const Matrix& matrix, int64_t begin, int64_t rows, const Parts& out, const Caller& caller) {
  const Source<T> from{static_cast<const T*>(matrix.data) + begin * matrix.stride, matrix.stride, rows, matrix.cols};
  const int64_t blocks = across(rows * out.stride / kChunk, kSplitThreads);
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(blocks, 16 * caller.processors()));
  parts_kernel<T><<<grid, kSplitThreads, 0, caller.stream()>>>(
      from, static_cast<__nv_bfloat16*>(const_cast<void*>(out.data)), out.stride);
  check(cudaGetLastError(), "parts: launch");
}

// Rows [begin, begin + rows): where they are, or taken apart into `scratch`, which moves on.
inline Parts parts_at(const Matrix& matrix, int64_t begin, int64_t rows, char*& scratch, const Caller& caller) {
  if (usable(matrix)) {
    return {static_cast<const char*>(matrix.data) + 2 * begin * matrix.stride,
            rows,
            matrix.cols,
            matrix.stride,
            rows * matrix.stride,
            1};
  }
  const int64_t stride = padded(matrix.cols);
  const Parts out{scratch, rows, matrix.cols, stride, rows * stride, parts_of(matrix.type)};
  scratch += 2 * out.parts * out.apart;
  if (matrix.type == ScalarType::Float) {
    take_apart<float>(matrix, begin, rows, out, caller);
  } else if (matrix.type == ScalarType::Half) {
    take_apart<__half>(matrix, begin, rows, out, caller);
  } else {
    take_apart<__nv_bfloat16>(matrix, begin, rows, out, caller);
  }
  return out;
}

// Boxes of so many rows. The driver's own function, asked for by name: linked to the driver, this extension would not
// load without one.
inline CUtensorMap tensor_map(const Parts& parts, int rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    check(status, "the driver's tensor maps");
    if (found != cudaDriverEntryPointSuccess) fail("this driver has no tensor maps; set PHASEFAST_SM90=0");
    return reinterpret_cast<Encode>(function);
  }();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(parts.cols), static_cast<cuuint64_t>(parts.rows),
                              static_cast<cuuint64_t>(parts.parts)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(2 * parts.stride), static_cast<cuuint64_t>(2 * parts.apart)};
  const cuuint32_t box[] = {kBox, static_cast<cuuint32_t>(rows), 1}, steps[] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(parts.data), sizes,
                                 strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) fail("tensor map of [", parts.rows, ", ", parts.cols, "]: error ", int{status});
  return map;
}

// Launches a kernel of one argument or more on Hopper, blocks in clusters.
template <typename S, typename... Arguments>
void launch_clusters(void (*kernel)(Arguments...), int64_t clusters, const Caller& caller, const Arguments&... given) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes), "shared memory");
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {S::kBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = {static_cast<unsigned>(clusters * S::kBlocks), 1, 1};
  config.blockDim = {kHopperThreads, 1, 1};
  config.dynamicSmemBytes = S::kBytes;
  config.stream = caller.stream();
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, given...), "launch");
}

}  // namespace phasefast::cuda
