// Equilibrated blocked Cholesky with inverted diagonal blocks: the substitution is products of matrices only.
#include "ridge_solve.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>

#include "cpu/cholesky.h"

namespace phasefast {
namespace {

constexpr int64_t kBlock = 128;        // columns of a diagonal block
constexpr int64_t kPanel = 256;        // columns that are updated by one product for all threads
constexpr int64_t kLeaf = 64;          // rows of a block that is inverted row by row
constexpr int64_t kTiny = 1 << 22;     // operations below which a system is always left to one thread
constexpr int64_t kSmall = 1LL << 32;  // ... and where there are enough of them for all threads: no waiting inside one
// Columns of a system that is factorised straight from registers, by one thread: where other systems keep the other
// threads busy, and where it is alone.
constexpr int64_t kStraight = 2048;
constexpr int64_t kStraightAlone = 768;
constexpr int64_t kStrip = 128;  // right-hand sides of one task, at most
constexpr int64_t kPad = 16;     // keeps the rows of a strip off the same cache sets

// The lower Cholesky factor of a block, by LAPACK, in place; 0, or the order of the minor that failed.
template <typename T>
int32_t factor_block(const Matrix<T>& block) {
  AtenTensorHandle handle = nullptr;
  const Tensor view = block.tensor();
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(view.get(), &handle));
  StableIValue stack[] = {torch::stable::detail::from(handle), torch::stable::detail::from(false),
                          torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linalg_cholesky_ex", "", stack, TORCH_ABI_VERSION));
  const Tensor factor = torch::stable::detail::to<Tensor>(stack[0]);
  const Tensor info = torch::stable::detail::to<Tensor>(stack[1]);
  if (const int32_t failed = *static_cast<const int32_t*>(info.data_ptr())) return failed;
  const Matrix<T> from = matrix<T>(factor);
  for (int64_t r = 0; r < block.rows; ++r) {
    for (int64_t c = 0; c <= r; ++c) {
      block.data[r * block.row_stride + c] = from.data[r * from.row_stride + c * from.col_stride];
    }
    // Some LAPACKs let NaN pass.
    if (!std::isfinite(block.data[r * block.row_stride + r])) return static_cast<int32_t>(r + 1);
  }
  return 0;
}

// out = factor^-1 of a small block, both lower triangular and row-major; in float64, row by row.
template <typename T>
PHASEFAST_INLINE void invert_rows(const T* factor, int64_t stride, T* out, int64_t out_stride, int64_t size) {
  double work[kLeaf * kLeaf];
  for (int64_t r = 0; r < size; ++r) {
    double* row = work + r * kLeaf;
    for (int64_t c = 0; c < kLeaf; ++c) row[c] = 0;
    for (int64_t k = 0; k < r; ++k) {
      const double scale = factor[r * stride + k];
      const double* above = work + k * kLeaf;
      for (int64_t c = 0; c <= k; ++c) row[c] -= scale * above[c];
    }
    row[r] = 1;
    const double pivot = 1 / static_cast<double>(factor[r * stride + r]);
    for (int64_t c = 0; c <= r; ++c) row[c] *= pivot;
    for (int64_t c = 0; c < size; ++c) out[r * out_stride + c] = static_cast<T>(row[c]);
  }
}

PHASEFAST_CLONES void invert_leaf(const float* f, int64_t stride, float* out, int64_t out_stride, int64_t size) {
  invert_rows(f, stride, out, out_stride, size);
}
PHASEFAST_CLONES void invert_leaf(const double* f, int64_t stride, double* out, int64_t out_stride, int64_t size) {
  invert_rows(f, stride, out, out_stride, size);
}

// Cholesky factor of a block in place, and its inverse [size, size] beside it, by halves: LAPACK is slow at more than
// kLeaf rows, and [a 0; b c]^-1 = [a^-1 0; -c^-1 b a^-1, c^-1].
template <typename T>
int32_t factor_and_invert(const Matrix<T>& block, const Matrix<T>& inverse) {
  const int64_t size = block.rows;
  if (size <= kLeaf) {
    const int32_t failed = factor_block(block);
    if (!failed) invert_leaf(block.data, block.row_stride, inverse.data, inverse.row_stride, size);
    return failed;
  }
  const int64_t half = kLeaf;
  const int64_t rest = size - half;
  const Matrix<T> first = inverse.block(0, 0, half, half);
  const Matrix<T> last = inverse.block(half, half, rest, rest);
  const Matrix<T> below = block.block(half, 0, rest, half);
  const Scratch<T> mixed(rest, half);
  if (const int32_t failed = factor_and_invert(block.block(0, 0, half, half), first)) return failed;
  multiply(mixed.matrix(), below, first.transposed());
  for (int64_t r = 0; r < rest; ++r) std::copy_n(mixed.data() + r * half, half, below.data + r * below.row_stride);
  multiply_add(block.block(half, half, rest, rest), mixed.matrix(), mixed.matrix().transposed(), -1);
  if (const int32_t failed = factor_and_invert(block.block(half, half, rest, rest), last)) {
    return failed + static_cast<int32_t>(half);
  }
  multiply(mixed.matrix(), below, first);
  for (int64_t i = 0; i < rest * half; ++i) mixed.data()[i] = -mixed.data()[i];
  multiply(inverse.block(half, 0, rest, half), last, mixed.matrix());
  for (int64_t r = 0; r < half; ++r) std::fill_n(inverse.data + r * inverse.row_stride + half, rest, T(0));
  return 0;
}

// Rows of a matrix in parallel, some 32k elements at least to a thread.
template <typename F>
void each_row(int64_t rows, int64_t cols, const F& body) {
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 32768 / std::max<int64_t>(cols, 1)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t r = begin; r < end; ++r) body(r);
                              });
}

