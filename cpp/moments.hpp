// Mean and spread of a set of values, and how disjoint sets are merged.
#pragma once

#include <cstdint>

namespace batchfree {

// In double whatever the elements are: a float32 mean of data with offset 1e4 is already wrong by 5e-4.
struct Moments {
  double count = 0;
  double mean = 0;
  double squares = 0;  // sum of (x - mean)^2: centred, so nothing cancels
};

// Of `count` disjoint sets, `stride` apart in memory. Chan, Golub & LeVeque 1979, Eq. 2.1, for more than two sets at
// once: the mean of all first, then the spread around it. In a fixed order, so that a result does not depend on threads.
inline Moments merged(const Moments* parts, std::int64_t count, std::int64_t stride) {
  if (count == 1) return *parts;
  Moments all;
  const double origin = parts->mean;  // so that equal means stay what they are
  for (std::int64_t i = 0; i < count; ++i) {
    all.count += parts[i * stride].count;
    all.mean += parts[i * stride].count * (parts[i * stride].mean - origin);
  }
  all.mean = origin + all.mean / all.count;
  for (std::int64_t i = 0; i < count; ++i) {
    const double step = parts[i * stride].mean - all.mean;
    all.squares += parts[i * stride].squares + parts[i * stride].count * step * step;
  }
  return all;
}

}  // namespace batchfree
