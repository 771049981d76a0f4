// Adaptive means of one sample, any strides, up to three spatial dimensions; capture.cpp loops over samples and
// channels.
#pragma once

#include <algorithm>
#include <array>

#include "cpu/cpu.h"

namespace phasefast {
namespace {

// Up to three spatial dimensions, missing ones of size 1 in front; bin i of k spans [i s / k, (i + 1) s / k), rounded
// out.
struct Pooling {
  int64_t channels, channel_stride;
  std::array<int64_t, 3> size{1, 1, 1}, stride{0, 0, 0}, bins{1, 1, 1};

  int64_t first(int d, int64_t bin) const { return bin * size[d] / bins[d]; }
  int64_t last(int d, int64_t bin) const { return ((bin + 1) * size[d] + bins[d] - 1) / bins[d]; }
  int64_t count() const { return bins[0] * bins[1] * bins[2]; }
};

Pooling pooling_of(const Tensor& x, int64_t pool) {
  Pooling out{x.size(1), x.stride(1)};
  const int64_t dims = x.dim() - 2;
  for (int64_t j = 0; j < dims; ++j) {
    out.size[3 - dims + j] = x.size(2 + j);
    out.stride[3 - dims + j] = x.stride(2 + j);
    out.bins[3 - dims + j] = pool;
  }
  for (int d = 2; pool == 1 && d > 0; --d) {  // one bin: dimensions that follow evenly on each other become one run
    const int64_t span = out.size[2] * out.stride[2];
    if (out.size[d - 1] != 1 && out.stride[d - 1] != span) break;
    out.size[2] *= out.size[d - 1];
    out.size[d - 1] = 1;
    if (d == 2) std::swap(out.size[0], out.size[1]), std::swap(out.stride[0], out.stride[1]);
  }
  return out;
}

constexpr int64_t kChannels = 64;  // channels that are pooled together
// Short sums in the type of the values, which go into a float64 sum before they lose digits.
constexpr int64_t kShort = 16;

template <typename X>
PHASEFAST_INLINE double sum_run(const X* from, int64_t stride, int64_t n) {
  constexpr int64_t kLanes = 32;
  double total = 0;
  int64_t i = 0;
  while (stride == 1 && i + kLanes <= n) {
    Wide<X> lanes[kLanes] = {};
    for (const int64_t stop = std::min(n - kLanes, i + (kShort - 1) * kLanes); i <= stop; i += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) lanes[j] += widen(from[i + j]);
    }
    for (int64_t half = kLanes / 2; half; half /= 2) {
      for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    }
    total += lanes[0];
  }
  for (; i < n; ++i) total += widen(from[i * stride]);
  return total;
}

// Means over the bins of one channel's plane: lines are added up into one line, which is then cut into bins.
template <typename X>
PHASEFAST_INLINE void pool_plane(const X* x, const Pooling& p, double* line, Wide<X>* mean) {
  const int64_t length = p.size[2];
  for (int64_t bin = 0; bin < p.bins[0] * p.bins[1]; ++bin) {
    const int64_t bz = bin / p.bins[1];
    const int64_t by = bin % p.bins[1];
    const int64_t lines = (p.last(0, bz) - p.first(0, bz)) * (p.last(1, by) - p.first(1, by));
    if (lines == 1 && p.bins[2] == 1) {
      *mean++ = static_cast<Wide<X>>(
          sum_run(x + p.first(0, bz) * p.stride[0] + p.first(1, by) * p.stride[1], p.stride[2], length) / length);
      continue;
    }
    for (int64_t w = 0; w < length; ++w) line[w] = 0;
    for (int64_t z = p.first(0, bz); z < p.last(0, bz); ++z) {
      for (int64_t y = p.first(1, by); y < p.last(1, by); ++y) {
        const X* from = x + z * p.stride[0] + y * p.stride[1];
        if (p.stride[2] == 1) {
          for (int64_t w = 0; w < length; ++w) line[w] += widen(from[w]);
        } else {
          for (int64_t w = 0; w < length; ++w) line[w] += widen(from[w * p.stride[2]]);
        }
      }
    }
    for (int64_t bx = 0; bx < p.bins[2]; ++bx) {
      const int64_t low = p.first(2, bx);
      const int64_t run = p.last(2, bx) - low;
      double total = 0;
      for (int64_t w = 0; w < run; ++w) total += line[low + w];
      *mean++ = static_cast<Wide<X>>(total / static_cast<double>(lines * run));
    }
  }
}

// The same for n channels that lie side by side in memory: every position adds a run of channels.
template <typename X>
PHASEFAST_INLINE void pool_channels(const X* x, const Pooling& p, int64_t n, double* sum, Wide<X>* mean) {
  const int64_t bins = p.count();
  for (int64_t bin = 0; bin < bins; ++bin) {
    const int64_t bz = bin / (p.bins[1] * p.bins[2]);
    const int64_t by = bin / p.bins[2] % p.bins[1];
    const int64_t bx = bin % p.bins[2];
    Wide<X> part[kChannels] = {};
    for (int64_t c = 0; c < n; ++c) sum[c] = 0;
    int64_t count = 0;
    for (int64_t z = p.first(0, bz); z < p.last(0, bz); ++z) {
      for (int64_t y = p.first(1, by); y < p.last(1, by); ++y) {
        for (int64_t w = p.first(2, bx); w < p.last(2, bx); ++w) {
          const X* from = x + z * p.stride[0] + y * p.stride[1] + w * p.stride[2];
          for (int64_t c = 0; c < n; ++c) part[c] += widen(from[c]);
          if (++count % kShort) continue;
          for (int64_t c = 0; c < n; ++c) {
            sum[c] += part[c];
            part[c] = 0;
          }
        }
      }
    }
    for (int64_t c = 0; c < n; ++c) sum[c] += part[c];
    for (int64_t c = 0; c < n; ++c) mean[c * bins + bin] = static_cast<Wide<X>>(sum[c] / static_cast<double>(count));
  }
}

template <typename X>
PHASEFAST_INLINE void pool_sample(const X* x, const Pooling& p, int64_t n, double* work, Wide<X>* mean) {
  if (p.channel_stride == 1) {
    pool_channels(x, p, n, work, mean);
  } else {
    for (int64_t c = 0; c < n; ++c) pool_plane(x + c * p.channel_stride, p, work, mean + c * p.count());
  }
}

#define PHASEFAST_POOL(X)                                                                                \
  PHASEFAST_CLONES void pool_any(const X* x, const Pooling& p, int64_t n, double* work, Wide<X>* mean) { \
    pool_sample(x, p, n, work, mean);                                                                    \
  }
PHASEFAST_POOL(float)
PHASEFAST_POOL(double)
PHASEFAST_POOL(BFloat16)
PHASEFAST_POOL(Half)
#undef PHASEFAST_POOL

}  // namespace
}  // namespace phasefast