// Tasks in a parallel region even if there is but one: inside, BLAS takes one thread and need not wait for others at
// every small product.
template <typename F>
void each_task(int64_t tasks, const F& body) {
  torch::stable::parallel_for(0, tasks ? std::max<int64_t>(tasks, 2) : 0, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, tasks); ++i) body(i);
  });
}

// Left-looking factorisation in place of a panel, rows >= cols; inverses [cols, kBlock] take the inverted diagonal
// blocks, row-major, tight. One parallel region for each block column: the task of its first tile goes on to the next
// diagonal block.
template <typename T>
int32_t factorise_panel(const Matrix<T>& a, T* inverses) {
  int32_t failed = 0;
  const auto diagonal = [&](int64_t start) {
    const int64_t size = std::min(kBlock, a.cols - start);
    const Matrix<T> block = a.block(start, start, size, size);
    if (start) {
      const Matrix<T> left = a.block(start, 0, size, start);
      multiply_add(block, left, left.transposed(), -1);
    }
    failed = factor_and_invert(block, {inverses + start * kBlock, size, size, size, 1});
    if (failed) failed += static_cast<int32_t>(start);
  };
  each_task(std::min<int64_t>(a.cols, 1), diagonal);
  for (int64_t start = 0; start < a.cols && start + kBlock < a.rows && !failed; start += kBlock) {
    const int64_t below = start + kBlock;
    const Matrix<T> inverse{inverses + start * kBlock, kBlock, kBlock, kBlock, 1};
    each_task((a.rows - below + kBlock - 1) / kBlock, [&](int64_t i) {
      const Scratch<T> solved(kBlock, kBlock);
      const int64_t row = below + i * kBlock;
      const Matrix<T> tile = a.block(row, start, std::min(kBlock, a.rows - row), kBlock);
      if (start) {
        multiply_add(tile, a.block(row, 0, tile.rows, start), a.block(start, 0, kBlock, start).transposed(), -1);
      }
      multiply(solved.matrix(tile.rows, kBlock), tile, inverse.transposed());
      for (int64_t r = 0; r < tile.rows; ++r) {
        std::memcpy(tile.data + r * tile.row_stride, solved.data() + r * kBlock, kBlock * sizeof(T));
      }
      if (i == 0 && below < a.cols) diagonal(below);
    });
  }
  return failed;
}

// The same for a square matrix, panel by panel: most of the work is in products that are large in each direction.
template <typename T>
int32_t factorise(const Matrix<T>& a, T* inverses) {
  for (int64_t start = 0; start < a.rows; start += kPanel) {
    const int64_t size = std::min(kPanel, a.rows - start);
    const Matrix<T> panel = a.block(start, start, a.rows - start, size);
    if (start) {
      multiply_add(panel, a.block(start, 0, panel.rows, start), a.block(start, 0, size, start).transposed(), -1);
    }
    if (const int32_t failed = factorise_panel(panel, inverses + start * kBlock)) {
      return failed + static_cast<int32_t>(start);
    }
  }
  return 0;
}

