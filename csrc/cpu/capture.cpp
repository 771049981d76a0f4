// One read of an activation: pooled, shifted, cast and stored as rows, with column sums of what was stored.
// Every feature is summed by one thread, sample after sample: results do not depend on the number of threads.
#include "capture.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <type_traits>

#include "cpu/cpu.h"
#include "cpu/pool.h"

namespace phasefast {
namespace {

constexpr int64_t kSpan = 1024;        // features whose sums stay in the first cache
constexpr int64_t kTileChannels = 32;  // a transposing tile: channels by positions
constexpr int64_t kTilePositions = 256;
constexpr int64_t kGrain = 32768;  // elements that are worth a thread

// Stores kRows samples of n neighbouring features and adds them to the sums, in the order of the samples.
template <int kRows, typename X, typename R>
PHASEFAST_INLINE void store_rows(const X* __restrict__ from, int64_t from_stride, const float* __restrict__ shift,
                                 R* __restrict__ to, int64_t to_stride, double* __restrict__ sum,
                                 double* __restrict__ square, int64_t n) {
#pragma GCC ivdep  // rows of `to` do not overlap, which the compiler cannot know
  for (int64_t i = 0; i < n; ++i) {
    double total = sum[i];
    double total_square = square[i];
    const auto add = [&](int64_t r) __attribute__((always_inline)) {
      const R stored = narrow<R>(widen(from[r * from_stride + i]) - shift[i]);
      to[r * to_stride + i] = stored;
      const double value = widen(stored);
      total += value;
      total_square += value * value;
    };
    add(0);
    if constexpr (kRows == 4)
      add(1), add(2), add(3);  // an inner loop would keep the outer one from becoming vector code
    sum[i] = total;
    square[i] = total_square;
  }
}

// The same for one sample with a 16-bit type in it: short loops, each of which becomes vector code.
template <typename X, typename R>
PHASEFAST_INLINE void store_row(const X* __restrict__ from, const float* __restrict__ shift, R* __restrict__ to,
                                double* __restrict__ sum, double* __restrict__ square, int64_t n) {
  constexpr int64_t kPart = 256;
  Wide<X> shifted[kPart];
  Wide<R> stored[kPart];
  for (int64_t start = 0; start < n; start += kPart) {
    const int64_t size = std::min(kPart, n - start);
    for (int64_t i = 0; i < size; ++i) shifted[i] = widen(from[start + i]) - shift[start + i];
    for (int64_t i = 0; i < size; ++i) to[start + i] = narrow<R>(shifted[i]);
    for (int64_t i = 0; i < size; ++i) stored[i] = widen(to[start + i]);
    for (int64_t i = 0; i < size; ++i) sum[start + i] += stored[i];
    for (int64_t i = 0; i < size; ++i) square[start + i] += static_cast<double>(stored[i]) * stored[i];
  }
}

template <typename X, typename R>
PHASEFAST_INLINE void store_span(const X* from, int64_t from_stride, const float* shift, R* to, int64_t to_stride,
                                 double* sum, double* square, int64_t n, int64_t samples) {
  if constexpr (sizeof(X) < 4 || sizeof(R) < 4) {
    for (int64_t r = 0; r < samples; ++r) store_row(from + r * from_stride, shift, to + r * to_stride, sum, square, n);
    return;
  }
  int64_t r = 0;
  for (; r + 4 <= samples; r += 4) {
    store_rows<4>(from + r * from_stride, from_stride, shift, to + r * to_stride, to_stride, sum, square, n);
  }
  for (; r < samples; ++r) {
    store_rows<1>(from + r * from_stride, from_stride, shift, to + r * to_stride, to_stride, sum, square, n);
  }
}

template <typename X, typename R>
struct Store {
  static void run(const X* from, int64_t from_stride, const float* shift, R* to, int64_t to_stride, double* sum,
                  double* square, int64_t n, int64_t samples);
};

#define PHASEFAST_STORE(X, R)                                                                                          \
  PHASEFAST_CLONES void store_##X##_##R(const X* from, int64_t from_stride, const float* shift, R* to,                 \
                                        int64_t to_stride, double* sum, double* square, int64_t n, int64_t samples) {  \
    store_span(from, from_stride, shift, to, to_stride, sum, square, n, samples);                                      \
  }                                                                                                                    \
  template <>                                                                                                          \
  void Store<X, R>::run(const X* from, int64_t from_stride, const float* shift, R* to, int64_t to_stride, double* sum, \
                        double* square, int64_t n, int64_t samples) {                                                  \
    store_##X##_##R(from, from_stride, shift, to, to_stride, sum, square, n, samples);                                 \
  }
#define PHASEFAST_STORES(X)    \
  PHASEFAST_STORE(X, float)    \
  PHASEFAST_STORE(X, double)   \
  PHASEFAST_STORE(X, BFloat16) \
  PHASEFAST_STORE(X, Half)
PHASEFAST_STORES(float)
PHASEFAST_STORES(double)
PHASEFAST_STORES(BFloat16)
PHASEFAST_STORES(Half)
#undef PHASEFAST_STORES
#undef PHASEFAST_STORE

// The features of one sample as channels by positions, for any strides; other layouts by a table of offsets.
struct Layout {
  int64_t samples, sample_stride;
  int64_t channels, channel_stride;
  int64_t positions, position_stride;
  std::vector<int64_t> offsets;  // of every feature; empty where the two strides say it all
};

Layout layout_of(const Tensor& x) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  std::vector<std::pair<int64_t, int64_t>> dims;  // size, stride; neighbours that are evenly spaced are merged
  for (size_t j = 1; j < sizes.size(); ++j) {
    if (sizes[j] == 1) continue;
    if (!dims.empty() && dims.back().second == strides[j] * sizes[j]) {
      dims.back() = {dims.back().first * sizes[j], strides[j]};
    } else {
      dims.emplace_back(sizes[j], strides[j]);
    }
  }
  Layout out{sizes[0], strides[0], 1, 0, 1, 1, {}};
  if (dims.size() == 1) {
    std::tie(out.positions, out.position_stride) = dims[0];
  } else if (dims.size() == 2) {
    std::tie(out.channels, out.channel_stride) = dims[0];
    std::tie(out.positions, out.position_stride) = dims[1];
  } else if (dims.size() > 2) {
    out.offsets = {0};
    for (const auto& [size, stride] : dims) {
      std::vector<int64_t> finer;
      finer.reserve(out.offsets.size() * size);
      for (const int64_t offset : out.offsets) {
        for (int64_t j = 0; j < size; ++j) finer.push_back(offset + j * stride);
      }
      out.offsets.swap(finer);
    }
    out.positions = static_cast<int64_t>(out.offsets.size());
  }
  return out;
}

