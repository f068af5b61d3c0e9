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

// z = (x - mean) * scale + shift, for one channel of one sample.
struct Affine {
  double mean;
  double scale;
  double shift;
};

// Per channel: sum of dz, and of dz * (x - mean). With dz = dy * act'(z).
struct GradientSums {
  double dz = 0;
  double dz_centred = 0;
};

// dx = dz * affine.scale - (x - mean) * slope - offset.
struct GradientLine {
  double slope;
  double offset;
};

// The same per channel, for channels-last rows. Means come as the sum of two numbers: `mean` rounded to Compute<T>,
// with what the rounding lost already folded into `shift` (and `offset`).
template <class T>
struct AffineRow {
  const Compute<T>* mean;
  const Compute<T>* scale;
  const Compute<T>* shift;
};

// `count` contiguous values of one channel (or, for moments, of one group).
template <class T>
struct RunPrimitives {
  Moments (*moments)(const T* x, std::int64_t count);
  void (*normalize[kActivationCount])(const T* x, const T* residual, T* y, std::int64_t count, Affine);
  GradientSums (*gradient_sums[kActivationCount])(const T* x, const T* residual, const T* dy, std::int64_t count,
                                                  Affine);
  void (*gradient[kActivationCount])(const T* x, const T* residual, const T* dy, T* dx, T* dresidual,
                                     std::int64_t count, Affine, GradientLine);
};

// `rows` adjacent rows of `channels` contiguous values each.
template <class T>
struct RowPrimitives {
  // Fills out[groups]; scratch holds 3 * channels values.
  void (*moments)(const T* x, std::int64_t rows, std::int64_t channels, std::int64_t groups, Compute<T>* scratch,
                  Moments* out);
  void (*normalize[kActivationCount])(const T* x, const T* residual, T* y, std::int64_t rows, std::int64_t channels,
                                      AffineRow<T>);
  // Overwrites dz[channels] and dz_centred[channels].
  void (*gradient_sums[kActivationCount])(const T* x, const T* residual, const T* dy, std::int64_t rows,
                                          std::int64_t channels, AffineRow<T>, Compute<T>* dz,
                                          Compute<T>* dz_centred);
  void (*gradient[kActivationCount])(const T* x, const T* residual, const T* dy, T* dx, T* dresidual,
                                     std::int64_t rows, std::int64_t channels, AffineRow<T>,
                                     const Compute<T>* slope, const Compute<T>* offset);
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
