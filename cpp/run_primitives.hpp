// Inner loops over contiguous runs: one channel of a channels-first tensor, or a whole group for its moments.
// Included only by kernels_<name>.cpp, after activations.hpp.
#pragma once

#include <algorithm>
#include <array>

#include "activations.hpp"
#include "primitives.hpp"

namespace batchfree {
namespace BATCHFREE_ISA {

template <class T>
struct Run {
  using A = Compute<T>;
  using V = Vec<A>;
  static constexpr std::int64_t lanes = kLanes<A>;
  static constexpr std::int64_t kLine = 64 / sizeof(T);  // of a cache
  static constexpr std::int64_t kAhead = 8192 / sizeof(T);

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

  // Sums of d = x - centre and of d^2.
  static std::array<double, 2> centred_sums(const T* x, std::int64_t count, A centre_value) {
    const V centre = broadcast(centre_value);
    V first[4] = {}, second[4] = {};
    const auto add = [&](int k, V centred) {
      first[k] += centred;
      second[k] += centred * centred;
    };
    std::int64_t i = 0;
    for (; i + 4 * lanes <= count; i += 4 * lanes) {
      for (int k = 0; k < 4; ++k) add(k, load(x + i + k * lanes) - centre);
    }
    for (; i + lanes <= count; i += lanes) add(0, load(x + i) - centre);
    if (i < count) add(1, keep_first<A>(load_first(x + i, count - i) - centre, count - i));
    return {sum_of_lanes<A>((first[0] + first[1]) + (first[2] + first[3])),
            sum_of_lanes<A>((second[0] + second[1]) + (second[2] + second[3]))};
  }

  // One pass, centred on the mean of the first few values. Where that turns out to be more than two deviations from
  // the mean, digits would cancel: then a second pass, centred on the mean that the first one found.
  static Moments moments(const T* x, std::int64_t count) {
    // Multiplied by, because a division at the end of a short run is waited for.
    const double size = static_cast<double>(count), share = 1 / size;
    const std::int64_t few = std::min<std::int64_t>(count, 32);
    A centre = static_cast<A>(start_of(x, few) * (1 / static_cast<double>(few)));
    for (bool is_last : {false, true}) {
      const auto [total, squares] = centred_sums(x, count, centre);
      const double step = total * share;
      const double spread = squares * share - step * step;
      if (!std::isfinite(squares)) break;
      if (is_last || step * step <= 4 * spread) return {size, centre + step, std::fmax(spread * size, 0.0)};
      centre = static_cast<A>(centre + step);
    }
    return wide_moments(x, count);
  }

  static double start_of(const T* x, std::int64_t few) {
    V sum{};
    std::int64_t i = 0;
    for (; i + lanes <= few; i += lanes) sum += load(x + i);
    if (i < few) sum += load_first(x + i, few - i);
    return sum_of_lanes<A>(sum);
  }

  // Values from the start of run c on that the call may touch: to the end of the last run where they are adjacent.
  static std::int64_t room_of(Runs runs, std::int64_t c) {
    return runs.stride == runs.count ? (runs.channels - c) * runs.count : runs.count;
  }

  // Calls body(take, give) for each vector of [0, count): `take(pointer)` loads and `give(pointer, vector)` stores
  // whole vectors, or the first lanes of the last one, so that a loop body is written once. Where there is room the
  // last one is whole too: storing in part is slow, and the next run's values overwrite what is too much. With
  // asks_ahead, stores ask for the memory two pages on. Reaching past the end of the tensor does no harm.
  template <bool asks_ahead, class Body>
  static void for_each(std::int64_t count, std::int64_t room, Body&& body) {
    std::int64_t i = 0;
    const std::int64_t whole = room - count >= lanes - 1 ? count : count - lanes + 1;
    for (; i < whole; i += lanes) {
      body([i](const T* p) { return load(p + i); }, [i](T* p, V v) {
        if (asks_ahead && i % kLine == 0) __builtin_prefetch(p + i + kAhead, 1, 2);
        store(p + i, v);
      });
    }
    if (i < count) {
      const std::int64_t rest = count - i;
      body([i, rest](const T* p) { return load_first(p + i, rest); },
           [i, rest](T* p, V v) { store_first(p + i, v, rest); });
    }
  }

