// Symmetric products by halves: what is above the diagonal is computed in the blocks on it only.
#include "gram.h"

#include <torch/csrc/stable/library.h>

#include "cpu/cpu.h"
#include "cpu/products.h"

namespace phasefast {
namespace {

constexpr int64_t kChunk = 4096;      // rows whose float32 sum is trusted before it goes into the accumulator
constexpr int64_t kDiagonal = 256;    // columns of a gram's block on the diagonal
constexpr int64_t kSide = 2048 + 16;  // rows and columns of another product, at most: BLAS packs all it multiplies

// out += product, where the accumulator is the wider of the two.
template <typename A, typename T>
void promote(const Matrix<A>& out, const Matrix<T>& product) {
  torch::stable::parallel_for(0, out.rows, std::max<int64_t>(1, 32768 / std::max<int64_t>(out.cols, 1)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t r = begin; r < end; ++r) {
                                  A* to = out.data + r * out.row_stride;
                                  const T* from = product.data + r * product.row_stride;
                                  for (int64_t c = 0; c < out.cols; ++c) to[c] += static_cast<A>(from[c]);
                                }
                              });
}

// out += left right, with the product in T. A product apart that is added afterwards beats one added in place.
template <typename A, typename T>
void accumulate(const Matrix<A>& out, const Matrix<T>& left, const Matrix<T>& right, const Scratch<T>& scratch) {
  const Matrix<T> product{scratch.data(), out.rows, out.cols, row_length<T>(out.cols), 1};
  multiply(product, left, right);
  promote(out, product);
}

// out += left' right, in products of about the same size.
template <typename A, typename T>
void accumulate_all(const Matrix<A>& out, const Matrix<T>& left, const Matrix<T>& right, const Scratch<T>& scratch) {
  const auto share = [](int64_t size) {
    const int64_t parts = (size + kSide - 1) / kSide;
    return parts ? row_length<T>((size + parts - 1) / parts) : 1;
  };
  for (int64_t row = 0, height = share(out.rows); row < out.rows; row += height) {
    for (int64_t col = 0, width = share(out.cols); col < out.cols; col += width) {
      const Matrix<A> block = out.block(row, col, std::min(height, out.rows - row), std::min(width, out.cols - col));
      accumulate(block, left.block(0, row, left.rows, block.rows).transposed(),
                 right.block(0, col, right.rows, block.cols), scratch);
    }
  }
}

// The lower triangle of out += rows' rows: that of both halves, and the products of the right half with the left.
template <typename A, typename T>
void accumulate_lower(const Matrix<A>& out, const Matrix<T>& rows, const Scratch<T>& scratch) {
  const int64_t width = rows.cols;
  if (width <= kDiagonal) return accumulate(out, rows.transposed(), rows, scratch);
  const int64_t half = (width / 2 + kDiagonal - 1) / kDiagonal * kDiagonal;
  const int64_t rest = width - half;
  const Matrix<T> left = rows.block(0, 0, rows.rows, half);
  const Matrix<T> right = rows.block(0, half, rows.rows, rest);
  accumulate_lower(out.block(0, 0, half, half), left, scratch);
  accumulate_all(out.block(half, 0, rest, half), right, left, scratch);
  accumulate_lower(out.block(half, half, rest, rest), right, scratch);
}

template <typename T>
void gram_cell(const Tensor& rows, const Tensor& targets, const Tensor* gram, const Tensor& cross) {
  const int64_t samples = rows.size(0);
  const int64_t width = rows.size(1);
  const int64_t chunk = std::min(kChunk, samples);
  const Scratch<T> wide(needs_conversion<T>(rows) ? chunk : 0, width);
  const Scratch<T> wide_targets(needs_conversion<T>(targets) ? chunk : 0, targets.size(1));
  const int64_t longest = std::min(std::max(width, targets.size(1)), kSide);
  const Scratch<T> product(std::min(width, kSide), row_length<T>(longest));
  for (int64_t start = 0; start < samples; start += chunk) {
    const int64_t stop = std::min(start + chunk, samples);
    const Matrix<T> a = rows_as<T>(rows, start, stop, wide);
    const Matrix<T> t = rows_as<T>(targets, start, stop, wide_targets);
    if (gram && gram->scalar_type() == ScalarType::Double) {
      accumulate_lower(matrix<double>(*gram), a, product);
    } else if (gram) {
      accumulate_lower(matrix<float>(*gram), a, product);
    }
    if (cross.scalar_type() == ScalarType::Double) {
      accumulate_all(matrix<double>(cross), a, t, product);
    } else {
      accumulate_all(matrix<float>(cross), a, t, product);
    }
  }
}

// The same with packed operands: the left one for a strip of columns and a chunk of samples, by all threads; a right
// one for a panel and a span, by the thread that multiplies it.
constexpr int64_t kStrip = 1024;
constexpr int64_t kPanel = 256;  // columns, at most
constexpr int64_t kLeast = 64;
constexpr int64_t kRows = 8192;  // of a chunk: sums of 32 spans, which round less than as many numbers in a row

struct PanelScratch {
  PackedScratch right;
  ProductScratch product;
};

void pack_block(const Tensor& from, int64_t row, int64_t rows, int64_t col, int64_t cols, bool left,
                const Packed& out) {
  with_data(from, [&](auto* data) {
    using X = std::remove_pointer_t<decltype(data)>;
    pack(matrix<X>(from).block(row, col, rows, cols), left, out);
  });
}

void promote_block(const Tensor& out, int64_t row, int64_t col, const Matrix<float>& product) {
  if (out.scalar_type() == ScalarType::Double) {
    promote(matrix<double>(out).block(row, col, product.rows, product.cols), product);
  } else {
    promote(matrix<float>(out).block(row, col, product.rows, product.cols), product);
  }
}

// What the rows are multiplied with: themselves, of which the lower triangle is wanted, or the targets.
struct Factor {
  const Tensor& right;
  const Tensor& out;
  bool lower;
  Formats formats;
};

// Rows [row, row + height) and columns [col, col + width) of an accumulator, of samples [start, stop).
struct Panel {
  const Factor& factor;
  int64_t start, stop, row, height, col, width;

