// Reading weights and biases, whatever they are stored as, and what follows from a group's variance.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "group_norm.hpp"

namespace batchfree {

inline double to_double(float value) { return value; }
inline double to_double(double value) { return value; }

inline double to_double(BFloat16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline double to_double(Float16 value) {
  const int exponent = (value.bits >> 10) & 0x1f;
  const int fraction = value.bits & 0x3ff;
  double magnitude;
  if (exponent == 0x1f) magnitude = fraction ? NAN : INFINITY;
  else if (exponent == 0) magnitude = std::ldexp(fraction, -24);
  else magnitude = std::ldexp(fraction + 1024, exponent - 25);
  return value.bits & 0x8000 ? -magnitude : magnitude;
}

// The parameters of all channels in type A, which holds whatever they are stored as exactly.
template <class A>
class PerChannel {
 public:
  // `otherwise` in every channel where there are no parameters.
  PerChannel(const Parameters& stored, std::int64_t channels, A otherwise) {
    constexpr ElementType same = sizeof(A) == 8 ? ElementType::float64 : ElementType::float32;
    if (stored.values && stored.element == same) {
      values_ = static_cast<const A*>(stored.values);
      return;
    }
    converted_.assign(static_cast<std::size_t>(channels), otherwise);
    values_ = converted_.data();
    if (!stored.values) return;
    switch (stored.element) {
      case ElementType::float32: convert(static_cast<const float*>(stored.values)); break;
      case ElementType::float64: convert(static_cast<const double*>(stored.values)); break;
      case ElementType::bfloat16: convert(static_cast<const BFloat16*>(stored.values)); break;
      case ElementType::float16: convert(static_cast<const Float16*>(stored.values)); break;
    }
  }
  PerChannel(const PerChannel&) = delete;

  double operator[](std::int64_t c) const { return values_[c]; }

 private:
  template <class T>
  void convert(const T* stored) {
    for (std::size_t c = 0; c < converted_.size(); ++c) converted_[c] = static_cast<A>(to_double(stored[c]));
  }

  const A* values_;
  std::vector<A> converted_;
};

// rstd divides a centred value. slope_factor: with dz's sums weighted over a group's channels,
// dx = rstd * weight * dz - rstd * sum(weight * dz) / m - (x - mean) * slope_factor * sum(weight * dz * (x - mean)).
struct Scale {
  double rstd;
  double slope_factor;
};

inline Scale scale_of(const Problem& problem, double variance) {
  const double m = static_cast<double>(problem.values_per_group());
  if (problem.divisor == Divisor::biased) {
    const double rstd = 1 / std::sqrt(variance + problem.eps);
    return {rstd, rstd * rstd * rstd / m};
  }
  const double deviation = std::sqrt(variance * m / (m - 1));
  const double rstd = 1 / (deviation + problem.eps);
  // In a constant filter every x - mean is zero, and with it what the slope multiplies.
  return {rstd, deviation == 0 ? 0 : rstd * rstd / ((m - 1) * deviation)};
}

}  // namespace batchfree