// Some right-hand sides at a time: weights = scale (factor factor')^-1 scale cross, with scale 1 / root of the
// diagonal. Two buffers take turns, so that no product has to be copied back.
template <typename T>
void substitute(const Matrix<T>& factor, T* inverses, const T* inverse_scale, const Matrix<T>& cross,
                const Matrix<T>& weights, const Matrix<T>& x, const Matrix<T>& y) {
  const int64_t width = factor.rows;
  const int64_t cols = cross.cols;
  for (int64_t r = 0; r < width; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      x.data[r * x.row_stride + c] = cross.data[r * cross.row_stride + c * cross.col_stride] * inverse_scale[r];
    }
  }
  // out[first, last) -= left[first, last; from, to) right[from, to)
  const auto subtract = [&](const Matrix<T>& out, const Matrix<T>& left, const Matrix<T>& right, int64_t first,
                            int64_t last, int64_t from, int64_t to) {
    if (from == to) return;
    multiply_add(out.block(first, 0, last - first, cols), left.block(first, from, last - first, to - from),
                 right.block(from, 0, to - from, cols), -1);
  };
  const auto solve_block = [&](const Matrix<T>& out, const Matrix<T>& in, int64_t start, int64_t stop, bool flipped) {
    const int64_t size = stop - start;
    const Matrix<T> inverse{inverses + start * kBlock, size, size, size, 1};
    multiply(out.block(start, 0, size, cols), flipped ? inverse.transposed() : inverse, in.block(start, 0, size, cols));
  };
  for (int64_t panel = 0; panel < width; panel += kPanel) {
    const int64_t end = std::min(panel + kPanel, width);
    subtract(x, factor, y, panel, end, 0, panel);
    for (int64_t start = panel; start < end; start += kBlock) {
      const int64_t stop = std::min(start + kBlock, end);
      subtract(x, factor, y, start, stop, panel, start);
      solve_block(y, x, start, stop, false);
    }
  }
  const Matrix<T> flipped = factor.transposed();
  for (int64_t panel = (width - 1) / kPanel * kPanel; panel >= 0; panel -= kPanel) {
    const int64_t end = std::min(panel + kPanel, width);
    subtract(y, flipped, x, panel, end, end, width);
    for (int64_t start = panel + (end - panel - 1) / kBlock * kBlock; start >= panel; start -= kBlock) {
      const int64_t stop = std::min(start + kBlock, end);
      subtract(y, flipped, x, start, stop, stop, end);
      solve_block(x, y, start, stop, true);
    }
  }
  for (int64_t r = 0; r < width; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      weights.data[r * weights.row_stride + c] = x.data[r * x.row_stride + c] * inverse_scale[r];
    }
  }
}

// All right-hand sides, in strips: as many for each thread.
template <typename T>
void substitute_all(const Matrix<T>& factor, T* inverses, const T* inverse_scale, const Matrix<T>& cross,
                    const Matrix<T>& weights) {
  const int64_t width = factor.rows;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rounds = (cross.cols + threads * kStrip - 1) / (threads * kStrip);
  const int64_t share = cross.cols / std::max<int64_t>(threads * rounds, 1) + 1;
  const int64_t strip = std::clamp<int64_t>((share + 15) / 16 * 16, 32, kStrip);
  torch::stable::parallel_for(0, (cross.cols + strip - 1) / strip, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> x(width, strip + kPad);
    const Scratch<T> y(width, strip + kPad);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t cols = std::min(strip, cross.cols - i * strip);
      substitute(factor, inverses, inverse_scale, cross.block(0, i * strip, width, cols),
                 weights.block(0, i * strip, width, cols), x.matrix().block(0, 0, width, cols),
                 y.matrix().block(0, 0, width, cols));
    }
  });
}

template <typename T>
T& at(const Matrix<T>& m, int64_t r, int64_t c) {
  return m.data[r * m.row_stride + c * m.col_stride];
}

// One system, scaled on both sides; its factor is that of the scaled matrix, and only its lower triangle is written.
template <typename T>
int32_t solve_scaled(const Matrix<T>& gram, const Matrix<T>& cross, T penalty, const T* inverse_scale,
                     const Matrix<T>& weights, const Matrix<T>* factor, [[maybe_unused]] bool straight) {
  const int64_t width = gram.rows;
#ifdef PHASEFAST_X86
  if constexpr (std::is_same_v<T, float>) {
    if (straight) {
      SmallCholesky system(gram, penalty, inverse_scale);
      if (const int32_t failed = system.factorise()) return failed;
      system.substitute(cross, inverse_scale, weights);
      if (factor) system.put(*factor);
      return 0;
    }
  }
#endif
  const Scratch<T> scaled(factor ? 0 : width, row_length<T>(width));
  const Matrix<T> a = factor ? *factor : scaled.matrix().block(0, 0, width, width);
  const Scratch<T> inverses(width, kBlock);
  each_row(width, width, [&](int64_t r) {
    T* to = &at(a, r, 0);
    if (gram.col_stride == 1) {  // vector code
      const T* from = &at(gram, r, 0);
      for (int64_t c = 0; c < r; ++c) to[c] = from[c] * inverse_scale[r] * inverse_scale[c];
    } else {
      for (int64_t c = 0; c < r; ++c) to[c] = at(gram, r, c) * inverse_scale[r] * inverse_scale[c];
    }
    const T own = at(gram, r, r) + penalty;
    at(a, r, r) = own == 0 ? T(1) : own * inverse_scale[r] * inverse_scale[r];
  });
  const int32_t failed = factorise(a, inverses.data());
  if (!failed) substitute_all(a, inverses.data(), inverse_scale, cross, weights);
  return failed;
}

