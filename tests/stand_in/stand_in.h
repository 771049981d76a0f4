// Runs kernel sources on the host: every thread of a block is a fiber, started in an order drawn at random, and shared
// memory is poisoned. Asynchronous copies land only when they are waited for. Names as in csrc/cuda/device.cuh.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#define PHASEFAST_BOTH inline
#define PHASEFAST_DEVICE inline
#define PHASEFAST_UNROLL
#define PHASEFAST_ROLL

// Sixteen-bit floats as in CUDA's headers, rounded to nearest even.
struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline float __half2float(__half x) {
  _Float16 half;
  std::memcpy(&half, &x.bits, 2);
  return static_cast<float>(half);
}
inline __half __float2half_rn(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  __half out;
  std::memcpy(&out.bits, &half, 2);
  return out;
}

namespace phasefast::cuda {

// One block at a time. A fiber runs until it waits at a barrier of its block or of its warp.
class Machine {
 public:
  static Machine& now() {
    static Machine machine;
    return machine;
  }

  void run(int64_t blocks, int threads, size_t shared_bytes, uint64_t seed, const std::function<void(char*)>& kernel) {
    std::mt19937_64 random(seed);
    std::vector<int64_t> order(blocks);
    for (int64_t i = 0; i < blocks; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    blocks_ = blocks;
    for (const int64_t block : order) {
      block_ = block;
      run_block(threads, shared_bytes, random, kernel);
    }
  }

  int thread() const { return current_; }
  int64_t block() const { return block_; }
  int64_t blocks() const { return blocks_; }

  // Waits for all threads of the block (0) or of the warp (1).
  void barrier(int level) {
    fibers_[current_].waits = level;
    const int me = current_;
    swapcontext(&fibers_[me].context, &scheduler_);
  }

  // Every lane's `mine`, seen by all lanes of the warp.
  template <typename T>
  std::vector<T> exchange(const T& mine) {
    static std::vector<T> board;
    const int warp = current_ / 32 * 32;
    if (board.size() < fibers_.size()) board.resize(fibers_.size());
    board[current_] = mine;
    barrier(1);
    std::vector<T> all(board.begin() + warp, board.begin() + warp + 32);
    barrier(1);
    return all;
  }

  struct Copy {
    void* to;
    const void* from;
    int bytes;
  };
  void copy(const Copy& copy) { fibers_[current_].open.push_back(copy); }
  void commit() {
    fibers_[current_].groups.push_back(std::move(fibers_[current_].open));
    fibers_[current_].open.clear();
  }
  void wait(size_t pending) {
    auto& groups = fibers_[current_].groups;
    while (groups.size() > pending) {
      for (const Copy& copy : groups.front()) {
        std::memset(copy.to, 0, 16);
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
      groups.erase(groups.begin());
    }
  }

 private:
  static constexpr int kReady = -1, kDone = -2;
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int waits = kReady;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
  };

  void run_block(int threads, size_t shared_bytes, std::mt19937_64& random, const std::function<void(char*)>& kernel) {
    std::vector<max_align_t> storage(shared_bytes / sizeof(max_align_t) + 1);
    std::memset(storage.data(), 0xff, storage.size() * sizeof(max_align_t));  // NaN in every format
    shared_ = reinterpret_cast<char*>(storage.data());
    kernel_ = &kernel;
    fibers_ = std::vector<Fiber>(threads);
    std::vector<int> order(threads);
    for (int i = 0; i < threads; ++i) {
      order[i] = i;
      prepare(fibers_[i]);
    }
    for (int done = 0; done < threads;) {
      std::shuffle(order.begin(), order.end(), random);
      bool moved = false;
      for (const int i : order) {
        if (fibers_[i].waits != kReady) continue;
        moved = true;
        current_ = i;
        swapcontext(&scheduler_, &fibers_[i].context);
        done += fibers_[i].waits == kDone;
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
      }
      for (int warp = 0; warp < threads; warp += 32) release(warp, std::min(threads, warp + 32), 1);
      release(0, threads, 0);
      if (!moved && done < threads) throw std::runtime_error("threads wait at different barriers");
    }
    for (const Fiber& fiber : fibers_) {
      if (!fiber.groups.empty() || !fiber.open.empty()) throw std::runtime_error("copies that nobody waited for");
    }
  }

  void prepare(Fiber& fiber) {
    constexpr size_t kStack = 64 << 10;
    fiber.stack = std::make_unique<char[]>(kStack);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler_;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Machine::enter), 0);
  }

