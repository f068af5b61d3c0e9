// Vectors of numbers, as wide as the instruction set this file is compiled for.
//
// GCC's and Clang's vector extensions carry the arithmetic, so that one text serves SSE2, AVX2, AVX-512, NEON and
// machines without vectors; intrinsics appear only where the compilers have no portable spelling (float16, masks).
// `a * b + c` becomes one fused multiply-add where the machine has it (-ffp-contract=fast).
//
// Included only by kernels_<name>.cpp, inside the namespace BATCHFREE_ISA: every name here exists once per set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

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

// ---- one vector of elements, widened to Compute<T> ----

// bfloat16 is the high half of a float32. Spelled out, because GCC 12 makes three to six instructions of
// __builtin_convertvector, and narrows by one that stores slowly.
inline U32 as_high_halves(U16Half halves) {
#if defined(__AVX512F__)
  alignas(64) static constexpr std::uint16_t kWords[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                           0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  const __m512i source = _mm512_castsi256_si512(bit_cast<__m256i>(halves));
  return bit_cast<U32>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, _mm512_load_si512(kWords), source));
#elif defined(__AVX2__)
  return bit_cast<U32>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(halves))) << 16;
#else
  return __builtin_convertvector(halves, U32) << 16;
#endif
}
inline U16Half high_halves(U32 bits) {
#if defined(__AVX512F__)
  alignas(64) static constexpr std::uint16_t kOdd[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  const __m512i gathered = _mm512_permutexvar_epi16(_mm512_load_si512(kOdd), bit_cast<__m512i>(bits));
  return bit_cast<U16Half>(_mm512_castsi512_si256(gathered));
#elif defined(__AVX2__)
  const __m256i shifted = bit_cast<__m256i>(bits >> 16);
  return bit_cast<U16Half>(_mm_packus_epi32(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256(shifted, 1)));
#else
  return __builtin_convertvector(bits >> 16, U16Half);
#endif
}

inline Vec<float> widen(U16Half bits, BFloat16) { return bit_cast<Vec<float>>(as_high_halves(bits)); }

inline U16Half narrow(Vec<float> value, BFloat16) {
  const U32 bits = bit_cast<U32>(value);
#if defined(__AVX512F__)
  const __mmask16 is_odd = _mm512_test_epi32_mask(bit_cast<__m512i>(bits), _mm512_set1_epi32(0x10000));
  const __m512i most = bit_cast<__m512i>(bits + 0x7fffu);
  const U32 rounded = bit_cast<U32>(_mm512_mask_add_epi32(most, is_odd, most, _mm512_set1_epi32(1)));
#else
  const U32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
#endif
  const U32 quiet_nan = U32{} + 0x7fc00000u;
  return high_halves(value != value ? quiet_nan : rounded);
}

#if defined(__AVX512F__)
inline Vec<float> widen(U16Half bits, Float16) {
  return bit_cast<Vec<float>>(_mm512_cvtph_ps(bit_cast<__m256i>(bits)));
}
inline U16Half narrow(Vec<float> value, Float16) {
  return bit_cast<U16Half>(_mm512_cvtps_ph(bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
inline Vec<float> widen(U16Half bits, Float16) {
  return bit_cast<Vec<float>>(_mm256_cvtph_ps(bit_cast<__m128i>(bits)));
}
inline U16Half narrow(Vec<float> value, Float16) {
  return bit_cast<U16Half>(_mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__aarch64__)
inline Vec<float> widen(U16Half bits, Float16) {
  return bit_cast<Vec<float>>(vcvt_f32_f16(bit_cast<float16x4_t>(bits)));
}
inline U16Half narrow(Vec<float> value, Float16) {
  return bit_cast<U16Half>(vcvt_f16_f32(bit_cast<float32x4_t>(value)));
}
#else
// By integers (after F. Giesen, "Float->half variants", public domain): exact, subnormals and NaN included.
inline Vec<float> widen(U16Half half, Float16) {
  const U32 bits = __builtin_convertvector(half, U32);
  const U32 sign = (bits & 0x8000u) << 16;
  const U32 magnitude = (bits & 0x7fffu) << 13;
  const U32 special = (bits & 0x7c00u) == 0x7c00u ? U32{} + (0xffu << 23) : U32{};
  // The exponent's bias is put right by a multiplication, which also normalises subnormals.
  const Vec<float> scaled = bit_cast<Vec<float>>(magnitude) * 0x1p112f;
  return bit_cast<Vec<float>>(sign | bit_cast<U32>(scaled) | special);
}
inline U16Half narrow(Vec<float> value, Float16) {
  const U32 bits = bit_cast<U32>(value);
  const U32 magnitude = bits & 0x7fffffffu;
  const U32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the sum with 0.5 lines the bits up at the half's last place and rounds them there.
  const U32 subnormal = bit_cast<U32>(bit_cast<Vec<float>>(magnitude) + 0.5f) - (126u << 23);
  const U32 infinite = U32{} + 0x7c00u, quiet_nan = U32{} + 0x7e00u;
  U32 half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= (143u << 23) ? infinite : half;
  half = magnitude > (255u << 23) ? quiet_nan : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), U16Half);
}
#endif

template <class T>
inline Vec<Compute<T>> load(const T* from) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    Vec<T> vector;
    std::memcpy(&vector, from, sizeof(vector));
    return vector;
  } else {
    U16Half bits;
    std::memcpy(&bits, from, sizeof(bits));
    return widen(bits, T{});
  }
}

template <class T>
inline void store(T* to, Vec<Compute<T>> vector) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    std::memcpy(to, &vector, sizeof(vector));
  } else {
    const U16Half bits = narrow(vector, T{});
    std::memcpy(to, &bits, sizeof(bits));
  }
}

