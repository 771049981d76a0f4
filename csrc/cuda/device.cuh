// The few device features the kernels use, so that a stand-in on the host (tests/stand_in) can run the same sources.
#pragma once

#include <cstdint>

#ifdef PHASEFAST_STAND_IN
#include "stand_in.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define PHASEFAST_BOTH __host__ __device__ __forceinline__
#define PHASEFAST_DEVICE __device__ __forceinline__
#define PHASEFAST_UNROLL _Pragma("unroll")
#define PHASEFAST_ROLL _Pragma("unroll 1")

namespace phasefast::cuda {

struct Thread {
  static PHASEFAST_DEVICE int index() { return static_cast<int>(threadIdx.x); }
  static PHASEFAST_DEVICE int64_t block() { return blockIdx.x; }
  static PHASEFAST_DEVICE int64_t blocks() { return gridDim.x; }
  static PHASEFAST_DEVICE void sync() { __syncthreads(); }
  static PHASEFAST_DEVICE void converge() { __syncwarp(); }
};

PHASEFAST_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes to shared memory, of which the first `bytes` are read and the rest is zero (PTX ISA, cp.async).
PHASEFAST_DEVICE void copy_async(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
PHASEFAST_DEVICE void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all but the `pending` latest groups of copies of this thread are there.
template <int pending>
PHASEFAST_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit values, row l % 8 of matrix l / 8 at lane l's address (PTX ISA, ldmatrix).
PHASEFAST_DEVICE void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
PHASEFAST_DEVICE void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// A sum in global memory whose old value is not waited for (atomicAdd would ask first which memory it is).
PHASEFAST_DEVICE void add_to(float* place, float value) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(place)), "f"(value) : "memory");
}
PHASEFAST_DEVICE void add_to(double* place, double value) {
  asm volatile("red.global.add.f64 [%0], %1;" ::"l"(__cvta_generic_to_global(place)), "d"(value) : "memory");
}

// The larger of it and a number in global memory.
PHASEFAST_DEVICE void raise_to(uint32_t* place, uint32_t value) {
  asm volatile("red.global.max.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(place)), "r"(value) : "memory");
}

// The value of the lane whose index differs by `mask`.
template <typename T>
PHASEFAST_DEVICE T shuffle(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// sum [16, 8] += left [16, 16] right [16, 8] in bfloat16 with float32 sums (PTX ISA, mma.m16n8k16).
PHASEFAST_DEVICE void multiply_add(float (&sum)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

}  // namespace phasefast::cuda
#endif

namespace phasefast::cuda {

PHASEFAST_BOTH int64_t across(int64_t size, int64_t side) {
  return (size + side - 1) / side;
}

PHASEFAST_DEVICE float widened(float x) {
  return x;
}
PHASEFAST_DEVICE float widened(__half x) {
  return __half2float(x);
}
PHASEFAST_DEVICE float widened(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename T>
PHASEFAST_DEVICE T narrowed(float x) {
  return x;
}
template <>
PHASEFAST_DEVICE __half narrowed<__half>(float x) {
  return __float2half_rn(x);
}
template <>
PHASEFAST_DEVICE __nv_bfloat16 narrowed<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

}  // namespace phasefast::cuda
