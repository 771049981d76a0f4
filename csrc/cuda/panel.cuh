// Panels of 128 rows or columns by 32 of what is summed over, in shared memory as bfloat16 parts, and their product.
//
// Columns of a row-major matrix make a part [kDepth][kTile], its rows make one [kTile][kDepth]. The 16-byte chunks are
// swizzled so that the eight that ldmatrix reads at once lie in different banks.
#pragma once

#include "device.cuh"

namespace phasefast::cuda {

constexpr int kTile = 128;
constexpr int kDepth = 32;     // samples of a stage
constexpr int kThreads = 256;  // 2 x 4 warps of 64 x 32
constexpr int kChunk = 8;      // values of 16 bytes of bfloat16
constexpr int kPart = kDepth * kTile;
constexpr int kMine = kPart / kChunk / kThreads;  // chunks that a thread brings

PHASEFAST_BOTH int64_t tiles_across(int64_t size) {
  return across(size, kTile);
}

// A row-major matrix from some place on, with what is left of its rows and columns.
template <typename T>
struct Source {
  const T* data;
  int64_t stride, rows, cols;
};

// Where chunk `mine` of a panel stands in the matrix and in shared memory, for a stage from `begin` on.
struct Columns {
  static constexpr int kAcross = kTile / kChunk;
  static PHASEFAST_BOTH int place(int row, int chunk) { return (row * kAcross + (chunk ^ row % 8)) * kChunk; }
  static PHASEFAST_BOTH int64_t row(int64_t begin, int mine) { return begin + mine / kAcross; }
  static PHASEFAST_BOTH int64_t col(int64_t, int mine) { return mine % kAcross * kChunk; }
};
struct Rows {
  static constexpr int kAcross = kDepth / kChunk;
  static PHASEFAST_BOTH int place(int row, int chunk) { return (row * kAcross + (chunk ^ row / 2 % 4)) * kChunk; }
  static PHASEFAST_BOTH int64_t row(int64_t, int mine) { return mine / kAcross; }
  static PHASEFAST_BOTH int64_t col(int64_t begin, int mine) { return begin + mine % kAcross * kChunk; }
};

// Parts that hold a number exactly, or as exactly as float32.
template <typename T>
constexpr int kParts = sizeof(T) == 4 ? 3 : 1;
template <>
inline constexpr int kParts<__half> = 2;

// Products of parts that are not smaller than float32's rounding.
PHASEFAST_BOTH constexpr bool part_counts(int left, int right) {
  return left + right <= 2;
}

template <typename T>
constexpr bool kIsBfloat16 = false;
template <>
inline constexpr bool kIsBfloat16<__nv_bfloat16> = true;

// Some values in a row, as they are in memory; what lies outside the matrix is zero.
template <typename T>
struct Chunk {
  struct alignas(16) Pack {
    T values[16 / sizeof(T)];
  };
  static constexpr int kPack = 16 / sizeof(T);
  Pack packs[kChunk / kPack];

  PHASEFAST_DEVICE void load(const Source<T>& from, int64_t row, int64_t col, bool aligned) {
    const T* at = from.data + row * from.stride + col;
    const bool inside = row < from.rows && col + kChunk <= from.cols;
    PHASEFAST_UNROLL
    for (int i = 0; i < kChunk / kPack; ++i) {
      if (inside && aligned) {
        packs[i] = reinterpret_cast<const Pack*>(at)[i];
        continue;
      }
      PHASEFAST_UNROLL
      for (int j = 0; j < kPack; ++j) {
        const int place = i * kPack + j;
        packs[i].values[j] = row < from.rows && col + place < from.cols ? at[place] : T();
      }
    }
  }