// Zero where value < 0, and a NaN where it is one: the order of the operands decides that.
template <class A>
inline Vec<A> without_negatives(Vec<A> value) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float>) {
    return bit_cast<Vec<A>>(_mm512_max_ps(_mm512_setzero_ps(), bit_cast<__m512>(value)));
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<A, float>) {
    return bit_cast<Vec<A>>(_mm256_max_ps(_mm256_setzero_ps(), bit_cast<__m256>(value)));
  }
#endif
  return value < A(0) ? Vec<A>{} : value;
}

// ---- the first `count` lanes only (0 < count < lanes); the other lanes read as zero ----

#if defined(__AVX2__) && !defined(__AVX512F__)
// `words` ones, then zeros.
inline __m256i first_words(std::int64_t words) {
  alignas(64) static constexpr std::int32_t kOnesThenZeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kOnesThenZeros + 8 - words));
}
#endif

#if !defined(__AVX512F__)
#if defined(__AVX2__)
typedef std::uint64_t Words __attribute__((vector_size(16)));
inline U16Half from_words(std::uint64_t first, std::uint64_t second) { return bit_cast<U16Half>(Words{first, second}); }
inline std::uint64_t first_word(U16Half vector) { return bit_cast<Words>(vector)[0]; }
inline std::uint64_t second_word(U16Half vector) { return bit_cast<Words>(vector)[1]; }
#else
inline U16Half from_words(std::uint64_t first, std::uint64_t) { return bit_cast<U16Half>(first); }
inline std::uint64_t first_word(U16Half vector) { return bit_cast<std::uint64_t>(vector); }
inline std::uint64_t second_word(U16Half) { return 0; }
#endif

// Up to seven 16-bit elements, by registers: a vector read back from memory just written in pieces waits for them all.
template <class T>
inline U16Half load_few(const T* from, std::int64_t count) {
  const auto read = [&](auto bits) {
    std::memcpy(&bits, from, sizeof(bits));
    from += sizeof(bits) / sizeof(T);
    return static_cast<std::uint64_t>(bits);
  };
  const std::uint64_t four = count & 4 ? read(std::uint64_t{}) : 0;
  std::uint64_t rest = count & 2 ? read(std::uint32_t{}) : 0;
  if (count & 1) rest |= read(std::uint16_t{}) << (count & 2) * 16;
  return from_words(count & 4 ? four : rest, count & 4 ? rest : 0);
}
template <class T>
inline void store_few(T* to, U16Half vector, std::int64_t count) {
  const auto write = [&](auto bits, std::uint64_t from) {
    bits = static_cast<decltype(bits)>(from);
    std::memcpy(to, &bits, sizeof(bits));
    to += sizeof(bits) / sizeof(T);
  };
  const std::uint64_t first = first_word(vector), last = count & 4 ? second_word(vector) : first;
  if (count & 4) write(std::uint64_t{}, first);
  if (count & 2) write(std::uint32_t{}, last);
  if (count & 1) write(std::uint16_t{}, last >> (count & 2) * 16);
}
#endif

