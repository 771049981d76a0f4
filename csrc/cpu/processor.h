// How this processor multiplies best, asked once, at run time.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define PHASEFAST_X86 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace phasefast {

// Where the products of float32 and narrower numbers come from: PyTorch's BLAS, vectors of 8 or 16 float32, bfloat16
// tiles.
enum class Products { kBlas, kAvx2, kAvx512, kAmx };
inline constexpr std::array<std::string_view, 4> kProducts{"blas", "avx2", "avx512", "amx"};

#ifdef PHASEFAST_X86
// Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 1, ch. 18: leaf 7 names the instructions, XCR0 the
// registers that the system saves, and Linux wants to be asked before a process touches the tiles.
inline bool processor_has_tiles() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  unsigned low = 0;
  unsigned high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kState = 0x600e6;  // SSE, AVX, AVX-512 (3), tile configuration and data
  if ((low & kState) != kState) return false;
  constexpr unsigned kAvx512 = 1u << 16 | 1u << 30 | 1u << 31;  // F, BW, VL
  constexpr unsigned kAmx = 1u << 22 | 1u << 24;                // BF16, TILE
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & kAvx512) != kAvx512 || (d & kAmx) != kAmx) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return false;  // AVX512_BF16
  constexpr long kRequest = 0x1023;                                              // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

inline bool processor_has(Products products) {
  switch (products) {
    case Products::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Products::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl");
    case Products::kAmx: {
      static const bool tiles = processor_has_tiles();
      return tiles;
    }
    default:
      return true;
  }
}

// Whether bfloat16 numbers are multiplied in pairs, at about twice the rate of float32.
inline bool processor_has_pairs() {
  return __builtin_cpu_supports("avx512bf16");
}

// PyTorch's BLAS (MKL) leaves a quarter of the vector units of other makes unused.
inline bool blas_is_slow() {
  return !__builtin_cpu_is("intel");
}
#else
inline bool processor_has(Products products) {
  return products == Products::kBlas;
}
inline bool processor_has_pairs() {
  return false;
}
inline bool blas_is_slow() {
  return false;
}
#endif

inline Products fastest_products() {
  if (processor_has(Products::kAmx)) return Products::kAmx;
  if (blas_is_slow() && processor_has(Products::kAvx512)) return Products::kAvx512;
  if (blas_is_slow() && processor_has(Products::kAvx2)) return Products::kAvx2;
  return Products::kBlas;
}

// The kind in use: what PHASEFAST_PRODUCTS names, where the processor has it, else the fastest.
inline std::atomic<Products>& products() {
  static std::atomic<Products> chosen = [] {
    const char* wanted = std::getenv("PHASEFAST_PRODUCTS");
    for (size_t i = 0; wanted && i < kProducts.size(); ++i) {
      if (kProducts[i] == wanted && processor_has(Products(i))) return Products(i);
    }
    return fastest_products();
  }();
  return chosen;
}

// Whether small systems are solved in vectors of 16: calls of BLAS cost more than their products, of whatever make the
// processor is. A kind that was asked for, and has none and is not the fastest, turns it off.
inline bool solves_in_vectors() {
  const Products kind = products();
  return kind >= Products::kAvx512 || (kind == fastest_products() && processor_has(Products::kAvx512));
}

// Whether products of bfloat16 numbers take less time than those of float32.
inline bool bfloat16_is_fast() {
  return products() == Products::kAmx || (products() == Products::kAvx512 && processor_has_pairs());
}

}  // namespace phasefast