  // Part by part, `apart` from each other: the nearest bfloat16, then that of what is left.
  template <int parts>
  PHASEFAST_DEVICE void store(__nv_bfloat16* to, int64_t apart) const {
    struct alignas(16) Parts {
      __nv_bfloat16 values[kChunk];
    };
    Parts out[parts];
    PHASEFAST_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      float rest = widened(packs[i / kPack].values[i % kPack]);
      PHASEFAST_UNROLL
      for (int part = 0; part < parts; ++part) {
        out[part].values[i] = __float2bfloat16_rn(rest);
        rest -= __bfloat162float(out[part].values[i]);
      }
    }
    PHASEFAST_UNROLL
    for (int part = 0; part < parts; ++part) {
      *reinterpret_cast<Parts*>(to + part * apart) = out[part];
    }
  }
};

template <typename T>
PHASEFAST_DEVICE bool aligned16(const Source<T>& source) {
  return reinterpret_cast<uintptr_t>(source.data) % 16 == 0 && source.stride * sizeof(T) % 16 == 0;
}

// A panel on its way from global memory: through registers, where its numbers are taken apart.
template <typename T, typename Layout>
struct Loader {
  Source<T> source;
  bool aligned;
  Chunk<T> chunks[kMine];

  PHASEFAST_DEVICE explicit Loader(const Source<T>& from) : source(from), aligned(aligned16(from)) {}

  PHASEFAST_DEVICE void load(int64_t begin) {
    PHASEFAST_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const int mine = Thread::index() + i * kThreads;
      chunks[i].load(source, Layout::row(begin, mine), Layout::col(begin, mine), aligned);
    }
  }
  PHASEFAST_DEVICE void store(__nv_bfloat16* panel) {
    PHASEFAST_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const int mine = Thread::index() + i * kThreads;
      chunks[i].template store<kParts<T>>(panel + Layout::place(mine / Layout::kAcross, mine % Layout::kAcross), kPart);
    }
  }

  // The way past the registers, for numbers that need no taking apart, in aligned rows.
  PHASEFAST_DEVICE void copy(int64_t begin, __nv_bfloat16* panel) const {
    PHASEFAST_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const int mine = Thread::index() + i * kThreads;
      const int64_t row = Layout::row(begin, mine), col = Layout::col(begin, mine);
      const int64_t left = row < source.rows ? source.cols - col : 0;
      const int there = static_cast<int>(left < 0 ? 0 : left < kChunk ? left : kChunk);
      const T* from = there ? source.data + row * source.stride + col : source.data;
      copy_async(panel + Layout::place(mine / Layout::kAcross, mine % Layout::kAcross), from,
                 there * static_cast<int>(sizeof(T)));
    }
  }
};

constexpr int kTileStride = kTile + 8;  // keeps the eight rows that a warp writes at once in different banks
constexpr int kTileBytes = kTile * kTileStride * 4;

// A thread's share of a 128 x 128 tile: 4 x 4 blocks of 16 x 8 of its warp's 64 x 32.
struct Accumulator {
  float sum[4][4][4] = {};

  // Lays the tile out in shared memory, [kTile][kTileStride], when nobody reads panels there any more.
  PHASEFAST_DEVICE void spread(float* tile) const {
    struct alignas(8) Pair {
      float values[2];
    };
    const int lane = Thread::index() % 32, warp = Thread::index() / 32;
    Thread::sync();
    PHASEFAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      PHASEFAST_UNROLL
      for (int j = 0; j < 4; ++j) {
        PHASEFAST_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = warp / 4 * 64 + i * 16 + lane / 4 + half * 8;
          const int col = warp % 4 * 32 + j * 8 + lane % 4 * 2;
          *reinterpret_cast<Pair*>(tile + row * kTileStride + col) = {sum[i][j][2 * half], sum[i][j][2 * half + 1]};
        }
      }
    }
    Thread::sync();
  }
};