// Where the results of one cell go.
template <typename R>
struct Sink {
  const float* shift;
  R* rows;
  int64_t width;
  double *sum, *square;

  template <typename X>
  void take(const X* from, int64_t from_stride, int64_t sample, int64_t samples, int64_t feature, int64_t n) const {
    Store<X, R>::run(from, from_stride, shift + feature, rows + sample * width + feature, width, sum + feature,
                     square + feature, n, samples);
  }
};

// Features of every sample that lie side by side in memory: no copy between.
template <typename X, typename R>
void capture_dense(const X* x, const Layout& at, const Sink<R>& sink) {
  const int64_t unit = 16;
  const int64_t units = (sink.width + unit - 1) / unit;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(at.samples * unit, 1));
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    const int64_t stop = std::min(end * unit, sink.width);
    for (int64_t f = begin * unit; f < stop; f += kSpan) {
      sink.take(x + f, at.sample_stride, 0, at.samples, f, std::min(kSpan, stop - f));
    }
  });
}

// Channels by positions with any strides, tile by tile through a buffer.
template <typename X, typename R>
void capture_tiles(const X* x, const Layout& at, const Sink<R>& sink) {
  const int64_t height = std::min(at.channels, kTileChannels);
  const int64_t length = at.channels == 1 ? kSpan : kTilePositions;
  const int64_t across = (at.positions + length - 1) / length;
  const int64_t tiles = (at.channels + height - 1) / height * across;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(at.samples * height * length, 1));
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    std::vector<X> buffer(height * length);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t channel = tile / across * height;
      const int64_t position = tile % across * length;
      const int64_t channels = std::min(height, at.channels - channel);
      const int64_t n = std::min(length, at.positions - position);
      for (int64_t b = 0; b < at.samples; ++b) {
        const X* from = x + b * at.sample_stride + channel * at.channel_stride;
        if (at.offsets.empty()) {
          from += position * at.position_stride;
          for (int64_t s = 0; s < n; s += 16) {  // a few positions of all channels: each line is read once
            const int64_t few = std::min<int64_t>(16, n - s);
            for (int64_t c = 0; c < channels; ++c) {
              const X* source = from + c * at.channel_stride + s * at.position_stride;
              for (int64_t j = 0; j < few; ++j) buffer[c * length + s + j] = source[j * at.position_stride];
            }
          }
        } else {
          for (int64_t s = 0; s < n; ++s) buffer[s] = from[at.offsets[position + s]];
        }
        for (int64_t c = 0; c < channels; ++c) {
          sink.take(buffer.data() + c * length, 0, b, 1, (channel + c) * at.positions + position, n);
        }
      }
    }
  });
}

