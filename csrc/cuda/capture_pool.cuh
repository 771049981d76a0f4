// Means of capture, over the windows into which PyTorch's adaptive pooling cuts the last three dimensions.
//
// A team of lanes of a warp shares a window: its lanes, or where channels are the fastest dimension the teams, read
// side by side, several samples at a time, so that many loads are on their way; a team adds up by shuffles. Teams next
// to each other take windows that lie next to each other in memory. Sums go on in float64: windows may be large.
#pragma once

#include "capture_cell.cuh"

namespace phasefast::cuda {

constexpr int kSamplesAtOnce = 4;
constexpr int kPlacesAtOnce = 4;           // of each of these samples
constexpr int kEnoughPlaces = 8;           // of a lane: with fewer, shuffles would cost more than loads
constexpr int64_t kManyThreads = 1 << 18;  // fill any GPU
constexpr int kPooledBlocks = 3;           // of a processor at least: so many registers hold what is on its way
constexpr int kSectorLanes = 8;            // read 32 bytes of float32, the least that is fetched

// Bin `bin` of `bins` over `size` places: [begin, end).
PHASEFAST_BOTH int64_t bin_begin(int64_t bin, int64_t bins, int64_t size) {
  return bin * size / bins;
}
PHASEFAST_BOTH int64_t bin_end(int64_t bin, int64_t bins, int64_t size) {
  return ((bin + 1) * size + bins - 1) / bins;
}

// Places of the widest bin of a dimension, 1 where that is not there: bins that do not divide it reach over both ends.
PHASEFAST_BOTH int64_t widest_bin(int64_t bins, int64_t size) {
  if (size == 0) return 1;
  const int64_t rest = size % bins;
  return size / bins + (rest == 0 ? 0 : bins % rest == 0 ? 1 : 2);
}

// How the threads of a block share the windows of a sample, and how a lane goes through its part of one: layer by
// layer, line by line. Lines go along the rows or down the columns, whichever makes them longer.
struct Teams {
  bool along_channels, along_rows;          // along_channels: neighbours take the next channel, else the next feature
  int lanes, count;                         // of a team, and teams of a block
  int64_t places;                           // of a lane, in the largest window
  int64_t layer_stride, line_stride, step;  // from one layer, line and place to the next

  PHASEFAST_BOTH static Teams of(const Captured& cell) {
    const int64_t height = widest_bin(cell.pool, cell.sizes[2]), width = widest_bin(cell.pool, cell.sizes[3]);
    const int64_t rows = widest_bin(cell.pool, cell.sizes[1]) * height;
    const auto in_a_row = [width](int lanes) { return phasefast::cuda::across(width, lanes); };
    Teams teams{};
    teams.along_channels = cell.sizes[0] > 1 && cell.strides[0] < cell.strides[3];
    int lanes = 1;
    if (teams.along_channels) {
      // Teams read side by side, and need no second lane but where few threads would have large windows.
      const bool few = cell.width * phasefast::cuda::across(cell.samples, kSamplesAtOnce) < kManyThreads;
      if (few && rows * in_a_row(32 / kSectorLanes) >= kEnoughPlaces) lanes = 32 / kSectorLanes;
    } else {
      while (lanes < 32 && lanes < width) lanes *= 2;
      while (lanes > kSectorLanes && rows * in_a_row(lanes) < kEnoughPlaces) lanes /= 2;
    }
    const int64_t down = cell.strides[2], right = lanes * cell.strides[3];
    teams.along_rows = in_a_row(lanes) > height;
    teams.lanes = lanes;
    teams.count = kCaptureThreads / lanes;
    teams.places = rows * in_a_row(lanes);
    teams.layer_stride = cell.strides[1];
    teams.line_stride = teams.along_rows ? down : right;
    teams.step = teams.along_rows ? right : down;
    return teams;
  }

  PHASEFAST_BOTH int64_t across(const Captured& cell) const { return phasefast::cuda::across(cell.width, count); }

  PHASEFAST_BOTH int64_t feature(const Captured& cell, int64_t team) const {
    if (!along_channels) return team;
    const int64_t channels = cell.sizes[0];
    return team % channels * (cell.width / channels) + team / channels;
  }
};

// What a lane reads of a feature's window: where that begins in a sample, the layers, lines of one and places of one of
// these; and the places of the whole window.
struct Window {
  int64_t offset, places;
  int layers, lines, line;