// The 16 x 16 block of the left operand at row m and depth k.
PHASEFAST_DEVICE void left_block(uint32_t (&out)[4], const __nv_bfloat16* panel, int m, int k, Columns) {
  const int lane = Thread::index() % 32;
  load_matrices_transposed(out, panel + Columns::place(k + lane % 8 + lane / 16 * 8, m / kChunk + lane / 8 % 2));
}
PHASEFAST_DEVICE void left_block(uint32_t (&out)[4], const __nv_bfloat16* panel, int m, int k, Rows) {
  const int lane = Thread::index() % 32;
  load_matrices(out, panel + Rows::place(m + lane % 16, k / kChunk + lane / 16));
}

// The 16 x 16 block of the right operand at depth k and column n, as two blocks of 8 columns.
PHASEFAST_DEVICE void right_block(uint32_t (&out)[4], const __nv_bfloat16* panel, int k, int n, Columns) {
  const int lane = Thread::index() % 32;
  load_matrices_transposed(out, panel + Columns::place(k + lane % 8 + lane / 8 % 2 * 8, n / kChunk + lane / 16));
}
PHASEFAST_DEVICE void right_block(uint32_t (&out)[4], const __nv_bfloat16* panel, int k, int n, Rows) {
  const int lane = Thread::index() % 32;
  load_matrices(out, panel + Rows::place(n + lane % 8 + lane / 16 * 8, k / kChunk + lane / 8 % 2));
}

// Adds the product of one stage to the sums of `count` of a warp's four blocks of 16 rows. Products of parts that are
// smaller than float32's rounding are left out.
template <typename LeftLayout, typename RightLayout, int left_parts, int right_parts, int count>
PHASEFAST_DEVICE void multiply_blocks(const __nv_bfloat16* left, const __nv_bfloat16* right, int first,
                                      float (&sum)[count][4][4]) {
  const int warp = Thread::index() / 32;
  PHASEFAST_ROLL  // fragments of one step at a time, or they do not fit into the registers
      for (int k = 0; k < kDepth; k += 16) {
    PHASEFAST_UNROLL
    for (int other = right_parts - 1; other >= 0; --other) {  // the smallest products first
      uint32_t b[4][2];
      PHASEFAST_UNROLL
      for (int j = 0; j < 2; ++j) {
        uint32_t four[4];
        right_block(four, right + other * kPart, k, warp % 4 * 32 + j * 16, RightLayout());
        b[2 * j][0] = four[0];
        b[2 * j][1] = four[1];
        b[2 * j + 1][0] = four[2];
        b[2 * j + 1][1] = four[3];
      }
      PHASEFAST_UNROLL
      for (int i = 0; i < count; ++i) {
        PHASEFAST_UNROLL
        for (int part = left_parts - 1; part >= 0; --part) {
          if (!part_counts(part, other)) continue;
          uint32_t a[4];
          left_block(a, left + part * kPart, warp / 4 * 64 + (first + i) * 16, k, LeftLayout());
          PHASEFAST_UNROLL
          for (int j = 0; j < 4; ++j) multiply_add(sum[i][j], a, b[j]);
        }
      }
    }
  }
}

// sum += the product of one stage. Sums of several parts start anew with every stage and are added up rounded, half of
// them at a time: the tensor cores cut off.
template <typename LeftLayout, typename RightLayout, int left_parts, int right_parts>
PHASEFAST_DEVICE void multiply_panels(const __nv_bfloat16* left, const __nv_bfloat16* right, Accumulator& sum) {
  if constexpr (left_parts * right_parts == 1) {
    multiply_blocks<LeftLayout, RightLayout, 1, 1>(left, right, 0, sum.sum);
  } else {
    PHASEFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      float own[2][4][4] = {};
      multiply_blocks<LeftLayout, RightLayout, left_parts, right_parts>(left, right, 2 * half, own);
      PHASEFAST_UNROLL
      for (int i = 0; i < 32; ++i) sum.sum[2 * half + i / 16][i / 4 % 4][i % 4] += own[i / 16][i / 4 % 4][i % 4];
    }
  }
}

