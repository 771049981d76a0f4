// Every op of phasefast. Legend: b rows of a batch, n or m rows, d features of a cell, p target columns, k target
// blocks, L penalties. Lists have one entry per cell; cells differ in d. All results go into tensors that the caller
// gives.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(phasefast, m) {
  // activations [b, ...] any strides; shifts [d] f32; pools: 0 or output size per spatial dim;
  // rows [b, d] contiguous, f32 | f64 | bf16 | f16, written; sums, squares [d] f64, added to.
  m.def(
      "capture(Tensor[] activations, Tensor[] shifts, int[] pools, Tensor(a!)[] rows, Tensor(b!)[] sums, "
      "Tensor(c!)[] squares) -> ()");
  // rows [n, d] f32 | f64 | bf16 | f16; targets [n, p] f32 | f64 | bf16; grams none or [d, d], crosses [d, p]: f32 |
  // f64, added to; only the lower triangle of grams has a meaning.
  m.def("gram(Tensor[] rows, Tensor targets, Tensor(a!)[] grams, Tensor(b!)[] crosses) -> ()");
  // grams [d, d] lower triangle, crosses [d, p], weights [L, d, p], factors none or [L, d, d]: all f32 or all f64;
  // penalties [L] f64, absolute; info [cells, L] i32: 0, or the order of the minor that is not positive definite.
  m.def(
      "ridge_solve(Tensor[] grams, Tensor[] crosses, Tensor[] penalties, Tensor(a!)[] weights, Tensor(b!)[] factors, "
      "Tensor(c!) info) -> ()");
  // rows [m, d]; weights [d, p], offsets [p] f32 | f64; targets [m, p]; blocks: k + 1 column edges; classes: k flags;
  // errors [k, m] f64, hits [k, m] bool, written.
  m.def(
      "residual(Tensor[] rows, Tensor[] weights, Tensor[] offsets, Tensor targets, int[] blocks, bool[] classes, "
      "Tensor(a!)[] errors, Tensor(b!)[] hits) -> ()");
}
