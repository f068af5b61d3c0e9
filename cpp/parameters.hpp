// Reading weights and biases, whatever they are stored as, and what follows from a group's variance.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "group_norm.hpp"

namespace batchfree {

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

// The parameter of channel `c`, or `otherwise` where there are no parameters.
inline double parameter(const Parameters& parameters, std::int64_t c, double otherwise) {
  if (!parameters.values) return otherwise;
  switch (parameters.element) {
    case ElementType::float32: return static_cast<const float*>(parameters.values)[c];
    case ElementType::float64: return static_cast<const double*>(parameters.values)[c];
    case ElementType::bfloat16: return to_double(static_cast<const BFloat16*>(parameters.values)[c]);
    case ElementType::float16: return to_double(static_cast<const Float16*>(parameters.values)[c]);
  }
  return otherwise;
}

// All of them as double, so that loops over channels need not ask for the type each time.
inline std::vector<double> parameters(const Parameters& stored, std::int64_t channels, double otherwise) {
  std::vector<double> values(static_cast<std::size_t>(channels));
  for (std::int64_t c = 0; c < channels; ++c) values[c] = parameter(stored, c, otherwise);
  return values;
}

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

// Of every (sample, group): a root and two divisions, which several passes need.
inline std::vector<Scale> scales_of(const Problem& problem, const Statistics& statistics) {
  std::vector<Scale> scales(static_cast<std::size_t>(problem.samples * problem.groups));
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = scale_of(problem, statistics.variance[i]);
  return scales;
}

}  // namespace batchfree
