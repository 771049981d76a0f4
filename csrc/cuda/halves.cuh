// Numbers as sums of float16 parts, for kernels on Hopper. A float32 number is the sum of two, but for its last bits,
// once its column is scaled by a power of two; three products of parts then have float32's accuracy (Ootomo & Yokota,
// arXiv 2203.03341). Runs on the CPU too: tests/stand_in/test_halves.py.
#pragma once

#include <cstring>

#include "panel.cuh"

namespace phasefast::cuda {

constexpr int kPlainThreads = 256;  // of kernels without products
constexpr int kTop = 14;            // the largest of a column is scaled to [2^14, 2^15): float16 ends at 2^16
constexpr int kBias = 127;          // of float32's exponent
constexpr uint32_t kSizeBits = 0x7fffffff, kInfinite = 0x7f800000;  // all but the sign; from there on no number

// Parts of a number: bfloat16 and float16 are one, whatever its scale.
template <typename T>
constexpr int kHalves = sizeof(T) == 4 ? 2 : 1;

// Products that count are those of parts 0 and 0, 0 and 1, 1 and 0: what is left out is 2^-22 of the whole at most.
constexpr int kSmallestOrder = 1;

PHASEFAST_BOTH float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
PHASEFAST_BOTH uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Two to a power from -126 to 127.
PHASEFAST_BOTH float power(int exponent) {
  return from_bits(static_cast<uint32_t>(exponent + kBias) << 23);
}

// The power of two by which a column is scaled back, given the bits of its largest magnitude.
PHASEFAST_BOTH int back_exponent(uint32_t largest) {
  const int wanted = static_cast<int>(largest >> 23) - kBias - kTop;
  return wanted > -kBias + 1 ? wanted : -kBias + 1;
}

// Powers of two that a column is multiplied by, and by which it is scaled back.
struct Scale {
  float by, back;
};
PHASEFAST_BOTH Scale scale_of(uint32_t largest) {
  const int back = back_exponent(largest);
  return {power(-back), power(back)};
}

// A value times two to a power from -252 to 252: by halves, so that it leaves float32 only where the product does.
PHASEFAST_BOTH float scaled(float value, int exponent) {
  const int half = exponent / 2;
  return value * power(half) * power(exponent - half);
}

// A matrix whose rows, maybe, are scaled back before anything else: `rows` are the largest of what they are multiplied
// with, a column each. `cols`: the largest of its own columns.
template <typename T>
struct Scaled {
  Source<T> from;
  const uint32_t* rows;  // or none
  const uint32_t* cols;

  PHASEFAST_DEVICE void load(float (&out)[kChunk], int64_t row, int64_t col, bool aligned) const {
    Chunk<T> chunk;
    chunk.load(from, row, col, aligned);
    const float back = rows ? scale_of(rows[row]).back : 1.0f;
    PHASEFAST_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      out[i] = widened(chunk.packs[i / Chunk<T>::kPack].values[i % Chunk<T>::kPack]) * back;
    }
  }
};

// How the largest of columns are found: a block of threads takes 32 chunks of columns and every `down`-th row of theirs
// for each of its eight warps.
struct LargestGrid {
  static constexpr int kLanes = 32, kWarps = kPlainThreads / kLanes, kFewest = 8;  // rows of a warp
  int64_t across, down;                                                            // blocks

  static PHASEFAST_BOTH LargestGrid of(int64_t rows, int64_t cols, int64_t blocks) {
    const int64_t wide = cuda::across(cols, kLanes * kChunk), most = cuda::across(rows, kWarps * kFewest);
    const int64_t wanted = cuda::across(blocks, wide);
    return {wide, wanted < most ? wanted : most};
  }
};

// Raises the largest of all columns to what they hold; `shared`: kLargestBytes.
constexpr int kLargestBytes = kPlainThreads * kChunk * 4;
template <typename T>
PHASEFAST_DEVICE void largest_body(const Scaled<T>& matrix, uint32_t* largest, const LargestGrid& grid, char* shared) {
  using G = LargestGrid;
  uint32_t* board = reinterpret_cast<uint32_t*>(shared);  // [warp, place, lane]
  const int lane = Thread::index() % G::kLanes, warp = Thread::index() / G::kLanes;
  const int64_t first = Thread::block() % grid.across * G::kLanes * kChunk, col = first + lane * kChunk;
  const bool aligned = aligned16(matrix.from);
  uint32_t own[kChunk] = {};
  if (col < matrix.from.cols) {
    for (int64_t row = Thread::block() / grid.across * G::kWarps + warp; row < matrix.from.rows;
         row += grid.down * G::kWarps) {
      float values[kChunk];
      matrix.load(values, row, col, aligned);
      PHASEFAST_UNROLL
      for (int i = 0; i < kChunk; ++i) {
        const uint32_t size = to_bits(values[i]) & kSizeBits;
        if (size < kInfinite && size > own[i]) own[i] = size;
      }
    }
  }
  PHASEFAST_UNROLL
  for (int i = 0; i < kChunk; ++i) board[(warp * kChunk + i) * G::kLanes + lane] = own[i];
  Thread::sync();
  const int at = Thread::index();  // a column of the block's
  static_assert(kPlainThreads == G::kLanes * kChunk);
  uint32_t most = 0;
  for (int other = 0; other < G::kWarps; ++other) {
    const uint32_t size = board[(other * kChunk + at / G::kLanes) * G::kLanes + at % G::kLanes];
    if (size > most) most = size;
  }
  const int64_t mine = first + at % G::kLanes * kChunk + at / G::kLanes;
  if (mine < matrix.from.cols) raise_to(largest + mine, most);
}

// Writes the parts [part, row, col] of scaled columns, `stride` values a row, of which those beyond the columns are
// zero.
template <typename T>
PHASEFAST_DEVICE void halves_body(const Scaled<T>& matrix, __half* to, int64_t stride, int threads) {
  struct alignas(16) Pack {
    __half values[kChunk];
  };
  const int64_t chunks = stride / kChunk, count = matrix.from.rows * chunks;
  const bool aligned = aligned16(matrix.from);
  for (int64_t at = Thread::block() * threads + Thread::index(); at < count; at += Thread::blocks() * threads) {
    const int64_t row = at / chunks, col = at % chunks * kChunk;
    float values[kChunk];
    matrix.load(values, row, col, aligned);
    Pack parts[kHalves<T>];
    PHASEFAST_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      float rest = values[i] * (col + i < matrix.from.cols ? scale_of(matrix.cols[col + i]).by : 0.0f);
      PHASEFAST_UNROLL
      for (int part = 0; part < kHalves<T>; ++part) {
        parts[part].values[i] = __float2half_rn(rest);
        rest -= __half2float(parts[part].values[i]);
      }
    }
    PHASEFAST_UNROLL
    for (int part = 0; part < kHalves<T>; ++part) {
      *reinterpret_cast<Pack*>(to + (part * matrix.from.rows + row) * stride + col) = parts[part];
    }
  }
}

}  // namespace phasefast::cuda
