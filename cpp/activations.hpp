// The activations and their derivatives on vectors. Included only after simd.hpp.
//
// float32 uses polynomials (absolute error about 1e-7); float64, which serves gradient checks, calls the C library
// lane by lane. NaN stays NaN everywhere: the clamps are comparisons that a NaN fails.
#pragma once

#include <cmath>

#include "simd.hpp"

namespace batchfree {
namespace BATCHFREE_ISA {

template <class A>
inline Vec<A> clamp(Vec<A> x, A low, A high) {
  x = x < low ? broadcast<A>(low) : x;
  return x > high ? broadcast<A>(high) : x;
}

inline Vec<float> exp(Vec<float> x) {
  x = clamp<float>(x, -87.3f, 88.3f);
  // Adding 1.5 * 2^23 rounds to a whole number, which then sits in the low bits.
  const Vec<float> magic = broadcast(12582912.0f);
  const Vec<float> shifted = x * 1.44269504f + magic;
  const Vec<float> n = shifted - magic;
  Vec<float> r = x - n * 0.693359375f;  // ln 2 in two parts (Cody & Waite 1980)
  r = r + n * 2.12194440e-4f;
  Vec<float> p = r * 1.98756915e-4f + 1.39819995e-3f;
  p = p * r + 8.33345191e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const I32 power = (bit_cast<I32>(shifted) - bit_cast<I32>(magic)) << 23;
  return bit_cast<Vec<float>>(bit_cast<I32>(p) + power);
}

inline Vec<float> erf(Vec<float> x) {
  constexpr float kSeam = 0.93f;
  const Vec<float> t = x < 0.0f ? -x : x;
  const Vec<float> s = x * x;
  // Fitted to erf(x)/x - 1 in x^2, and to -log(erfc(x)) on [0.93, 4], at Chebyshev nodes; together within 6e-8.
  Vec<float> near = s * 8.33997183e-05f - 8.13607476e-04f;
  near = near * s + 5.20050153e-03f;
  near = near * s - 2.68592108e-02f;
  near = near * s + 1.12836927e-01f;
  near = near * s - 3.76126349e-01f;
  near = near * s + 1.28379166e-01f;
  near = near * x + x;
  const Vec<float> u = t > 4.0f ? broadcast(4.0f) : t;
  Vec<float> far = u * -1.6138589e-06f + 4.5586683e-05f;
  far = far * u - 5.92737168e-04f;
  far = far * u + 4.74007661e-03f;
  far = far * u - 2.63643283e-02f;
  far = far * u + 1.09977618e-01f;
  far = far * u + 6.31937683e-01f;
  far = far * u + 1.13016641f;
  far = far * u - 3.03166598e-04f;
  far = 1.0f - exp(-far);
  far = x < 0.0f ? -far : far;
  return t > kSeam ? far : near;
}

template <double (*function)(double)>
inline Vec<double> by_lane(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = function(x[i]);
  return x;
}
inline double library_exp(double x) { return std::exp(x); }
inline double library_erf(double x) { return std::erf(x); }
inline Vec<double> exp(Vec<double> x) { return by_lane<library_exp>(clamp<double>(x, -708.0, 709.0)); }
inline Vec<double> erf(Vec<double> x) { return by_lane<library_erf>(x); }

template <class A>
inline Vec<A> sigmoid(Vec<A> z) {
  return A(1) / (A(1) + exp(-z));
}

// value(z) is act(z); gradient(z, dy) is dy * act'(z).
template <Activation>
struct Act;

template <>
struct Act<Activation::none> {
  template <class A>
  static Vec<A> value(Vec<A> z) { return z; }
  template <class A>
  static Vec<A> gradient(Vec<A>, Vec<A> dy) { return dy; }
};

template <>
struct Act<Activation::relu> {
  template <class A>
  static Vec<A> value(Vec<A> z) { return without_negatives<A>(z); }
  template <class A>
  static Vec<A> gradient(Vec<A> z, Vec<A> dy) { return z <= A(0) ? Vec<A>{} : dy; }
};

template <>
struct Act<Activation::silu> {
  template <class A>
  static Vec<A> value(Vec<A> z) { return z / (A(1) + exp(-z)); }
  template <class A>
  static Vec<A> gradient(Vec<A> z, Vec<A> dy) {
    const Vec<A> s = sigmoid<A>(z);
    return dy * (s + z * s * (A(1) - s));
  }
};

template <>
struct Act<Activation::gelu> {
  template <class A>
  static Vec<A> distribution(Vec<A> z) { return A(0.5) + A(0.5) * erf(z * A(0.70710678118654752440)); }
  template <class A>
  static Vec<A> value(Vec<A> z) { return z * distribution<A>(z); }
  template <class A>
  static Vec<A> gradient(Vec<A> z, Vec<A> dy) {
    const Vec<A> density = exp(z * z * A(-0.5)) * A(0.39894228040143267794);
    return dy * (distribution<A>(z) + z * density);
  }
};

template <>
struct Act<Activation::gelu_tanh> {
  // 0.5 * (1 + tanh(u)) is sigmoid(2u), with u = sqrt(2 / pi) * (z + 0.044715 z^3).
  static constexpr double kTwice = 1.59576912160573071176;
  template <class A>
  static Vec<A> half_one_plus_tanh(Vec<A> z) { return sigmoid<A>((z + z * z * z * A(0.044715)) * A(kTwice)); }
  template <class A>
  static Vec<A> value(Vec<A> z) { return z * half_one_plus_tanh<A>(z); }
  template <class A>
  static Vec<A> gradient(Vec<A> z, Vec<A> dy) {
    const Vec<A> s = half_one_plus_tanh<A>(z);
    const Vec<A> slope = (z * z * A(3 * 0.044715) + A(1)) * A(kTwice);
    return dy * (s + z * s * (A(1) - s) * slope);
  }
};

}  // namespace BATCHFREE_ISA
}  // namespace batchfree
