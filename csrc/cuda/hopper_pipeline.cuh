// What kernels for Hopper share: a ring of slots that one thread fills, and two warpgroups that multiply what is there.
#pragma once

#include "halves.cuh"
#include "hopper.cuh"
#include "hopper_layout.cuh"
#include "wgmma.cuh"

namespace phasefast::cuda {

// The left factor: columns of a matrix that is row-major in what is summed over, or rows of one.
struct LeftColumns {
  static constexpr bool kTurned = true;
  static constexpr int kFurther = kStep * kBoxRow;  // bytes to the next step

  static PHASEFAST_DEVICE void copy(void* to, const CUtensorMap& map, Barrier& barrier, int64_t own, int64_t at,
                                    int part) {
    copy_box(to, map, barrier, static_cast<int>(own), static_cast<int>(at), part);
  }
};
struct LeftRows {
  static constexpr bool kTurned = false;
  static constexpr int kFurther = kStep * 2;

  static PHASEFAST_DEVICE void copy(void* to, const CUtensorMap& map, Barrier& barrier, int64_t own, int64_t at,
                                    int part) {
    copy_box(to, map, barrier, static_cast<int>(at), static_cast<int>(own), part);
  }
};

template <typename S>
struct Ring {
  char* slots;
  Barrier *full, *empty;

