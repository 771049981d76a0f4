// On the host, for kernels on Hopper: matrices as float16 parts, tensor maps of them, launches in clusters.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "halves.cuh"
#include "hopper.cuh"
#include "hopper_layout.cuh"

namespace phasefast::cuda {

constexpr int64_t kScratch = int64_t{1} << 30;  // bytes of parts at a time
constexpr int64_t kSpare = 256;                 // columns: tiles read the largest of some that are not there

template <typename T>
__global__ void __launch_bounds__(kPlainThreads) largest_kernel(Scaled<T> matrix, uint32_t* largest, LargestGrid grid) {
  __shared__ __align__(16) char shared[kLargestBytes];
  largest_body(matrix, largest, grid, shared);
}

template <typename T>
__global__ void __launch_bounds__(kPlainThreads) halves_kernel(Scaled<T> matrix, __half* to, int64_t stride) {
  halves_body(matrix, to, stride, kPlainThreads);
}

// The same rows, `stride` values apart, a multiple of kChunk.
template <typename T>
__global__ void __launch_bounds__(kPlainThreads) copy_kernel(Source<T> from, T* to, int64_t stride) {
  const int64_t chunks = stride / kChunk, count = from.rows * chunks;
  for (int64_t at = Thread::block() * kPlainThreads + Thread::index(); at < count;
       at += Thread::blocks() * kPlainThreads) {
    const int64_t row = at / chunks, col = at % chunks * kChunk;
    Chunk<T> chunk;
    chunk.load(from, row, col, aligned16(from));
    chunk.template store<1>(to + row * stride + col, 0);
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

// Its rows [begin, begin + rows).
inline Matrix rows_from(Matrix matrix, int64_t begin, int64_t rows) {
  const int64_t size = matrix.type == ScalarType::Float ? 4 : 2;
  matrix.data = static_cast<const char*>(matrix.data) + size * begin * matrix.stride;
  matrix.rows = rows;
  return matrix;
}

// A matrix as kernels for Hopper take it: [part, row, column] of 16-bit values.
struct Parts {
  const void* data;
  int64_t rows, cols, stride, apart;  // in values
  int parts;
  CUtensorMapDataType type;
};

inline int halves_of(ScalarType type) {
  return type == ScalarType::Float ? kHalves<float> : 1;
}

inline int64_t padded(int64_t cols) {
  return across(cols, kChunk) * kChunk;
}

// Whether copies by the tensor memory accelerator can read a bfloat16 matrix where it is.
inline bool usable(const Matrix& matrix) {
  return matrix.stride % kChunk == 0 && matrix.stride >= matrix.cols &&
         reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0;
}

// Bytes of scratch for one row, of bfloat16 that stays what it is, or of float16 parts.
inline int64_t whole_bytes(const Matrix& matrix) {
  return usable(matrix) ? 0 : 2 * padded(matrix.cols);
}
inline int64_t halves_bytes(const Matrix& matrix) {
  return 2 * halves_of(matrix.type) * padded(matrix.cols);
}

// Blocks of threads for so many chunks, some for each thread.
inline unsigned blocks_for(int64_t chunks, const Caller& caller) {
  return static_cast<unsigned>(std::min<int64_t>(across(chunks, kPlainThreads), 16 * caller.processors()));
}

// A bfloat16 matrix where it is, or copied into `scratch`, which moves on.
inline Parts whole_parts(const Matrix& matrix, char*& scratch, const Caller& caller) {
  Parts out{matrix.data,
            matrix.rows,
            matrix.cols,
            matrix.stride,
            matrix.rows * matrix.stride,
            1,
            CU_TENSOR_MAP_DATA_TYPE_BFLOAT16};
  if (usable(matrix)) return out;
  out.data = scratch;
  out.stride = padded(matrix.cols);
  out.apart = matrix.rows * out.stride;
  scratch += matrix.rows * whole_bytes(matrix);
  copy_kernel<__nv_bfloat16>
      <<<blocks_for(matrix.rows * out.stride / kChunk, caller), kPlainThreads, 0, caller.stream()>>>(
          {static_cast<const __nv_bfloat16*>(matrix.data), matrix.stride, matrix.rows, matrix.cols},
          static_cast<__nv_bfloat16*>(const_cast<void*>(out.data)), out.stride);
  check(cudaGetLastError(), "parts: copy");
  return out;
}

// Calls launch(matrix) with what the matrix holds.
template <typename F>
void with_scaled(const Matrix& matrix, const uint32_t* rows, const uint32_t* cols, const F& launch) {
  const auto as = [&](auto like) {
    using T = decltype(like);
    launch(Scaled<T>{{static_cast<const T*>(matrix.data), matrix.stride, matrix.rows, matrix.cols}, rows, cols});
  };
  if (matrix.type == ScalarType::Float) {
    as(float());
  } else if (matrix.type == ScalarType::Half) {
    as(__half());
  } else {
    as(__nv_bfloat16());
  }
  check(cudaGetLastError(), "parts: launch");
}

// Places for the largest of a matrix's columns.
inline int64_t largest_places(int64_t cols) {
  return across(cols, kSpare) * kSpare;
}

// Zeros for the largest of the columns of some matrices.
inline Tensor no_largest(int64_t places, const Caller& caller) {
  Tensor zeros = caller.scratch(places);
  if (places) check(cudaMemsetAsync(zeros.data_ptr(), 0, sizeof(uint32_t) * places, caller.stream()), "parts: largest");
  return zeros;
}

// The largest of its columns, at `place`, which moves on and holds zeros; `rows`: see Scaled.
inline const uint32_t* largest_of(const Matrix& matrix, const uint32_t* rows, uint32_t*& place, const Caller& caller) {
  uint32_t* largest = place;
  place += largest_places(matrix.cols);
  const LargestGrid grid = LargestGrid::of(matrix.rows, matrix.cols, 8 * caller.processors());
  with_scaled(matrix, rows, nullptr, [&](const auto& scaled) {
    const unsigned blocks = static_cast<unsigned>(grid.across * grid.down);
    largest_kernel<<<blocks, kPlainThreads, 0, caller.stream()>>>(scaled, largest, grid);
  });
  return largest;
}

// A matrix taken apart into `scratch`, which moves on.
inline Parts halves(const Matrix& matrix, const uint32_t* rows, const uint32_t* cols, char*& scratch,
                    const Caller& caller) {
  const int64_t stride = padded(matrix.cols);
  const Parts out{scratch,
                  matrix.rows,
                  matrix.cols,
                  stride,
                  matrix.rows * stride,
                  halves_of(matrix.type),
                  CU_TENSOR_MAP_DATA_TYPE_FLOAT16};
  scratch += matrix.rows * halves_bytes(matrix);
  with_scaled(matrix, rows, cols, [&](const auto& scaled) {
    __half* to = static_cast<__half*>(const_cast<void*>(out.data));
    const unsigned blocks = blocks_for(matrix.rows * stride / kChunk, caller);
    halves_kernel<<<blocks, kPlainThreads, 0, caller.stream()>>>(scaled, to, stride);
  });
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
  const CUresult status = encode(&map, parts.type, 3, const_cast<void*>(parts.data), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
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
