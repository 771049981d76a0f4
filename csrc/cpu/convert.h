// Conversions between float types that compilers turn into vector code, on every machine, without branches.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

// One function compiled for several instruction sets, chosen when the module is loaded: a wheel runs everywhere.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define PHASEFAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PHASEFAST_CLONES
#endif
#define PHASEFAST_INLINE inline __attribute__((always_inline))

namespace phasefast {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// What a value of type X is computed in: float64 for float64, else float32.
template <typename X>
using Wide = std::conditional_t<std::is_same_v<X, double>, double, float>;

template <typename To, typename From>
PHASEFAST_INLINE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &value, sizeof(out));
  return out;
}

// a where the condition holds, else b; a plain ?: may become a jump, and a loop with a jump no vector code.
PHASEFAST_INLINE uint32_t select(bool condition, uint32_t a, uint32_t b) {
  const uint32_t mask = -static_cast<uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

PHASEFAST_INLINE float widen(float value) {
  return value;
}
PHASEFAST_INLINE double widen(double value) {
  return value;
}
PHASEFAST_INLINE float widen(BFloat16 value) {
  return bits_as<float>(static_cast<uint32_t>(value.x) << 16);
}
PHASEFAST_INLINE float widen(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.x & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.x & 0x7fffu) << 13;
  // The product moves the exponent from float16's bias to float32's, and normalises what was subnormal.
  uint32_t out = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);
  out |= select(magnitude >= 0x0f800000u, 0x7f800000u, 0u);  // infinities and NaN
  return bits_as<float>(out | sign);
}

// To the nearest value, ties to even.
template <typename R, typename V>
PHASEFAST_INLINE R narrow(V value) {
  if constexpr (std::is_same_v<R, double> || std::is_same_v<R, float>) {
    return static_cast<R>(value);
  } else if constexpr (std::is_same_v<R, BFloat16>) {
    const uint32_t bits = bits_as<uint32_t>(static_cast<float>(value));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return BFloat16(static_cast<uint16_t>(select(nan, 0x7fc0u, rounded)), BFloat16::from_bits());
  } else {
    const uint32_t bits = bits_as<uint32_t>(static_cast<float>(value));
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 lets the adder round a subnormal result at the right place.
    const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t out = select(magnitude < 0x38800000u, subnormal, normal);
    out = select(magnitude >= 0x477ff000u, 0x7c00u, out);
    out = select(magnitude > 0x7f800000u, 0x7e00u, out);
    return Half(static_cast<uint16_t>(out | sign), Half::from_bits());
  }
}

}  // namespace phasefast
