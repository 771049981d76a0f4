// Where kernels for Hopper keep what: slots, boxes of panels, descriptors of factors. Plain arithmetic, proved on the
// CPU by tests/stand_in/test_gram_sm90.py.
#pragma once

#include "tile_size.cuh"

namespace phasefast::cuda {

constexpr int kGroups = 2;           // warpgroups that multiply: 64 rows of a tile each
constexpr int kBlockRows = 128;      // of a tile, that a block of threads sums up
constexpr int kHopperThreads = 384;  // a warpgroup that copies, and those that multiply
constexpr int kBox = 64;             // values of a box's row: 128 bytes, the widest swizzle
constexpr int kBoxRow = 128;         // bytes
constexpr int kSwizzleRows = 8;      // rows whose 16-byte chunks are permuted together
constexpr int kStep = 16;            // of what is summed over, in one product

// How a tile is summed up: by `blocks` of threads in a cluster, each with its own 128 rows and all columns; `depth`
// samples a stage, `slots` stages in shared memory, of up to `parts` 16-bit parts.
template <int width, int depth, int slots, int blocks, int parts>
struct Shape {
  static constexpr TileSize kSize = {blocks * kBlockRows, width};
  static constexpr int kDepth = depth, kSlots = slots, kBlocks = blocks, kParts = parts;
  static constexpr int kBoxBytes = depth * kBoxRow;
  static constexpr int kLeft = kBlockRows / kBox, kRight = width / kBox;  // boxes of a part
  static constexpr int kSlotBytes = parts * (kLeft + kRight) * kBoxBytes;
  static constexpr int kBytes = slots * kSlotBytes + 1024;  // that they can be aligned
  static constexpr int kSums = width / 2;                   // of a thread
  static_assert(kRight % blocks == 0 && kSize.height % width == 0);

  // Bytes from the start of a slot to a box of a panel.
  static PHASEFAST_BOTH constexpr int left(int part, int box) { return (part * kLeft + box) * kBoxBytes; }
  static PHASEFAST_BOTH constexpr int right(int part, int box) {
    return (parts * kLeft + part * kRight + box) * kBoxBytes;
  }
  // What arrives in a slot.
  static PHASEFAST_BOTH constexpr int stage_bytes(int left_parts, int right_parts) {
    return (left_parts * kLeft + right_parts * kRight) * kBoxBytes;
  }
};

// How many pieces to cut each of `items` into, `most` or fewer, that `clusters` end soonest: a piece takes the time of
// its share of `steps`, and of `extra` more for beginning and ending it.
inline int fastest_cut(int64_t items, int64_t steps, int extra, int64_t most, int64_t clusters) {
  int best = 1;
  int64_t least = 0;
  for (int pieces = 1; pieces <= most; ++pieces) {
    const int64_t time = across(items * pieces, clusters) * (across(steps, pieces) + extra);
    if (pieces > 1 && time >= least) continue;
    best = pieces;
    least = time;
  }
  return best;
}

// The slot of a stage, and the parity of the phase in which it is filled.
struct Turn {
  int slot = 0;
  uint32_t parity = 0;

  template <int slots>
  PHASEFAST_BOTH void next() {
    if (++slot < slots) return;
    slot = 0;
    parity ^= 1;
  }
};

// A box as a factor of products: rows of 128 bytes, swizzled. Where what is summed over lies across the rows, the next
// box of the panel, with its next 64 columns, is `box_bytes` behind (PTX ISA, matrix descriptor).
PHASEFAST_BOTH uint64_t descriptor(uint32_t address, int box_bytes) {
  const auto field = [](uint64_t bytes, int shift) { return (bytes & 0x3ffff) >> 4 << shift; };
  return field(address, 0) | field(box_bytes, 16) | field(kSwizzleRows * kBoxRow, 32) | uint64_t{1} << 62;
}

// Where a copy with 128-byte swizzle puts a value of a box.
PHASEFAST_BOTH int swizzled(int row, int col) {
  return row * kBoxRow + ((col / 8) ^ (row % kSwizzleRows)) * 16 + col % 8 * 2;
}

}  // namespace phasefast::cuda
