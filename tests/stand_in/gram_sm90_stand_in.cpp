// The arithmetic of the Hopper gram kernel on the host, for tests/stand_in/test_gram_sm90.py.
#include "../../csrc/cuda/gram_sm90_layout.cuh"

using namespace phasefast::cuda;

namespace {

template <typename S>
void describe(int* out) {
  const int values[] = {S::kSize.height, S::kSize.width, S::kDepth, S::kSlots,     S::kBlocks, S::kParts,
                        S::kBoxBytes,    S::kLeft,       S::kRight, S::kSlotBytes, S::kBytes};
  std::copy_n(values, 11, out);
}

}  // namespace

extern "C" {

// Of Whole (0) or Split (1).
void shape(int which, int* out) {
  which ? describe<Split>(out) : describe<Whole>(out);
}
int left_place(int which, int part, int box) {
  return which ? Split::left(part, box) : Whole::left(part, box);
}
int right_place(int which, int part, int box) {
  return which ? Split::right(part, box) : Whole::right(part, box);
}
int stage_bytes(int which, int left_parts, int right_parts) {
  return which ? Split::stage_bytes(left_parts, right_parts) : Whole::stage_bytes(left_parts, right_parts);
}
uint64_t describe_box(uint32_t address, int box_bytes) {
  return descriptor(address, box_bytes);
}
int swizzled_place(int row, int col) {
  return swizzled(row, col);
}
// Slot and parity of so many turns.
void turns(int count, int* out) {
  Turn turn;
  for (int i = 0; i < count; ++i) {
    out[2 * i] = turn.slot;
    out[2 * i + 1] = static_cast<int>(turn.parity);
    turn.next<4>();
  }
}
int split_count(int64_t tiles, int64_t samples, int height, int width, int depth, int clusters) {
  return hopper_splits(tiles, samples, {height, width}, depth, clusters);
}
}
