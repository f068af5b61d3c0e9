// Group Norm and Weight Standardization, forward and backward: the contract of the core.
//
//   y = act((x - mean) * rstd * weight + bias [+ residual]),   rstd = 1 / sqrt(variance + eps)
//
// mean and biased variance per (sample, group), held in double, from centred sums merged in a fixed order. The work is
// cut by the shape alone, never by the number of threads, so results are bit-identical for any number of threads.
// A NaN or Inf stays in its own (sample, group); weight's and bias's gradients, which add over samples, do see it.
//
// Pointers: x, residual, y, dy, dx and dresidual are dense, in the same layout, of `element`; outputs may not overlap
// inputs. Outputs are overwritten whole, whatever they held. Functions return only when all threads are done, keep no
// state between calls and may be called from several threads at once.
#pragma once

#include <cstdint>

#include "element_types.hpp"
#include "primitives.hpp"

namespace batchfree {

// channels_first: (samples, channels, spatial). channels_last: (samples, spatial, channels).
enum class Layout { channels_first, channels_last };

// What a centred value is divided by. unbiased: sqrt(squares / (m - 1)) + eps, as Qiao et al. 2019 write it.
enum class Divisor { biased, unbiased };

struct Problem {
  std::int64_t samples;
  std::int64_t channels;
  std::int64_t spatial;
  std::int64_t groups;  // divides channels
  Layout layout;
  ElementType element;
  Activation activation = Activation::none;
  Divisor divisor = Divisor::biased;
  double eps;
  int threads = 1;  // at most this many are used

  std::int64_t values_per_group() const { return channels / groups * spatial; }
  std::int64_t size() const { return samples * channels * spatial; }
};

// `channels` values of `element` type or of float32; null where there are none (1 for weights, 0 for biases).
struct Parameters {
  const void* values;
  ElementType element;
};

// All (samples, groups), in order. Written by forward and moments, read by backward and apply.
struct Statistics {
  double* mean;
  double* variance;
};

struct Forward {
  const void* x;
  Parameters weight;
  Parameters bias;
  const void* residual;  // or null
  void* y;
  Statistics statistics;
};

struct Backward {
  const void* dy;
  const void* x;
  Parameters weight;
  Parameters bias;
  const void* residual;  // or null
  Statistics statistics;
  void* dx;         // or null where neither it nor dresidual is wanted
  void* dresidual;  // or null; without an activation it would be dy, and must be null
  double* dweight;  // (channels); or both null
  double* dbias;
};

void forward(const Problem&, const Forward&, const PrimitiveTable&);
void backward(const Problem&, const Backward&, const PrimitiveTable&);

// The two halves of forward: fills `statistics` from x; or reads them and writes y.
void moments(const Problem&, const Forward&, const PrimitiveTable&);
void apply(const Problem&, const Forward&, const PrimitiveTable&);

}  // namespace batchfree
