// Vectors of numbers, as wide as the instruction set this file is compiled for.
//
// GCC's and Clang's vector extensions carry the arithmetic, so that one text serves SSE2, AVX2, AVX-512, NEON and
// machines without vectors; intrinsics appear only where the compilers have no portable spelling (float16, masks) or
// choose badly. `a * b + c` becomes one fused multiply-add where the machine has it (-ffp-contract=fast).
//
// Included only by kernels_<name>.cpp, inside the namespace BATCHFREE_ISA: every name here exists once per set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "element_types.hpp"

namespace batchfree {
namespace BATCHFREE_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class A>
struct Vector {
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(A));
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vec = typename Vector<A>::type;
template <class A>
inline constexpr int kLanes = Vector<A>::lanes;

using U32 = Vec<std::uint32_t>;
using I32 = Vec<std::int32_t>;
typedef std::uint16_t U16Half __attribute__((vector_size(kVectorBytes / 2)));  // one 16-bit element per float32 lane

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class A>
inline Vec<A> broadcast(A value) {
  return value - Vec<A>{};  // minus zero keeps the sign of a zero
}

}  // namespace BATCHFREE_ISA
}  // namespace batchfree
