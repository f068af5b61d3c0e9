// The element types that tensors hold, and the type that each is computed in.
#pragma once

#include <cstdint>
#include <type_traits>

namespace batchfree {

// Storage only: arithmetic happens in float32 after widening (simd.hpp).
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

enum class ElementType { float32, float64, bfloat16, float16 };

// What an element is widened to: float64 stays, everything else is computed in float32.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

enum class Activation { none, relu, silu, gelu, gelu_tanh };
inline constexpr int kActivationCount = 5;

}  // namespace batchfree
