// Panels of 128 columns by 32 samples in shared memory, as bfloat16 parts, and the product of two of them.
//
// A part of a panel is [kDepth][kTile] bfloat16. Its 16-byte chunks are swizzled, chunk ^ (sample % 8), so that eight
// samples of one chunk, which ldmatrix reads at once, lie in different banks.
#pragma once

#include "device.cuh"

namespace phasefast::cuda {

constexpr int kTile = 128;
constexpr int kDepth = 32;     // samples of a stage
constexpr int kThreads = 256;  // 2 x 4 warps of 64 x 32
constexpr int kChunk = 8;      // values of 16 bytes of bfloat16
constexpr int kPart = kDepth * kTile;
constexpr int kMine = kPart / kChunk / kThreads;  // chunks that a thread brings

// Columns of a row-major matrix from some column on; `cols` of them exist, at least one.
template <typename T>
struct Source {
  const T* data;
  int64_t stride, cols;
};

PHASEFAST_BOTH int swizzled(int sample, int chunk) {
  return (sample * (kTile / kChunk) + (chunk ^ sample % 8)) * kChunk;
}

// Parts that hold a number exactly, or as exactly as float32.
template <typename T>
constexpr int kParts = sizeof(T) == 4 ? 3 : 1;
template <>
inline constexpr int kParts<__half> = 2;

PHASEFAST_DEVICE float widened(float x) {
  return x;
}
PHASEFAST_DEVICE float widened(__half x) {
  return __half2float(x);
}
PHASEFAST_DEVICE float widened(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

// Some values in a row, as they are in memory; what lies outside the matrix is zero.
template <typename T>
struct Chunk {
  struct alignas(16) Pack {
    T values[16 / sizeof(T)];
  };
  static constexpr int kPack = 16 / sizeof(T);
  Pack packs[kChunk / kPack];

  PHASEFAST_DEVICE void load(const Source<T>& from, int64_t sample, int64_t end, int col, bool aligned) {
    const T* at = from.data + sample * from.stride + col;
    const bool inside = sample < end && col + kChunk <= from.cols;
    PHASEFAST_UNROLL
    for (int i = 0; i < kChunk / kPack; ++i) {
      if (inside && aligned) {
        packs[i] = reinterpret_cast<const Pack*>(at)[i];
        continue;
      }
      PHASEFAST_UNROLL
      for (int j = 0; j < kPack; ++j) {
        const int place = i * kPack + j;
        packs[i].values[j] = sample < end && col + place < from.cols ? at[place] : T();
      }
    }
  }

  // Part by part: the nearest bfloat16, then that of what is left.
  template <int parts>
  PHASEFAST_DEVICE void store(__nv_bfloat16* panel, int sample, int chunk) const {
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
      *reinterpret_cast<Parts*>(panel + part * kPart + swizzled(sample, chunk)) = out[part];
    }
  }
};

template <typename T>
PHASEFAST_DEVICE bool aligned16(const Source<T>& source) {
  return reinterpret_cast<uintptr_t>(source.data) % 16 == 0 && source.stride * sizeof(T) % 16 == 0;
}

// A panel on its way from global memory: through registers, where its numbers are taken apart.
template <typename T>
struct Loader {
  Source<T> source;
  int64_t end;
  bool aligned;
  Chunk<T> chunks[kMine];

  PHASEFAST_DEVICE Loader(const Source<T>& from, int64_t stop) : source(from), end(stop), aligned(aligned16(from)) {}

  PHASEFAST_DEVICE void load(int64_t begin) {
    PHASEFAST_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const int mine = Thread::index() + i * kThreads;
      const int chunk = mine % (kTile / kChunk);
      chunks[i].load(source, begin + mine / (kTile / kChunk), end, chunk * kChunk, aligned);
    }
  }
  PHASEFAST_DEVICE void store(__nv_bfloat16* panel) {
    PHASEFAST_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const int mine = Thread::index() + i * kThreads;
      chunks[i].template store<kParts<T>>(panel, mine / (kTile / kChunk), mine % (kTile / kChunk));
    }
  }
};

// A thread's share of a 128 x 128 tile: 4 x 4 blocks of 16 x 8 of its warp's 64 x 32.
struct Accumulator {
  float sum[4][4][4] = {};