  // The same past the caches, for a run of whole vectors that lie as `is_streamable` asks.
  template <class Body>
  static void stream_each(std::int64_t count, Body&& body) {
    for (std::int64_t i = 0; i < count; i += lanes) {
      body([i](const T* p) { return load(p + i); }, [i](T* p, V v) { stream(p + i, v); });
    }
  }

  template <Activation act, bool has_residual>
  static void normalize_runs(const T* x, const T* residual, T* y, Runs runs, AffineRuns<T> affine, bool is_far) {
    const bool streams = is_far && is_streamable(y, runs.stride);
    const V mean = broadcast(affine.mean);
    for (std::int64_t c = 0; c < runs.channels; ++c) {
      const V scale = broadcast(affine.scale[c]), shift = broadcast(affine.shift[c]);
      const std::int64_t at = c * runs.stride;
      const auto body = [=](auto take, auto give) {
        V z = (take(x + at) - mean) * scale + shift;
        if constexpr (has_residual) z += take(residual + at);
        give(y + at, Act<act>::template value<A>(z));
      };
      if (streams) stream_each(runs.count, body);
      else for_each<false>(runs.count, room_of(runs, c), body);
    }
    if (streams) end_streams();
  }

  template <Activation act>
  static void normalize(const T* x, const T* residual, T* y, Runs runs, AffineRuns<T> affine, bool is_far) {
    if (residual) normalize_runs<act, true>(x, residual, y, runs, affine, is_far);
    else normalize_runs<act, false>(x, residual, y, runs, affine, is_far);
  }

  template <Activation act, bool has_residual>
  static V upstream(V centred, V skip, V dy, V scale, V shift) {
    if constexpr (act == Activation::none) return dy;
    V z = centred * scale + shift;
    if constexpr (has_residual) z += skip;
    return Act<act>::template gradient<A>(z, dy);
  }

  // Lane by lane: dz, and dz * (x - mean).
  struct LaneSums {
    V dz{}, dz_centred{};
  };

  template <Activation act, bool has_residual>
  static LaneSums sums_of_run(const T* x, const T* residual, const T* dy, std::int64_t count, V mean, V scale,
                              V shift) {
    LaneSums a, b, c, d;  // by name: an array indexed in a loop would live in memory
    const auto add = [&](LaneSums& to, V centred, V skip, V incoming) {
      const V dz = upstream<act, has_residual>(centred, skip, incoming, scale, shift);
      to.dz += dz;
      to.dz_centred += dz * centred;
    };
    const auto whole = [&](LaneSums& to, std::int64_t i) {
      add(to, load(x + i) - mean, has_residual ? load(residual + i) : V{}, load(dy + i));
    };
    std::int64_t i = 0;
    for (; i + 4 * lanes <= count; i += 4 * lanes) {
      whole(a, i);
      whole(b, i + lanes);
      whole(c, i + 2 * lanes);
      whole(d, i + 3 * lanes);
    }
    if (i + lanes <= count) whole(a, i);
    if (i + 2 * lanes <= count) whole(b, i + lanes);
    if (i + 3 * lanes <= count) whole(a, i + 2 * lanes);
    if (const std::int64_t rest = count % lanes) {
      i = count - rest;
      // The missing lanes of dy are zero, and so is their dz, as long as the activation's derivative is finite there.
      V centred = load_first(x + i, rest) - mean;
      if constexpr (act != Activation::none && act != Activation::relu) centred = keep_first<A>(centred, rest);
      add(b, centred, has_residual ? load_first(residual + i, rest) : V{}, load_first(dy + i, rest));
    }
    if (count < 4 * lanes) return {a.dz + b.dz, a.dz_centred + b.dz_centred};
    return {(a.dz + b.dz) + (c.dz + d.dz), (a.dz_centred + b.dz_centred) + (c.dz_centred + d.dz_centred)};
  }