template <typename X, typename R>
void capture_pooled(const X* x, int64_t samples, int64_t sample_stride, const Pooling& p, const Sink<R>& sink) {
  const int64_t bins = p.count();
  const int64_t volume = std::max(p.size[0] * p.size[1] * p.size[2], bins);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(samples * volume, 1));
  torch::stable::parallel_for(0, p.channels, grain, [&](int64_t begin, int64_t end) {
    std::vector<Wide<X>> mean(std::min(kChannels, end - begin) * bins);
    std::vector<double> work(std::max(kChannels, p.size[2]));
    for (int64_t channel = begin; channel < end; channel += kChannels) {
      const int64_t n = std::min(kChannels, end - channel);
      for (int64_t b = 0; b < samples; ++b) {
        pool_any(x + b * sample_stride + channel * p.channel_stride, p, n, work.data(), mean.data());
        sink.take(mean.data(), 0, b, 1, channel * bins, n * bins);
      }
    }
  });
}

template <typename X, typename R>
void capture_cell(const Tensor& x, const Tensor& shift, int64_t pool, const Tensor& rows, double* sum, double* square) {
  const X* data = static_cast<const X*>(x.data_ptr());
  const std::vector<float> shifts = [&] {
    const float* from = static_cast<const float*>(shift.data_ptr());
    std::vector<float> out(shift.size(0));
    for (size_t i = 0; i < out.size(); ++i) out[i] = from[static_cast<int64_t>(i) * shift.stride(0)];
    return out;
  }();
  const Sink<R> sink{shifts.data(), static_cast<R*>(rows.data_ptr()), rows.size(1), sum, square};
  if (pool) {
    capture_pooled(data, x.size(0), x.stride(0), pooling_of(x, pool), sink);
    return;
  }
  const Layout at = layout_of(x);
  if (at.channels == 1 && at.offsets.empty() && at.position_stride == 1) {
    capture_dense(data, at, sink);
  } else {
    capture_tiles(data, at, sink);
  }
}

template <typename F>
void with_type(const Tensor& tensor, const F& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::Double:
      return body(double());
    case ScalarType::BFloat16:
      return body(BFloat16());
    default:
      return body(Half());
  }
}

void capture(const Tensors& activations, const Tensors& shifts, const std::vector<int64_t>& pools, const Tensors& rows,
             const Tensors& sums, const Tensors& squares) {
  check_capture(activations, shifts, pools, rows, sums, squares);
  for (size_t i = 0; i < activations.size(); ++i) {
    if (rows[i].numel() == 0) continue;
    with_type(activations[i], [&](auto x) {
      with_type(rows[i], [&](auto row) {
        capture_cell<decltype(x), decltype(row)>(activations[i], shifts[i], pools[i], rows[i],
                                                 static_cast<double*>(sums[i].data_ptr()),
                                                 static_cast<double*>(squares[i].data_ptr()));
      });
    });
  }
}

}  // namespace
}  // namespace phasefast

STABLE_TORCH_LIBRARY_IMPL(phasefast, CPU, m) {
  m.impl("capture", TORCH_BOX(&phasefast::capture));
}
