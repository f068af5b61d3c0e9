// Inner loops over contiguous runs: one channel of a channels-first tensor, or a whole group for its moments.
// Included only by kernels_<name>.cpp, after activations.hpp.
#pragma once

#include "activations.hpp"
#include "primitives.hpp"

namespace batchfree {
namespace BATCHFREE_ISA {

template <class T>
struct Run {
  using A = Compute<T>;
  using V = Vec<A>;
  static constexpr std::int64_t lanes = kLanes<A>;

  // Where float32 sums overflow (values beyond 1e17 or so), or hold a NaN or Inf: the same in double.
  static Moments wide_moments(const T* x, std::int64_t count) {
    const auto value = [x](std::int64_t i) { return static_cast<double>(load_first(x + i, 1)[0]); };
    Moments result;
    result.count = static_cast<double>(count);
    for (std::int64_t i = 0; i < count; ++i) result.mean += value(i) / result.count;
    for (std::int64_t i = 0; i < count; ++i) {
      const double centred = value(i) - result.mean;
      result.squares += centred * centred;
    }
    return result;
  }

  // Two passes, the second in cache: a rough mean, then sums of d = x - mean and d^2. The sum of d mends what the
  // rounding of the first mean left, so neither an offset nor an outlier costs digits.
  static Moments moments(const T* x, std::int64_t count) {
    V sum[4] = {};
    std::int64_t i = 0;
    for (; i + 4 * lanes <= count; i += 4 * lanes) {
      for (int k = 0; k < 4; ++k) sum[k] += load(x + i + k * lanes);
    }
    for (; i + lanes <= count; i += lanes) sum[0] += load(x + i);
    if (i < count) sum[0] += load_first(x + i, count - i);
    const A rough = static_cast<A>(sum_of_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3])) / count);

    const V centre = broadcast(rough);
    V first[4] = {}, second[4] = {};
    const auto add = [&](int k, V centred) {
      first[k] += centred;
      second[k] += centred * centred;
    };
    for (i = 0; i + 4 * lanes <= count; i += 4 * lanes) {
      for (int k = 0; k < 4; ++k) add(k, load(x + i + k * lanes) - centre);
    }
    for (; i + lanes <= count; i += lanes) add(0, load(x + i) - centre);
    if (i < count) add(0, keep_first<A>(load_first(x + i, count - i) - centre, count - i));
    const double total = sum_of_lanes<A>((first[0] + first[1]) + (first[2] + first[3]));
    const double squares = sum_of_lanes<A>((second[0] + second[1]) + (second[2] + second[3]));

    const double size = static_cast<double>(count);
    const Moments result{size, rough + total / size, std::fmax(squares - total * total / size, 0.0)};
    return std::isfinite(squares) && std::isfinite(result.mean) ? result : wide_moments(x, count);
  }

  // x - mean is exact when x is near the rounded mean (Sterbenz); what the rounding lost goes into the shift.
  struct Line {
    V mean, scale, shift;
    double mean_rest;
    explicit Line(const Affine& affine) {
      const A rounded = static_cast<A>(affine.mean);
      mean_rest = affine.mean - rounded;
      mean = broadcast(rounded);
      scale = broadcast(static_cast<A>(affine.scale));
      shift = broadcast(static_cast<A>(affine.shift - mean_rest * affine.scale));
    }
    V at(V centred, V residual) const { return centred * scale + shift + residual; }
    V at(V centred) const { return centred * scale + shift; }
  };

  // Calls body(take, give) for each vector of [0, count): `take(pointer)` loads and `give(pointer, vector)` stores
  // whole vectors, or the first lanes of the last one, so that a loop body is written once.
  template <class Body>
  static void for_each(std::int64_t count, Body&& body) {
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      body([i](const T* p) { return load(p + i); }, [i](T* p, V v) { store(p + i, v); });
    }
    if (const std::int64_t rest = count - i) {
      body([i, rest](const T* p) { return load_first(p + i, rest); },
           [i, rest](T* p, V v) { store_first(p + i, v, rest); });
    }
  }

  template <Activation act>
  static void normalize(const T* x, const T* residual, T* y, std::int64_t count, Affine affine) {
    const Line line(affine);
    if (residual) {
      for_each(count, [&](auto take, auto give) {
        give(y, Act<act>::template value<A>(line.at(take(x) - line.mean, take(residual))));
      });
    } else {
      for_each(count, [&](auto take, auto give) {
        give(y, Act<act>::template value<A>(line.at(take(x) - line.mean)));
      });
    }
  }

  template <Activation act, bool has_residual>
  static GradientSums sums(const T* x, const T* residual, const T* dy, std::int64_t count, const Line& line) {
    V dz_sum[4] = {}, dz_centred_sum[4] = {};
    const auto add = [&](int k, V centred, V skip, V upstream) {
      V dz = upstream;
      if constexpr (act != Activation::none) {
        dz = Act<act>::template gradient<A>(has_residual ? line.at(centred, skip) : line.at(centred), upstream);
      }
      dz_sum[k] += dz;
      dz_centred_sum[k] += dz * centred;
    };
    std::int64_t i = 0;
    const auto whole = [&](int k, std::int64_t at) {
      add(k, load(x + at) - line.mean, has_residual ? load(residual + at) : V{}, load(dy + at));
    };
    for (; i + 4 * lanes <= count; i += 4 * lanes) {
      for (int k = 0; k < 4; ++k) whole(k, i + k * lanes);
    }
    for (int k = 0; i + lanes <= count; i += lanes, ++k) whole(k, i);
    if (i < count) {
      // The missing lanes of dy are zero, and so is their dz; x - mean must be finite there.
      const std::int64_t rest = count - i;
      add(3, keep_first<A>(load_first(x + i, rest) - line.mean, rest),
          has_residual ? load_first(residual + i, rest) : V{}, load_first(dy + i, rest));
    }
    const double dz = sum_of_lanes<A>((dz_sum[0] + dz_sum[1]) + (dz_sum[2] + dz_sum[3]));
    const double dz_centred =
        sum_of_lanes<A>((dz_centred_sum[0] + dz_centred_sum[1]) + (dz_centred_sum[2] + dz_centred_sum[3]));
    return {dz, dz_centred - line.mean_rest * dz};
  }

  template <Activation act>
  static GradientSums gradient_sums(const T* x, const T* residual, const T* dy, std::int64_t count, Affine affine) {
    const Line line(affine);
    if (act != Activation::none && residual) return sums<act, true>(x, residual, dy, count, line);
    return sums<act, false>(x, residual, dy, count, line);
  }

  template <Activation act>
  static void gradient(const T* x, const T* residual, const T* dy, T* dx, T* dresidual, std::int64_t count,
                       Affine affine, GradientLine back) {
    const Line line(affine);
    const V slope = broadcast(static_cast<A>(back.slope));
    const V offset = broadcast(static_cast<A>(back.offset - line.mean_rest * back.slope));
    if (residual && act != Activation::none) {
      for_each(count, [&](auto take, auto give) {
        const V centred = take(x) - line.mean;
        const V dz = Act<act>::template gradient<A>(line.at(centred, take(residual)), take(dy));
        if (dresidual) give(dresidual, dz);
        give(dx, dz * line.scale - (centred * slope + offset));
      });
    } else {
      for_each(count, [&](auto take, auto give) {
        const V centred = take(x) - line.mean;
        const V dz = Act<act>::template gradient<A>(line.at(centred), take(dy));
        give(dx, dz * line.scale - (centred * slope + offset));
      });
    }
  }
};

}  // namespace BATCHFREE_ISA
}  // namespace batchfree
