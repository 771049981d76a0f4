// Isotonic regressions of all beginnings of curves, by pooling adjacent violators once (Stout 2008).
#pragma once

#include <cstdint>

namespace phasefast {

// One curve of `size` values. Levels come down; what lies within `slack` of being lower is pooled too.
// errors: of the regression of the values up to there. starts, levels: where its last level begins, and its value.
inline void pool(const double* curve, int64_t size, double slack, double* errors, int64_t* starts, double* levels) {
  for (int64_t i = 0; i < size; ++i) {
    double level = curve[i], own = 0, before = i > 0 ? errors[i - 1] : 0;
    int64_t start = i;
    while (start > 0 && levels[start - 1] >= level - slack) {
      const int64_t place = start - 1, begin = starts[place];
      const double outside = begin > 0 ? errors[begin - 1] : 0;
      const double count = static_cast<double>(i + 1 - start), more = static_cast<double>(start - begin);
      const double gap = levels[place] - level;
      own += errors[place] - outside + count * more / (count + more) * (gap * gap);
      level += gap * (more / (count + more));
      start = begin;
      before = outside;
    }
    levels[i] = level;
    starts[i] = start;
    errors[i] = before + own;
  }
}

}  // namespace phasefast
