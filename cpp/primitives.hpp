// The inner loops that every instruction set provides, as tables of functions: the contract between the drivers
// (channels_first.cpp, channels_last.cpp), compiled once, and primitives_impl.hpp, compiled once per instruction set.
//
// Accumulation: sums run in Compute<T> over several independent vectors, over at most kMaxSumLength values, and leave
// as double. Aliasing: outputs may not overlap inputs. Threads: every function is pure, single-threaded and does not
// allocate. A null `residual` or `dresidual` means there is none.
#pragma once

#include <cstdint>

#include "element_types.hpp"
#include "moments.hpp"

namespace batchfree {

// Longest run of values that one call may add up in float32: above it rounding would grow, so drivers cut chunks.
inline constexpr std::int64_t kMaxSumLength = 8192;

// A rounded mean loses digits (5e-4 at an offset of 1e4). x - rounded is still exact near it, so the loss is a constant
// that callers fold into `shift` and `offset`, and into the sums that come back.

// z = (x - mean) * scale[c] + shift[c].
template <class T>
struct AffineRuns {
  Compute<T> mean;
  const Compute<T>* scale;
  const Compute<T>* shift;
};

// dx = dz * scale[c] - (x - mean) * slope - offset, with dz = dy * act'(z).
template <class T>
struct GradientLine {
  Compute<T> slope;
  Compute<T> offset;
};

// `channels` runs of `count` contiguous values; each starts `stride` values after the one before.
struct Runs {
  std::int64_t channels;
  std::int64_t count;
  std::int64_t stride;
};

// Channels-first: some neighbouring channels of one group.
template <class T>
struct RunPrimitives {
  Moments (*moments)(const T* x, std::int64_t count);  // of one contiguous run, whatever its channels
  // is_far, here and below: the tensor lies beyond the caches, and so will the output.
  void (*normalize[kActivationCount])(const T* x, const T* residual, T* y, Runs, AffineRuns<T>, bool is_far);
  // Overwrites, per channel, the sum of dz and that of dz * (x - mean).
  void (*gradient_sums[kActivationCount])(const T* x, const T* residual, const T* dy, Runs, AffineRuns<T>,
                                          Compute<T>* dz, Compute<T>* dz_centred);
  void (*gradient[kActivationCount])(const T* x, const T* residual, const T* dy, T* dx, T* dresidual, Runs,
                                     AffineRuns<T>, GradientLine<T>, bool is_far);
};

// The same with a mean per channel, for channels-last rows.
template <class T>
struct AffineRow {
  const Compute<T>* mean;
  const Compute<T>* scale;
  const Compute<T>* shift;
};

// Channels-last: `rows` adjacent rows of `channels` contiguous values each.
template <class T>
struct RowPrimitives {
  // Fills out[groups]; scratch holds 3 * channels values.
  void (*moments)(const T* x, std::int64_t rows, std::int64_t channels, std::int64_t groups, Compute<T>* scratch,
                  Moments* out);
  void (*normalize[kActivationCount])(const T* x, const T* residual, T* y, std::int64_t rows, std::int64_t channels,
                                      AffineRow<T>, bool is_far);
  // Overwrites dz[channels] and dz_centred[channels].
  void (*gradient_sums[kActivationCount])(const T* x, const T* residual, const T* dy, std::int64_t rows,
                                          std::int64_t channels, AffineRow<T>, Compute<T>* dz,
                                          Compute<T>* dz_centred);
  void (*gradient[kActivationCount])(const T* x, const T* residual, const T* dy, T* dx, T* dresidual,
                                     std::int64_t rows, std::int64_t channels, AffineRow<T>,
                                     const Compute<T>* slope, const Compute<T>* offset, bool is_far);
};

template <class T>
struct Primitives {
  RunPrimitives<T> run;
  RowPrimitives<T> row;
};

// One per instruction set, in kernels_<name>.cpp.
struct PrimitiveTable {
  Primitives<float> float32;
  Primitives<double> float64;
  Primitives<BFloat16> bfloat16;
  Primitives<Float16> float16;
};

namespace baseline { extern const PrimitiveTable table; }
namespace avx2 { extern const PrimitiveTable table; }
namespace avx512 { extern const PrimitiveTable table; }
namespace neon { extern const PrimitiveTable table; }

}  // namespace batchfree