  void add(const PackedScratch& left, int64_t left_block, const PanelScratch& scratch) const {
    const ProductSession session;
    const Packed packed{scratch.right.span(0).data, factor.formats.right};
    const Matrix<float> product = scratch.product.matrix(height, width);
    const std::optional<int64_t> diagonal = factor.lower ? std::optional((row - col) / kUnit) : std::nullopt;
    for (int64_t k = start; k < stop; k += kSpan) {
      const int64_t depth = std::min(kSpan, stop - k);
      pack_block(factor.right, k, depth, col, width, false, packed);
      multiply_span(left.span((k - start) / kSpan).block(left_block), packed, depth, product, k > start, diagonal);
    }
    for (int64_t r = 0; r < height; r += kUnit) {
      const int64_t known = diagonal ? std::min(width, r + kUnit * (*diagonal + 1)) : width;
      promote_block(factor.out, row + r, col, product.block(r, 0, std::min(kUnit, height - r), known));
    }
  }
};

// The panels of a strip of rows. Each is a small share of what is left, so that all threads end at about the same time
// (guided self-scheduling: Polychronopoulos and Kuck 1987), but not too small to be worth its packing.
std::vector<Panel> panels_of(const std::vector<Factor>& factors, int64_t start, int64_t stop, int64_t row,
                             int64_t height) {
  const auto cols_of = [&](const Factor& factor) { return factor.lower ? row + height : factor.right.size(1); };
  const auto cut = [](int64_t size, int64_t most) { return std::clamp(size / kUnit * kUnit, kLeast, most); };
  int64_t left = 0;  // elements of the products
  for (const Factor& factor : factors) left += height * cols_of(factor);
  std::vector<Panel> panels;
  for (const Factor& factor : factors) {
    const int64_t cols = cols_of(factor);
    for (int64_t col = 0, width = 0; col < cols; col += width) {
      const int64_t share = left / (2 * torch::stable::get_num_threads());
      width = std::min(cut(share / height, kPanel), cols - col);
      const int64_t tall = cut(share / width, kStrip);
      for (int64_t top = factor.lower ? std::max(row, col) : row; top < row + height; top += tall) {
        panels.push_back({factor, start, stop, top, std::min(tall, row + height - top), col, width});
      }
      left -= height * width;
    }
  }
  return panels;
}

// The rows' products with factors that all want them in the same format.
void add_packed(const Tensor& rows, const std::vector<Factor>& factors) {
  const int64_t samples = rows.size(0);
  const int64_t width = rows.size(1);
  const int64_t strip = std::min(kStrip, width);
  const PackedScratch left(std::min(kRows, samples), strip, factors.front().formats.left);
  for (int64_t row = 0; row < width; row += strip) {
    const int64_t height = std::min(strip, width - row);
    for (int64_t start = 0; start < samples; start += kRows) {
      const int64_t stop = std::min(start + kRows, samples);
      torch::stable::parallel_for(0, spans(stop - start), 1, [&](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s) {
          const int64_t from = start + s * kSpan;
          pack_block(rows, from, std::min(kSpan, stop - from), row, height, true, left.span(s));
        }
      });
      const std::vector<Panel> panels = panels_of(factors, start, stop, row, height);
      share_out(
          static_cast<int64_t>(panels.size()),
          [&] { return PanelScratch{{kSpan, kPanel, Format::kSplit}, {strip, kPanel}}; },
          [&](int64_t i, const PanelScratch& scratch) { panels[i].add(left, (panels[i].row - row) / kUnit, scratch); });
    }
  }
}

bool worth_packing(const Tensor& rows) {
  return products() != Products::kBlas && rows.scalar_type() != ScalarType::Double && rows.size(0) >= 512 &&
         rows.size(1) >= 64;
}

void gram_cell_packed(const Tensor& rows, const Tensor& targets, const Tensor* gram, const Tensor& cross) {
  const ScalarType type = rows.scalar_type();
  const Factor of_targets{targets, cross, false, formats_of(type, targets.scalar_type())};
  if (!gram) return add_packed(rows, {of_targets});
  const Factor own{rows, *gram, true, formats_of(type, type)};
  if (targets.size(1) == 0) return add_packed(rows, {own});
  if (own.formats.left == of_targets.formats.left) return add_packed(rows, {own, of_targets});
  add_packed(rows, {own});
  add_packed(rows, {of_targets});
}

void gram(const Tensors& rows, const Tensor& targets, const Tensors& grams, const Tensors& crosses) {
  check_gram(rows, targets, grams, crosses);
  for (size_t i = 0; i < rows.size(); ++i) {
    const Tensor* own = grams.empty() ? nullptr : &grams[i];
    if (rows[i].scalar_type() == ScalarType::Double) {
      gram_cell<double>(rows[i], targets, own, crosses[i]);
    } else if (worth_packing(rows[i])) {
      gram_cell_packed(rows[i], targets, own, crosses[i]);
    } else {
      gram_cell<float>(rows[i], targets, own, crosses[i]);
    }
  }
}

}  // namespace
}  // namespace phasefast

STABLE_TORCH_LIBRARY_IMPL(phasefast, CPU, m) {
  m.impl("gram", TORCH_BOX(&phasefast::gram));
}