// Two panels at a time over [begin, end) of what is summed over: rows or columns of `left`, columns or rows of
// `right`, whichever lie across it.
template <typename Left, typename Right, typename LeftLayout, typename RightLayout = Columns>
struct Pipeline {
  static constexpr bool kCopies = kIsBfloat16<Left> && kIsBfloat16<Right>;
  static constexpr int kSlots = kCopies ? 4 : 2;
  static constexpr int kSlot = (kParts<Left> + kParts<Right>)*kPart;  // values of a slot
  static constexpr int kPanels = kSlots * kSlot * 2;
  static constexpr int kBytes = kPanels > kTileBytes ? kPanels : kTileBytes;

  Loader<Left, LeftLayout> left;
  Loader<Right, RightLayout> right;
  int64_t begin, end;
  __nv_bfloat16* slots;

  PHASEFAST_DEVICE Pipeline(const Source<Left>& a, const Source<Right>& b, int64_t first, int64_t last, char* shared)
      : left(a), right(b), begin(first), end(last), slots(reinterpret_cast<__nv_bfloat16*>(shared)) {}

  PHASEFAST_DEVICE __nv_bfloat16* slot(int64_t stage) const { return slots + stage % kSlots * kSlot; }

  // At least one: where there is nothing to sum over, the product is zero.
  PHASEFAST_DEVICE int64_t stages() const { return begin < end ? (end - begin + kDepth - 1) / kDepth : 1; }

  // The whole product. The first barrier keeps what lies in shared memory until all have read it.
  PHASEFAST_DEVICE Accumulator run() {
    if constexpr (kCopies) {
      if (left.aligned && right.aligned) return run_copies();
    }
    return run_registers();
  }

 private:
  // Three stages are on their way while one is multiplied.
  PHASEFAST_DEVICE Accumulator run_copies() {
    Accumulator sum;
    const int64_t count = stages();
    Thread::sync();
    for (int64_t stage = 0; stage < kSlots - 1; ++stage) copy(stage, count);
    for (int64_t stage = 0; stage < count; ++stage) {
      wait_copies<kSlots - 2>();
      Thread::sync();  // this stage is there for all, and the slot of the one before is free
      copy(stage + kSlots - 1, count);
      multiply(stage, sum);
    }
    wait_copies<0>();
    return sum;
  }

  // The next stage is on its way while one is multiplied.
  PHASEFAST_DEVICE Accumulator run_registers() {
    Accumulator sum;
    const int64_t count = stages();
    Thread::sync();
    load(0);
    store(0);
    Thread::sync();
    for (int64_t stage = 0; stage < count; ++stage) {
      const bool more = stage + 1 < count;
      if (more) load(stage + 1);  // arrives while this stage is multiplied
      multiply(stage, sum);
      if (more) store(stage + 1);
      if (more) Thread::sync();
    }
    return sum;
  }

  PHASEFAST_DEVICE void multiply(int64_t stage, Accumulator& sum) const {
    const __nv_bfloat16* panels = slot(stage);
    multiply_panels<LeftLayout, RightLayout, kParts<Left>, kParts<Right>>(panels, panels + kParts<Left> * kPart, sum);
  }

  // A group of copies for every stage, an empty one past the last: so groups can be counted.
  PHASEFAST_DEVICE void copy(int64_t stage, int64_t count) const {
    if (stage < count) {
      left.copy(begin + stage * kDepth, slot(stage));
      right.copy(begin + stage * kDepth, slot(stage) + kPart);
    }
    commit_copies();
  }
  PHASEFAST_DEVICE void load(int64_t stage) {
    left.load(begin + stage * kDepth);
    right.load(begin + stage * kDepth);
  }
  PHASEFAST_DEVICE void store(int64_t stage) {
    left.store(slot(stage));
    right.store(slot(stage) + kParts<Left> * kPart);
  }
};

}  // namespace phasefast::cuda
