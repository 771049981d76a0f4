// What Hopper (compute capability 9.0) has beyond device.cuh: barriers that count bytes, copies by the tensor memory
// accelerator, clusters of blocks, groups of products. Names and semantics are those of the PTX ISA.
#pragma once

#include <cuda.h>  // CUtensorMap

#include "device.cuh"

namespace phasefast::cuda {

// A barrier in shared memory that completes when so many threads and bytes as expected have arrived.
struct Barrier {
  uint64_t state;

  PHASEFAST_DEVICE uint32_t address() const { return shared_address(&state); }
  PHASEFAST_DEVICE void start(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory");
  }
  // Arrives, and has the barrier wait for bytes as well.
  PHASEFAST_DEVICE void expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
  }
  // Arrives at this barrier of a block of the cluster. Nothing was written, so no memory is waited for, as it would be
  // with the scope of the cluster.
  PHASEFAST_DEVICE void arrive(int block) {
    asm volatile(
        "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(address()),
        "r"(block)
        : "memory");
  }
  // Until the phase of that parity is over.
  PHASEFAST_DEVICE void wait(uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\nbra again;\nover:\n}\n" ::"r"(address()),
        "r"(parity)
        : "memory");
  }
};

// Makes barriers that were just started known to the copies and to the cluster.
PHASEFAST_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

struct Cluster {
  static PHASEFAST_DEVICE int rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
  }
  static PHASEFAST_DEVICE void sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
};

// The box at (col, row, part) of a tensor map, to shared memory of this block.
PHASEFAST_DEVICE void copy_box(void* to, const CUtensorMap& map, Barrier& barrier, int col, int row, int part) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(barrier.address()), "r"(col), "r"(row), "r"(part)
      : "memory");
}
// The same to the same place of all blocks of `mask` in the cluster, each with its own barrier.
PHASEFAST_DEVICE void copy_box(void* to, const CUtensorMap& map, Barrier& barrier, int col, int row, int part,
                               uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(&map), "r"(barrier.address()), "r"(col), "r"(row), "r"(part), "h"(mask)
      : "memory");
}

// A count in global memory that several blocks add to, what it has come to, and a rest of some nanoseconds.
PHASEFAST_DEVICE void add_to(int64_t* place, int64_t value) {
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(place)), "l"(value)
               : "memory");
}
PHASEFAST_DEVICE int64_t current(const int64_t* place) {
  int64_t value;
  asm volatile("ld.relaxed.gpu.global.s64 %0, [%1];" : "=l"(value) : "l"(__cvta_generic_to_global(place)) : "memory");
  return value;
}
PHASEFAST_DEVICE void pause(int nanoseconds) {
  asm volatile("nanosleep.u32 %0;" ::"r"(nanoseconds));
}

// Two neighbouring float32 sums in global memory, aligned to 8 bytes, like add_to.
PHASEFAST_DEVICE void add_pair_to(float* place, float a, float b) {
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(place)), "f"(a), "f"(b)
               : "memory");
}

// Registers of a thread: more for those that multiply, fewer for those that copy.
template <int count>
PHASEFAST_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
PHASEFAST_DEVICE void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

// Before the first product: what was done to its registers and to shared memory comes before.
PHASEFAST_DEVICE void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
PHASEFAST_DEVICE void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int pending>
PHASEFAST_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Keeps the compiler from moving sums while products of them are on their way.
template <int count>
PHASEFAST_DEVICE void hold(float (&sum)[count]) {
  PHASEFAST_UNROLL
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}

}  // namespace phasefast::cuda
