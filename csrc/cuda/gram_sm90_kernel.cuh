// gram on Hopper's tensor cores (compute capability 9.0), for numbers that are sums of bfloat16 parts.
//
// One warpgroup copies panels of both factors into a ring of slots, two multiply them; a cluster of two shares the
// right panel where numbers are bfloat16 themselves. Both factors are row-major in samples, which is the layout that
// wgmma takes transposed, so nothing is turned. Sums of parts start anew with every stage, smallest products first, and
// are added up rounded: the tensor cores cut off.
#pragma once

#include <type_traits>

#include "gram_sm90_layout.cuh"
#include "hopper.cuh"
#include "panel.cuh"
#include "wgmma.cuh"

namespace phasefast::cuda {

struct GramMaps {
  CUtensorMap rows[kCells], targets;  // [part, sample, column]
  int row_parts, target_parts;
};

// An item as a block of threads sees it.
struct HopperItem {
  GramTile tile;
  int64_t begin, end;
  int right_parts;

  template <typename S>
  static PHASEFAST_DEVICE HopperItem at(const GramGroup& group, const GramMaps& maps, int64_t item) {
    const GramTile tile = gram_tile(group, item / group.splits, S::kSize);
    const int split = static_cast<int>(item % group.splits);
    return {tile, split_begin(group.samples, group.splits, split, S::kDepth),
            split_begin(group.samples, group.splits, split + 1, S::kDepth),
            tile.cross ? maps.target_parts : maps.row_parts};
  }
};

template <typename S>
struct Ring {
  char* slots;
  Barrier *full, *empty;

