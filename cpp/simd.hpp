// Vectors in memory: loaded and stored whole or in part, and the sums of their lanes.
//
// Included only by kernels_<name>.cpp, inside the namespace BATCHFREE_ISA: every name here exists once per set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "half_precision.hpp"
#include "vector_types.hpp"

namespace batchfree {
namespace BATCHFREE_ISA {

// ---- one whole vector, widened to Compute<T> ----

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

// Past the caches, where the instruction set can: what they would not hold until it is read need not be read into them
// first to be written. Only to what `is_streamable`, and `end_streams` before another thread may look.
template <class T>
inline void stream(T* to, Vec<Compute<T>> vector) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    _mm512_stream_ps(to, bit_cast<__m512>(vector));
  } else if constexpr (std::is_same_v<T, double>) {
    _mm512_stream_pd(to, bit_cast<__m512d>(vector));
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bit_cast<__m256i>(narrow(vector, T{})));
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
    _mm256_stream_ps(to, bit_cast<__m256>(vector));
  } else if constexpr (std::is_same_v<T, double>) {
    _mm256_stream_pd(to, bit_cast<__m256d>(vector));
  } else {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), bit_cast<__m128i>(narrow(vector, T{})));
  }
#else
  store(to, vector);  // never called: nothing is streamable
#endif
}

inline void end_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Whether rows of `stride` elements from `to` on can be streamed: whole lines of the caches, for a part of one is slow.
template <class T>
inline bool is_streamable([[maybe_unused]] const T* to, [[maybe_unused]] std::int64_t stride) {
#if defined(__AVX2__)
  constexpr std::uintptr_t kLine = 64;
  return reinterpret_cast<std::uintptr_t>(to) % kLine == 0 && stride * sizeof(T) % kLine == 0;
#else
  return false;
#endif
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