  // Gives every sum with its place in the tile, and starts again from zero.
  template <typename F>
  PHASEFAST_DEVICE void drain(const F& put) {
    const int lane = Thread::index() % 32, warp = Thread::index() / 32;
    PHASEFAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      PHASEFAST_UNROLL
      for (int j = 0; j < 4; ++j) {
        PHASEFAST_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int row = warp / 4 * 64 + i * 16 + lane / 4 + e / 2 * 8;
          const int col = warp % 4 * 32 + j * 8 + lane % 4 * 2 + e % 2;
          put(row, col, sum[i][j][e]);
          sum[i][j][e] = 0;
        }
      }
    }
  }
};

// sum += left' right of one stage. Products of parts that are smaller than float32's rounding are left out.
template <int left_parts, int right_parts>
PHASEFAST_DEVICE void multiply_panels(const __nv_bfloat16* left, const __nv_bfloat16* right, Accumulator& sum) {
  const int lane = Thread::index() % 32, warp = Thread::index() / 32;
  PHASEFAST_ROLL  // fragments of one step at a time, or they do not fit into the registers
      for (int k = 0; k < kDepth; k += 16) {
    uint32_t b[right_parts][4][2];
    PHASEFAST_UNROLL
    for (int part = 0; part < right_parts; ++part) {
      PHASEFAST_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int sample = k + lane % 8 + lane / 8 % 2 * 8;
        const int chunk = (warp % 4 * 32 + j * 16) / kChunk + lane / 16;
        uint32_t four[4];
        load_matrices_transposed(four, right + part * kPart + swizzled(sample, chunk));
        b[part][2 * j][0] = four[0];
        b[part][2 * j][1] = four[1];
        b[part][2 * j + 1][0] = four[2];
        b[part][2 * j + 1][1] = four[3];
      }
    }
    PHASEFAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      PHASEFAST_UNROLL
      for (int part = left_parts - 1; part >= 0; --part) {  // the smallest products first
        const int sample = k + lane % 8 + lane / 16 * 8;
        const int chunk = (warp / 4 * 64 + i * 16) / kChunk + lane / 8 % 2;
        uint32_t a[4];
        load_matrices_transposed(a, left + part * kPart + swizzled(sample, chunk));
        PHASEFAST_UNROLL
        for (int other = right_parts - 1; other >= 0; --other) {
          if (part + other > 2) continue;
          PHASEFAST_UNROLL
          for (int j = 0; j < 4; ++j) multiply_add(sum.sum[i][j], a, b[other][j]);
        }
      }
    }
  }
}

// Two panels, a few stages deep.
template <typename Left, typename Right>
struct Pipeline {
  static constexpr int kSlots = 2;
  static constexpr int kSlot = (kParts<Left> + kParts<Right>)*kPart;  // values of a slot
  static constexpr int kBytes = kSlots * kSlot * 2;

  Loader<Left> left;
  Loader<Right> right;
  int64_t begin, end;
  __nv_bfloat16* slots;

  PHASEFAST_DEVICE Pipeline(const Source<Left>& a, const Source<Right>& b, int64_t first, int64_t last, char* shared)
      : left(a, last), right(b, last), begin(first), end(last), slots(reinterpret_cast<__nv_bfloat16*>(shared)) {}

  PHASEFAST_DEVICE __nv_bfloat16* slot(int64_t stage) const { return slots + stage % kSlots * kSlot; }

  // Brings the first stage. The barrier also keeps the last tile's panels until all have read them.
  PHASEFAST_DEVICE void start() {
    Thread::sync();
    left.load(begin);
    right.load(begin);
    left.store(slot(0));
    right.store(slot(0) + kParts<Left> * kPart);
    Thread::sync();
  }
  // Asks for the stage after this one, whose numbers arrive while this one is multiplied.
  PHASEFAST_DEVICE void fetch(int64_t stage) {
    if (begin + (stage + 1) * kDepth >= end) return;
    left.load(begin + (stage + 1) * kDepth);
    right.load(begin + (stage + 1) * kDepth);
  }
  PHASEFAST_DEVICE void multiply(int64_t stage, Accumulator& sum) const {
    multiply_panels<kParts<Left>, kParts<Right>>(slot(stage), slot(stage) + kParts<Left> * kPart, sum);
  }
  PHASEFAST_DEVICE void advance(int64_t stage) {
    if (begin + (stage + 1) * kDepth >= end) return;
    left.store(slot(stage + 1));
    right.store(slot(stage + 1) + kParts<Left> * kPart);
    Thread::sync();
  }
};

}  // namespace phasefast::cuda
