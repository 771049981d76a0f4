// Whether this processor multiplies bfloat16 tiles (Intel AMX) and the system lets us: asked once, at run time.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define PHASEFAST_AMX 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>

namespace phasefast {

#ifdef PHASEFAST_AMX
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
#else
inline bool processor_has_tiles() {
  return false;
}
#endif

// PHASEFAST_TILES=0 turns them off.
inline bool tiles_available() {
  static const bool available = [] {
    const char* wanted = std::getenv("PHASEFAST_TILES");
    return (!wanted || std::strcmp(wanted, "0") != 0) && processor_has_tiles();
  }();
  return available;
}

}  // namespace phasefast