  void release(int begin, int end, int level) {
    for (int i = begin; i < end; ++i) {
      if (fibers_[i].waits != level) return;
    }
    for (int i = begin; i < end; ++i) fibers_[i].waits = kReady;
  }

  static void enter() {
    Machine& machine = now();
    const int me = machine.current_;
    try {
      (*machine.kernel_)(machine.shared_);
    } catch (...) {
      machine.error_ = std::current_exception();  // it cannot cross from one stack to another
    }
    machine.fibers_[me].waits = kDone;
  }

  ucontext_t scheduler_;
  std::vector<Fiber> fibers_;
  const std::function<void(char*)>* kernel_ = nullptr;
  char* shared_ = nullptr;
  std::exception_ptr error_;
  int current_ = 0;
  int64_t block_ = 0, blocks_ = 0;
};

struct Thread {
  static int index() { return Machine::now().thread(); }
  static int64_t block() { return Machine::now().block(); }
  static int64_t blocks() { return Machine::now().blocks(); }
  static void sync() { Machine::now().barrier(0); }
};

template <typename T>
void add_to(T* place, T value) {
  *place += value;
}

inline void raise_to(uint32_t* place, uint32_t value) {
  *place = std::max(*place, value);
}

inline void copy_async(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || (bytes && reinterpret_cast<uintptr_t>(from) % 16)) {
    throw std::runtime_error("cp.async of an address that is no multiple of 16");
  }
  Machine::now().copy({to, from, bytes});
}
inline void commit_copies() {
  Machine::now().commit();
}
template <int pending>
void wait_copies() {
  Machine::now().wait(pending);
}

inline void load_rows(uint32_t (&out)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16)
    throw std::runtime_error("ldmatrix of an address that is no multiple of 16");
  const auto rows = Machine::now().exchange(row);
  const int lane = Thread::index() % 32;
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int e = 0; e < 2; ++e) {
      const int r = transposed ? lane % 4 * 2 + e : lane / 4;
      const int c = transposed ? lane / 4 : lane % 4 * 2 + e;
      std::memcpy(&pair[e], static_cast<const char*>(rows[m * 8 + r]) + 2 * c, 2);
    }
    out[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}
inline void load_matrices(uint32_t (&out)[4], const void* row) {
  load_rows(out, row, false);
}
inline void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  load_rows(out, row, true);
}

template <typename T>
T shuffle(T value, int mask) {
  return Machine::now().exchange(value)[Thread::index() % 32 ^ mask];
}

inline void multiply_add(float (&sum)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  struct Operands {
    uint32_t left[4], right[2];
  };
  Operands mine;
  std::memcpy(mine.left, left, sizeof left);
  std::memcpy(mine.right, right, sizeof right);
  const auto all = Machine::now().exchange(mine);
  const auto value = [](uint32_t word, int half) {
    return __bfloat162float({static_cast<uint16_t>(word >> (16 * half))});
  };
  const int lane = Thread::index() % 32;
  for (int e = 0; e < 4; ++e) {
    const int row = lane / 4 + e / 2 * 8;
    const int col = lane % 4 * 2 + e % 2;
    double total = 0;
    for (int k = 0; k < 16; ++k) {
      const float a = value(all[row % 8 * 4 + k % 8 / 2].left[row / 8 + k / 8 * 2], k % 2);
      const float b = value(all[col * 4 + k % 8 / 2].right[k / 8], k % 2);
      total += static_cast<double>(a) * b;
    }
    sum[e] += static_cast<float>(total);
  }
}

}  // namespace phasefast::cuda