  // Lanes are added up for several channels at once: where runs are short, that is most of the work. One or two that are
  // left (of a filter, there is only one) are done sooner by themselves.
  template <Activation act, bool has_residual>
  static void sums_of_runs(const T* x, const T* residual, const T* dy, Runs runs, AffineRuns<T> affine, A* dz,
                           A* dz_centred) {
    constexpr std::int64_t together = lanes / 2, singly = std::min<std::int64_t>(2, together - 1);
    const auto lane_sums = [&](std::int64_t c) {
      const std::int64_t at = c * runs.stride;
      return sums_of_run<act, has_residual>(x + at, has_residual ? residual + at : nullptr, dy + at, runs.count,
                                            broadcast(affine.mean), broadcast(affine.scale[c]),
                                            broadcast(affine.shift[c]));
    };
    V sums[lanes];
    std::int64_t first = 0;
    for (; first + singly < runs.channels; first += together) {
      const std::int64_t some = std::min(together, runs.channels - first);
      for (std::int64_t k = 0; k < some; ++k) {
        const LaneSums of_run = lane_sums(first + k);
        sums[k] = of_run.dz;
        sums[together + k] = of_run.dz_centred;
      }
      for (std::int64_t k = some; k < together; ++k) sums[k] = sums[together + k] = V{};
      const V totals = sums_of_lanes<A>(sums);
      for (std::int64_t k = 0; k < some; ++k) {
        dz[first + k] = totals[k];
        dz_centred[first + k] = totals[together + k];
      }
    }
    for (; first < runs.channels; ++first) {
      const LaneSums of_run = lane_sums(first);
      dz[first] = static_cast<A>(sum_of_lanes<A>(of_run.dz));
      dz_centred[first] = static_cast<A>(sum_of_lanes<A>(of_run.dz_centred));
    }
  }

  template <Activation act>
  static void gradient_sums(const T* x, const T* residual, const T* dy, Runs runs, AffineRuns<T> affine, A* dz,
                            A* dz_centred) {
    if (act != Activation::none && residual) sums_of_runs<act, true>(x, residual, dy, runs, affine, dz, dz_centred);
    else sums_of_runs<act, false>(x, residual, dy, runs, affine, dz, dz_centred);
  }

  template <Activation act, bool has_residual>
  static void gradient_runs(const T* x, const T* residual, const T* dy, T* dx, T* dresidual, Runs runs,
                            AffineRuns<T> affine, GradientLine<T> line, bool is_far) {
    const bool streams =
        is_far && is_streamable(dx, runs.stride) && (!dresidual || is_streamable(dresidual, runs.stride));
    const V mean = broadcast(affine.mean), slope = broadcast(line.slope), offset = broadcast(line.offset);
    for (std::int64_t c = 0; c < runs.channels; ++c) {
      const V scale = broadcast(affine.scale[c]), shift = broadcast(affine.shift[c]);
      const std::int64_t at = c * runs.stride;
      const auto body = [=](auto take, auto give) {
        const V centred = take(x + at) - mean;
        const V dz = upstream<act, has_residual>(centred, has_residual ? take(residual + at) : V{}, take(dy + at),
                                                 scale, shift);
        if constexpr (has_residual) {
          if (dresidual) give(dresidual + at, dz);
        }
        give(dx + at, dz * scale - (centred * slope + offset));
      };
      if (streams) stream_each(runs.count, body);
      else for_each<true>(runs.count, room_of(runs, c), body);  // two streams in and one out are hard to foresee
    }
    if (streams) end_streams();
  }

  template <Activation act>
  static void gradient(const T* x, const T* residual, const T* dy, T* dx, T* dresidual, Runs runs,
                       AffineRuns<T> affine, GradientLine<T> line, bool is_far) {
    if (act != Activation::none && residual) {
      gradient_runs<act, true>(x, residual, dy, dx, dresidual, runs, affine, line, is_far);
    } else {
      gradient_runs<act, false>(x, residual, dy, dx, dresidual, runs, affine, line, is_far);
    }
  }
};

}  // namespace BATCHFREE_ISA
}  // namespace batchfree