  // Barriers are started by one thread, for all to see after the cluster's next barrier.
  PHASEFAST_DEVICE void start() {
    for (int slot = 0; slot < S::kSlots; ++slot) {
      full[slot].start(1);
      empty[slot].start(S::kBlocks * kGroups * 4);  // a lane of every warp that multiplies
    }
    publish_barriers();
  }
  PHASEFAST_DEVICE char* slot(int at) const { return slots + at * S::kSlotBytes; }
  // By all warps that multiply.
  PHASEFAST_DEVICE void release(int at) {
    if (Thread::index() % 32) return;
    PHASEFAST_UNROLL
    for (int block = 0; block < S::kBlocks; ++block) empty[at].arrive(block);
  }
};

// The thread that copies.
template <typename S>
PHASEFAST_DEVICE void produce(const GramGroup& group, const GramMaps& maps, Ring<S> ring, int rank, int64_t first,
                              int64_t clusters) {
  Turn turn;
  for (int64_t item = first; item < group.tiles * group.splits; item += clusters) {
    const HopperItem at = HopperItem::at<S>(group, maps, item);
    const CUtensorMap& rows = maps.rows[at.tile.cell];
    const CUtensorMap& others = at.tile.cross ? maps.targets : rows;
    const int bytes = S::stage_bytes(maps.row_parts, at.right_parts);
    const int row = static_cast<int>(at.tile.row) + rank * kBlockRows, col = static_cast<int>(at.tile.col);
    for (int64_t begin = at.begin; begin < at.end; begin += S::kDepth) {
      const int sample = static_cast<int>(begin);
      Barrier& full = ring.full[turn.slot];
      char* slot = ring.slot(turn.slot);
      ring.empty[turn.slot].wait(turn.parity ^ 1);
      full.expect(bytes);
      for (int part = 0; part < maps.row_parts; ++part) {
        for (int box = 0; box < S::kLeft; ++box) {
          copy_box(slot + S::left(part, box), rows, full, row + box * kBox, sample, part);
        }
      }
      constexpr int kShare = S::kRight / S::kBlocks;
      for (int part = 0; part < at.right_parts; ++part) {
        for (int box = rank * kShare; box < (rank + 1) * kShare; ++box) {
          char* to = slot + S::right(part, box);
          if constexpr (S::kBlocks > 1) {
            copy_box(to, others, full, col + box * kBox, sample, part, (1 << S::kBlocks) - 1);
          } else {
            copy_box(to, others, full, col + box * kBox, sample, part);
          }
        }
      }
      turn.next<S::kSlots>();
    }
  }
}

// The products of one slot: of all parts whose product counts, the smallest first.
template <typename S, int left_parts, int right_parts>
PHASEFAST_DEVICE void multiply(float (&sum)[S::kSums], uint32_t slot, int group, bool add) {
  hold(sum);
  begin_products();
  PHASEFAST_UNROLL
  for (int order = left_parts + right_parts - 2; order >= 0; --order) {
    if (!part_counts(order, 0)) continue;
    PHASEFAST_UNROLL
    for (int part = 0; part < left_parts; ++part) {
      const int other = order - part;
      if (other < 0 || other >= right_parts) continue;
      const uint64_t left = descriptor(slot + S::left(part, group), S::kBoxBytes);
      const uint64_t right = descriptor(slot + S::right(other, 0), S::kBoxBytes);
      PHASEFAST_UNROLL
      for (int k = 0; k < S::kDepth / kStep; ++k) {
        const uint64_t further = k * kStep * kBoxRow >> 4;
        wgmma(sum, left + further, right + further, add);
        add = true;
      }
    }
  }
  commit_products();
}

// The same for whatever numbers of parts there are.
PHASEFAST_DEVICE void multiply_parts(float (&sum)[Split::kSums], uint32_t slot, int group, int left, int right) {
  if (left == 3) {
    multiply<Split, 3, 3>(sum, slot, group, false);
  } else if (left == 2) {
    if (right == 3) {
      multiply<Split, 2, 3>(sum, slot, group, false);
    } else if (right == 2) {
      multiply<Split, 2, 2>(sum, slot, group, false);
    } else {
      multiply<Split, 2, 1>(sum, slot, group, false);
    }
  } else if (right == 3) {
    multiply<Split, 1, 3>(sum, slot, group, false);
  } else {
    multiply<Split, 1, 1>(sum, slot, group, false);
  }
}

// Two neighbouring sums of a row, where the row and they are there; `pairs`: they are aligned to 8 bytes.
struct StorePair {
  PHASEFAST_DEVICE void operator()(float* to, float a, float b, int64_t left, bool) const {
    to[0] = a;
    if (left > 1) to[1] = b;
  }
};
struct AddPair {
  template <typename T>
  PHASEFAST_DEVICE void operator()(T* to, float a, float b, int64_t left, bool pairs) const {
    if (std::is_same_v<T, float> && pairs && left > 1) return add_pair_to(reinterpret_cast<float*>(to), a, b);
    add_to(to, static_cast<T>(a));
    if (left > 1) add_to(to + 1, static_cast<T>(b));
  }
};

// A thread's sums (PTX ISA, the accumulator of wgmma.m64nNk16) of its warpgroup's 64 rows, from `first` on.
template <typename T, typename S, typename Put>
PHASEFAST_DEVICE void put_sums(const float (&sum)[S::kSums], const GramSink& sink, int first, const Put& put) {
  const int lane = Thread::index() % 32, warp = Thread::index() / 32 % 4;
  PHASEFAST_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + warp * 16 + lane / 4 + half * 8;
    if (row >= sink.rows) continue;
    T* to = static_cast<T*>(sink.data) + row * sink.stride + lane % 4 * 2;
    const bool pairs = reinterpret_cast<uintptr_t>(to) % 8 == 0;
    PHASEFAST_UNROLL
    for (int i = 0; i < S::kSums / 4; ++i) {
      const int64_t left = sink.cols - i * 8 - lane % 4 * 2;
      if (left > 0) put(to + i * 8, sum[4 * i + 2 * half], sum[4 * i + 2 * half + 1], left, pairs);
    }
  }
}
template <typename S>
PHASEFAST_DEVICE void put_sums(const float (&sum)[S::kSums], const GramSink& sink, int first) {
  if (sink.wide) {
    put_sums<double, S>(sum, sink, first, AddPair());
  } else if (sink.fresh) {
    put_sums<float, S>(sum, sink, first, StorePair());
  } else {
    put_sums<float, S>(sum, sink, first, AddPair());
  }
}

