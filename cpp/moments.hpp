// Mean and spread of a set of values, and how two disjoint sets are merged.
#pragma once

namespace batchfree {

// In double whatever the elements are: a float32 mean of data with offset 1e4 is already wrong by 5e-4.
struct Moments {
  double count = 0;
  double mean = 0;
  double squares = 0;  // sum of (x - mean)^2: centred, so nothing cancels
};

// Chan, Golub & LeVeque 1979, Eq. 2.1. Called in a fixed order, so that a result does not depend on threads.
inline void merge(Moments& into, const Moments& part) {
  const double count = into.count + part.count;
  const double step = part.mean - into.mean;
  const double share = part.count / count;
  into.squares += part.squares + step * step * into.count * share;
  into.mean += step * share;
  into.count = count;
}

}  // namespace batchfree