template <class T>
inline Vec<Compute<T>> load_first(const T* from, std::int64_t count) {
#if defined(__AVX512F__)
  const unsigned mask = (1u << count) - 1u;
  if constexpr (std::is_same_v<T, float>) {
    return bit_cast<Vec<float>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from));
  } else if constexpr (std::is_same_v<T, double>) {
    return bit_cast<Vec<double>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from));
  } else {
    return widen(bit_cast<U16Half>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), from)), T{});
  }
#else
#if defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
    return bit_cast<Vec<float>>(_mm256_maskload_ps(from, first_words(count)));
  } else if constexpr (std::is_same_v<T, double>) {
    return bit_cast<Vec<double>>(_mm256_maskload_pd(from, first_words(2 * count)));
  }
#endif
  if constexpr (sizeof(T) == 2) return widen(load_few(from, count), T{});
  T buffer[kLanes<Compute<T>>] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = from[i];
  return load(buffer);
#endif
}

template <class T>
inline void store_first(T* to, Vec<Compute<T>> vector, std::int64_t count) {
#if defined(__AVX512F__)
  const unsigned mask = (1u << count) - 1u;
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), bit_cast<__m512>(vector));
  } else if constexpr (std::is_same_v<T, double>) {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), bit_cast<__m512d>(vector));
  } else {
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(mask), bit_cast<__m256i>(narrow(vector, T{})));
  }
#else
#if defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
    return _mm256_maskstore_ps(to, first_words(count), bit_cast<__m256>(vector));
  } else if constexpr (std::is_same_v<T, double>) {
    return _mm256_maskstore_pd(to, first_words(2 * count), bit_cast<__m256d>(vector));
  }
#endif
  if constexpr (sizeof(T) == 2) return store_few(to, narrow(vector, T{}), count);
  T buffer[kLanes<Compute<T>>];
  store(buffer, vector);
  for (std::int64_t i = 0; i < count; ++i) to[i] = buffer[i];
#endif
}

// Zero in every lane from `count` on.
template <class A>
inline Vec<A> keep_first(Vec<A> vector, std::int64_t count) {
  using Index = std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t>;
  Vec<Index> index;
  for (int i = 0; i < kLanes<A>; ++i) index[i] = i;
  return index < static_cast<Index>(count) ? vector : Vec<A>{};
}

// By halves: as exact as any order, and a handful of instructions. The last four lanes are added one by one: compilers
// keep vectors of less than 16 bytes in memory.
template <class A, int lanes = kLanes<A>, class V>
inline double sum_of_lanes(V vector) {
  if constexpr (lanes == 2) {
    return static_cast<double>(vector[0]) + static_cast<double>(vector[1]);
  } else if constexpr (lanes * sizeof(A) == 16) {
    return static_cast<double>(vector[0] + vector[2]) + static_cast<double>(vector[1] + vector[3]);
  } else {
    typedef A Half __attribute__((vector_size(lanes / 2 * sizeof(A))));
    Half halves[2];
    std::memcpy(halves, &vector, sizeof(halves));
    return sum_of_lanes<A, lanes / 2>(halves[0] + halves[1]);
  }
}

// In each block of 2 * half lanes: the two halves of a's block added, then those of b's.
template <class A, int half, int... lane>
inline Vec<A> add_halves(Vec<A> a, Vec<A> b, std::integer_sequence<int, lane...>) {
  constexpr auto of_a = [](int i) { return i % (2 * half) < half; };
  return __builtin_shufflevector(a, b, (of_a(lane) ? lane : lane - half + kLanes<A>)...) +
         __builtin_shufflevector(a, b, (of_a(lane) ? lane + half : lane + kLanes<A>)...);
}

// Lane i is the sum of the lanes of vectors[i], for kLanes vectors: as one tree, a third of the work of single sums.
template <class A, int half = 1>
inline Vec<A> sums_of_lanes(const Vec<A>* vectors) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<A>>{};
  if constexpr (2 * half == kLanes<A>) {
    return add_halves<A, half>(vectors[0], vectors[half], lanes);
  } else {
    return add_halves<A, half>(sums_of_lanes<A, 2 * half>(vectors), sums_of_lanes<A, 2 * half>(vectors + half), lanes);
  }
}

}  // namespace BATCHFREE_ISA
}  // namespace batchfree