// Adds up stages of parts: each stage's sums, which the tensor cores cut off, to rounded ones.
PHASEFAST_DEVICE void add_stages(float (&total)[Split::kSums], Ring<Split> ring, Turn& turn, int stages, int own,
                                 int left_parts, int right_parts) {
  float sum[Split::kSums];
  const uint32_t slots = shared_address(ring.slots);
  for (int stage = 0; stage < stages; ++stage) {
    ring.full[turn.slot].wait(turn.parity);
    multiply_parts(sum, slots + turn.slot * Split::kSlotBytes, own, left_parts, right_parts);
    wait_products<0>();
    hold(sum);
    ring.release(turn.slot);
    PHASEFAST_UNROLL
    for (int i = 0; i < Split::kSums; ++i) total[i] += sum[i];
    turn.next<Split::kSlots>();
  }
}

// Adds up stages of bfloat16: the products of one are on their way while those of the next are begun.
PHASEFAST_DEVICE void add_stages(float (&sum)[Whole::kSums], Ring<Whole> ring, Turn& turn, int stages, int own, int,
                                 int) {
  const uint32_t slots = shared_address(ring.slots);
  int before = 0;
  for (int stage = 0; stage < stages; ++stage) {
    ring.full[turn.slot].wait(turn.parity);
    multiply<Whole, 1, 1>(sum, slots + turn.slot * Whole::kSlotBytes, own, stage > 0);
    wait_products<1>();
    if (stage > 0) ring.release(before);
    before = turn.slot;
    turn.next<Whole::kSlots>();
  }
  wait_products<0>();
  hold(sum);
  if (stages > 0) ring.release(before);
}

// A warpgroup that multiplies.
template <typename S>
PHASEFAST_DEVICE void consume(const GramGroup& group, const GramMaps& maps, Ring<S> ring, int rank, int64_t first,
                              int64_t clusters) {
  const int own = Thread::index() / 128 - 1;
  Turn turn;
  for (int64_t item = first; item < group.tiles * group.splits; item += clusters) {
    const HopperItem at = HopperItem::at<S>(group, maps, item);
    int left = at.begin < at.end ? static_cast<int>(across(at.end - at.begin, S::kDepth)) : 0;
    bool fresh = group.splits > 1;
    do {  // an empty split gives zeros
      constexpr int kWindow = S::kParts > 1 ? INT32_MAX : static_cast<int>(kPromote / S::kDepth);
      const int stages = left < kWindow ? left : kWindow;
      float sum[S::kSums] = {};
      add_stages(sum, ring, turn, stages, own, maps.row_parts, at.right_parts);
      GramSink sink = item_sink(group, at.tile, item, S::kSize);
      sink.fresh = fresh;
      put_sums<S>(sum, sink, rank * kBlockRows + own * 64);
      fresh = false;
      left -= stages;
    } while (left > 0);
  }
}

template <typename S>
PHASEFAST_DEVICE void gram_sm90_body(const GramGroup& group, const GramMaps& maps, char* shared) {
  __shared__ Barrier full[S::kSlots], empty[S::kSlots];
  char* aligned = shared + (1024 - shared_address(shared) % 1024) % 1024;
  Ring<S> ring{aligned, full, empty};
  const int rank = S::kBlocks > 1 ? Cluster::rank() : 0;
  const int64_t first = Thread::block() / S::kBlocks, clusters = Thread::blocks() / S::kBlocks;
  if (Thread::index() == 0) ring.start();
  Cluster::sync();
  if (Thread::index() < 128) {
    leave_registers<72>();
    if (Thread::index() == 0) produce(group, maps, ring, rank, first, clusters);
  } else {
    take_registers<216>();
    consume(group, maps, ring, rank, first, clusters);
  }
  Thread::converge();
  Cluster::sync();  // nobody leaves while others may still write or signal here
}

}  // namespace phasefast::cuda