  // Barriers are started by one thread, for all to see after the cluster's next barrier.
  PHASEFAST_DEVICE void start() const {
    for (int slot = 0; slot < S::kSlots; ++slot) {
      full[slot].start(1);
      empty[slot].start(S::kBlocks * kGroups * 4);  // a lane of every warp that multiplies
    }
    publish_barriers();
  }
  PHASEFAST_DEVICE char* slot(int at) const { return slots + at * S::kSlotBytes; }
  // By all warps that multiply.
  PHASEFAST_DEVICE void release(int at) const {
    if (Thread::index() % 32) return;
    PHASEFAST_UNROLL
    for (int block = 0; block < S::kBlocks; ++block) empty[at].arrive(block);
  }
};

// A product that one block of a cluster helps to fill slots for: rows of the left factor and columns of the right one
// from there on, and how many parts they have.
struct Factors {
  const CUtensorMap &left, &right;
  int64_t row, col;
  int left_parts, right_parts;
};

// Fills one slot, by the thread that copies; `at`: what is summed over, from there on. Each block of the cluster copies
// its own rows of the left panel and its share of the right one, that to both blocks.
template <typename S, typename Left>
PHASEFAST_DEVICE void fill(const Ring<S>& ring, Turn& turn, int rank, const Factors& factors, int64_t at) {
  Barrier& full = ring.full[turn.slot];
  char* slot = ring.slot(turn.slot);
  ring.empty[turn.slot].wait(turn.parity ^ 1);
  full.expect(S::stage_bytes(factors.left_parts, factors.right_parts));
  for (int part = 0; part < factors.left_parts; ++part) {
    for (int box = 0; box < S::kLeft; ++box) {
      const int64_t row = factors.row + rank * kBlockRows + box * kBox;
      Left::copy(slot + S::left(part, box), factors.left, full, row, at, part);
    }
  }
  static_assert(S::kBlocks == 2);
  constexpr int kShare = S::kRight / S::kBlocks;
  constexpr uint16_t kBoth = 3;
  for (int part = 0; part < factors.right_parts; ++part) {
    for (int box = rank * kShare; box < (rank + 1) * kShare; ++box) {
      char* to = slot + S::right(part, box);
      const int col = static_cast<int>(factors.col) + box * kBox, row = static_cast<int>(at);
      copy_box(to, factors.right, full, col, row, part, kBoth);
    }
  }
  turn.next<S::kSlots>();
}

// The products of one slot: of all parts whose product counts, the smallest first.
template <typename S, typename Left, int left_parts, int right_parts>
PHASEFAST_DEVICE void multiply(float (&sum)[S::kSums], uint32_t slot, int group, bool add) {
  hold(sum);
  begin_products();
  constexpr int kOfAll = left_parts + right_parts - 2;
  PHASEFAST_UNROLL
  for (int order = kOfAll < kSmallestOrder ? kOfAll : kSmallestOrder; order >= 0; --order) {
    PHASEFAST_UNROLL
    for (int part = 0; part < left_parts; ++part) {
      const int other = order - part;
      if (other < 0 || other >= right_parts) continue;
      const uint64_t left = descriptor(slot + S::left(part, group), S::kBoxBytes);
      const uint64_t right = descriptor(slot + S::right(other, 0), S::kBoxBytes);
      PHASEFAST_UNROLL
      for (int k = 0; k < S::kDepth / kStep; ++k) {
        wgmma<Left::kTurned>(sum, left + (k * Left::kFurther >> 4), right + (k * kStep * kBoxRow >> 4), add);
        add = true;
      }
    }
  }
  commit_products();
}

// The same for whatever numbers of parts there are.
template <typename S, typename Left>
PHASEFAST_DEVICE void multiply_parts(float (&sum)[S::kSums], uint32_t slot, int group, int left, int right) {
  if (left == 2) {
    if (right == 2) {
      multiply<S, Left, 2, 2>(sum, slot, group, false);
    } else {
      multiply<S, Left, 2, 1>(sum, slot, group, false);
    }
  } else if (right == 2) {
    multiply<S, Left, 1, 2>(sum, slot, group, false);
  } else {
    multiply<S, Left, 1, 1>(sum, slot, group, false);
  }
}

// Adds up stages of parts: each stage's sums, which the tensor cores cut off, to rounded ones.
template <typename S, typename Left>
PHASEFAST_DEVICE void add_stages_of_parts(float (&total)[S::kSums], const Ring<S>& ring, Turn& turn, int stages,
                                          int own, int left_parts, int right_parts) {
  Thread::converge();  // products take whole warps
  float sum[S::kSums];
  const uint32_t slots = shared_address(ring.slots);
  for (int stage = 0; stage < stages; ++stage) {
    ring.full[turn.slot].wait(turn.parity);
    multiply_parts<S, Left>(sum, slots + turn.slot * S::kSlotBytes, own, left_parts, right_parts);
    wait_products<0>();
    hold(sum);
    ring.release(turn.slot);
    PHASEFAST_UNROLL
    for (int i = 0; i < S::kSums; ++i) total[i] += sum[i];
    turn.next<S::kSlots>();
  }
}

// Adds up stages of bfloat16: the products of one are on their way while those of the next are begun.
template <typename S, typename Left>
PHASEFAST_DEVICE void add_stages(float (&sum)[S::kSums], const Ring<S>& ring, Turn& turn, int stages, int own) {
  Thread::converge();
  const uint32_t slots = shared_address(ring.slots);
  int before = 0;
  for (int stage = 0; stage < stages; ++stage) {
    ring.full[turn.slot].wait(turn.parity);
    multiply<S, Left, 1, 1>(sum, slots + turn.slot * S::kSlotBytes, own, stage > 0);
    wait_products<1>();
    if (stage > 0) ring.release(before);
    before = turn.slot;
    turn.next<S::kSlots>();
  }
  wait_products<0>();
  hold(sum);
  if (stages > 0) ring.release(before);
}

// Calls body(item, turn) for a cluster's items of what a launch does; turns go on from one item to the next.
template <typename S, typename Work, typename F>
PHASEFAST_DEVICE void each_item(const Work& work, const F& body) {
  Turn turn;
  const int64_t first = Thread::block() / S::kBlocks, clusters = Thread::blocks() / S::kBlocks;
  for (int64_t item = first; item < work.items(); item += clusters) body(item, turn);
}

// The roles of a block of threads: produce(ring, rank) by one thread, consume(ring, rank, own) by two warpgroups.
template <typename S, typename Produce, typename Consume>
PHASEFAST_DEVICE void run_roles(char* shared, const Produce& produce, const Consume& consume) {
  __shared__ Barrier full[S::kSlots], empty[S::kSlots];
  char* aligned = shared + (1024 - shared_address(shared) % 1024) % 1024;
  Ring<S> ring{aligned, full, empty};
  const int rank = Cluster::rank();
  if (Thread::index() == 0) ring.start();
  Cluster::sync();
  if (Thread::index() < 128) {
    leave_registers<72>();
    if (Thread::index() == 0) produce(ring, rank);
  } else {
    take_registers<216>();
    consume(ring, rank, Thread::index() / 128 - 1);
  }
  Thread::converge();
  Cluster::sync();  // nobody leaves while others may still write or signal here
}

}  // namespace phasefast::cuda