  static PHASEFAST_DEVICE Window of(const Captured& cell, const Teams& teams, int64_t feature, int lane) {
    int64_t offset = 0, places = 1, size[kMerged];
    PHASEFAST_UNROLL
    for (int i = kMerged - 1; i >= 1; --i) {
      size[i] = 1;
      if (cell.sizes[i] == 0) continue;
      const int64_t bin = feature % cell.pool, begin = bin_begin(bin, cell.pool, cell.sizes[i]);
      size[i] = bin_end(bin, cell.pool, cell.sizes[i]) - begin;
      places *= size[i];
      offset += begin * cell.strides[i];
      feature /= cell.pool;
    }
    offset += feature * cell.strides[0] + lane * cell.strides[3];
    const int own = lane < size[3] ? static_cast<int>(phasefast::cuda::across(size[3] - lane, teams.lanes)) : 0;
    const int layers = static_cast<int>(size[1]), rows = static_cast<int>(size[2]);
    return {offset, places, layers, teams.along_rows ? rows : own, teams.along_rows ? own : rows};
  }
};

// Ranges consist of as many samples as are read at once, but for the last.
PHASEFAST_BOTH int64_t first_pooled(const Captured& cell, int split) {
  const int64_t first = first_sample(across(cell.samples, kSamplesAtOnce), cell.splits, split) * kSamplesAtOnce;
  return first < cell.samples ? first : cell.samples;
}

// Adds up a lane's part of a window in as many samples at once as there are, of `left`.
template <typename In>
PHASEFAST_DEVICE void add_window(const Captured& cell, const Teams& teams, const Window& window, const In* from,
                                 int left, double (&sums)[kSamplesAtOnce]) {
  PHASEFAST_ROLL
  for (int layer = 0; layer < window.layers; ++layer) {
    PHASEFAST_ROLL
    for (int line = 0; line < window.lines; ++line) {
      const In* at[kSamplesAtOnce];
      PHASEFAST_UNROLL
      for (int i = 0; i < kSamplesAtOnce; ++i) {
        at[i] = from + (i < left ? i : 0) * cell.sample_stride + layer * teams.layer_stride + line * teams.line_stride;
      }
      PHASEFAST_ROLL
      for (int place = 0; place < window.line; place += kPlacesAtOnce) {
        float in[kPlacesAtOnce][kSamplesAtOnce];
        PHASEFAST_UNROLL
        for (int j = 0; j < kPlacesAtOnce; ++j) {
          PHASEFAST_UNROLL
          for (int i = 0; i < kSamplesAtOnce; ++i) {
            in[j][i] = place + j < window.line ? widened(*at[i]) : 0;
            at[i] += teams.step;
          }
        }
        PHASEFAST_UNROLL
        for (int i = 0; i < kSamplesAtOnce; ++i) {
          float some = in[0][i];
          PHASEFAST_UNROLL
          for (int j = 1; j < kPlacesAtOnce; ++j) some += in[j][i];
          sums[i] += some;
        }
      }
    }
  }
}

// Which of the samples read at once are those of a lane when its team has added up.
struct Share {
  int first, count;

  static PHASEFAST_DEVICE Share of(int lanes, int lane) {
    int first = 0, count = kSamplesAtOnce;
    for (int mask = 1; mask < lanes && count > 1; mask *= 2) {
      count /= 2;
      if (lane & mask) first += count;
    }
    return {first, lane < kSamplesAtOnce ? count : 0};
  }
};

// Adds up the sums of a team. As long as a lane has several samples it hands half of them to another lane for as many
// of the others; its first sums are those of its share.
PHASEFAST_DEVICE void add_team(int lanes, int lane, double (&sums)[kSamplesAtOnce]) {
  PHASEFAST_UNROLL
  for (int mask = 1; mask < kSamplesAtOnce; mask *= 2) {
    if (mask >= lanes) continue;
    const int half = kSamplesAtOnce / mask / 2;
    const bool later = lane & mask;
    PHASEFAST_UNROLL
    for (int i = 0; i < half; ++i) {
      const double kept = later ? sums[i + half] : sums[i], given = later ? sums[i] : sums[i + half];
      sums[i] = kept + shuffle(given, mask);
    }
  }
  for (int mask = kSamplesAtOnce; mask < lanes; mask *= 2) sums[0] += shuffle(sums[0], mask);
}

template <typename In, typename Out>
PHASEFAST_DEVICE void capture_pooled(const Captured& cell, const Teams& teams) {
  const int lane = Thread::index() % teams.lanes;
  const Share share = Share::of(teams.lanes, lane);
  const int64_t columns = teams.across(cell);
  for (int64_t item = Thread::block(); item < columns * cell.splits; item += Thread::blocks()) {
    const int64_t team = item % columns * teams.count + Thread::index() / teams.lanes;
    const int split = static_cast<int>(item / columns);
    const bool there = team < cell.width;  // teams without a window go along: all of a warp take part in shuffles
    const int64_t feature = there ? teams.feature(cell, team) : 0;
    const Window window = Window::of(cell, teams, feature, lane);
    const int64_t first = first_pooled(cell, split);
    const In* from = static_cast<const In*>(cell.activations) + window.offset + first * cell.sample_stride;
    Out* to = static_cast<Out*>(cell.rows) + (first + share.first) * cell.width + feature;
    const double part = 1.0 / static_cast<double>(window.places);
    const float shift = cell.shift[feature];
    const int own = there ? share.count : 0;
    Moments moments;
    PHASEFAST_ROLL
    for (int left = static_cast<int>(first_pooled(cell, split + 1) - first); left > 0; left -= kSamplesAtOnce) {
      double sums[kSamplesAtOnce] = {};
      add_window(cell, teams, window, from, left, sums);
      add_team(teams.lanes, lane, sums);
      PHASEFAST_UNROLL
      for (int i = 0; i < kSamplesAtOnce; ++i) {
        if (i >= own || share.first + i >= left) break;
        const Out stored = narrowed<Out>(static_cast<float>(sums[i] * part) - shift);
        to[i * cell.width] = stored;
        moments.add(widened(stored));
      }
      from += kSamplesAtOnce * cell.sample_stride;
      to += kSamplesAtOnce * cell.width;
    }
    for (int mask = 1; mask < kSamplesAtOnce && mask < teams.lanes; mask *= 2) {
      moments.sum += shuffle(moments.sum, mask);
      moments.square += shuffle(moments.square, mask);
    }
    if (there && lane == 0) moments.put(cell, feature, split);
  }
}

}  // namespace phasefast::cuda