// The scale is the root of the diagonal: NaN where that is negative, which the factorisation then reports; 0 where
// dead.
template <typename T>
int32_t solve(const Matrix<T>& gram, const Matrix<T>& cross, T penalty, const Matrix<T>& weights,
              const Matrix<T>* factor, bool straight) {
  const int64_t width = gram.rows;
  if (!width) return 0;
  std::vector<T> scale(width);
  std::vector<T> inverse(width);
  for (int64_t r = 0; r < width; ++r) {
    scale[r] = std::sqrt(at(gram, r, r) + penalty);
    inverse[r] = scale[r] == 0 ? T(0) : 1 / scale[r];
  }
  const int32_t failed = solve_scaled(gram, cross, penalty, inverse.data(), weights, factor, straight);
  const T nan = std::numeric_limits<T>::quiet_NaN();
  if (failed) each_row(width, cross.cols, [&](int64_t r) { std::fill_n(&at(weights, r, 0), cross.cols, nan); });
  if (factor) {
    each_row(width, width, [&](int64_t r) {
      const T own = failed ? nan : scale[r] == 0 ? T(1) : scale[r];
      T* to = &at(*factor, r, 0);
      for (int64_t c = 0; c <= r; ++c) to[c] *= own;
      std::fill(to + r + 1, to + width, failed ? nan : T(0));
    });
  }
  return failed;
}

struct Cell {
  const Tensor &gram, &cross, &penalties, &weights;
  const Tensor* factors;
  int32_t* info;
  int64_t info_stride;

  template <typename T>
  void solve_step(int64_t l, bool straight) const {
    Matrix<T> factor{};
    if (factors) factor = slice<T>(*factors, l);
    const double penalty = static_cast<const double*>(penalties.data_ptr())[l * penalties.stride(0)];
    info[l * info_stride] = solve(matrix<T>(gram), matrix<T>(cross), static_cast<T>(penalty), slice<T>(weights, l),
                                  factors ? &factor : nullptr, straight);
  }
  // most: columns of a system that may be factorised straight from registers.
  void run(int64_t l, int64_t most) const {
    if (gram.scalar_type() == ScalarType::Double) {
      solve_step<double>(l, false);
    } else {
      solve_step<float>(l, straight(most));
    }
  }
  bool straight(int64_t most) const {
    return gram.scalar_type() == ScalarType::Float && gram.size(0) <= most && gram.stride(1) == 1 &&
           solves_in_vectors();
  }
  int64_t operations() const {
    const int64_t width = gram.size(0);
    return width * width * (width / 3 + 2 * cross.size(1));
  }
};

void ridge_solve(const Tensors& grams, const Tensors& crosses, const Tensors& penalties, const Tensors& weights,
                 const Tensors& factors, const Tensor& info) {
  check_ridge_solve(grams, crosses, penalties, weights, factors, info);
  const int64_t steps = info.size(1);
  const int64_t tasks = static_cast<int64_t>(grams.size()) * steps;
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<Cell> small;
  for (size_t i = 0; i < grams.size(); ++i) {
    int32_t* out = static_cast<int32_t*>(info.data_ptr()) + static_cast<int64_t>(i) * info.stride(0);
    const Cell cell{grams[i], crosses[i],    penalties[i], weights[i], factors.empty() ? nullptr : &factors[i],
                    out,      info.stride(1)};
    const int64_t most = tasks >= threads ? kStraight : kStraightAlone;
    const bool shared = tasks > 1 && 2 * tasks >= threads && cell.straight(most);
    if (shared || cell.operations() < (tasks >= 2 * threads ? kSmall : kTiny)) {
      small.push_back(cell);
    } else {
      for (int64_t l = 0; l < steps; ++l) cell.run(l, kStraightAlone);
    }
  }
  each_task(static_cast<int64_t>(small.size()) * steps, [&](int64_t i) { small[i / steps].run(i % steps, kStraight); });
}

}  // namespace
}  // namespace phasefast

STABLE_TORCH_LIBRARY_IMPL(phasefast, CPU, m) {
  m.impl("ridge_solve", TORCH_BOX(&phasefast::ridge_solve));
}
