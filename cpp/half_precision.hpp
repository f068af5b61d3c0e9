// bfloat16 and float16: a vector of them widened to float32 and rounded back. Included only after vector_types.hpp.
#pragma once

#include "vector_types.hpp"

namespace batchfree {
namespace BATCHFREE_ISA {

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

}  // namespace BATCHFREE_ISA
}  // namespace batchfree
