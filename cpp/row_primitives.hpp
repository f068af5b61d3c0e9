// Inner loops over rows of channels: channels-last tensors. Included only by kernels_<name>.cpp, after activations.hpp.
//
// Whole rows are read in memory order, some at a time, so that the per-channel constants and sums, which live in the
// first-level cache, are loaded and stored once for all of them. How many channels a group has does not matter here.
#pragma once

#include <algorithm>

#include "activations.hpp"
#include "primitives.hpp"

namespace batchfree {
namespace BATCHFREE_ISA {

template <class T>
struct Rows {
  using A = Compute<T>;
  using V = Vec<A>;
  static constexpr std::int64_t lanes = kLanes<A>;
  static constexpr int kTogether = 4;
  static constexpr std::int64_t kStripRows = 16;

  struct TakeWhole {
    std::int64_t c;
    template <class E>
    V operator()(const E* p) const { return load(p + c); }
    template <class E>
    const E* at(const E* p) const { return p + c; }
  };
  struct TakeFirst {
    std::int64_t c, rest;
    template <class E>
    V operator()(const E* p) const { return load_first(p + c, rest); }
    template <class E>
    const E* at(const E* p) const { return p + c; }
  };

  // Calls body(take, give) for each vector of [0, channels); `streams` where each row's whole vectors go past the caches.
  template <bool streams = false, class Body>
  static void for_each(std::int64_t channels, Body&& body) {
    std::int64_t c = 0;
    for (; c + lanes <= channels; c += lanes) {
      body(TakeWhole{c}, [c](auto* p, V v) {
        if constexpr (streams) stream(p + c, v);
        else store(p + c, v);
      });
    }
    if (const std::int64_t rest = channels - c) {
      body(TakeFirst{c, rest}, [c, rest](auto* p, V v) { store_first(p + c, v, rest); });
    }
  }

  // Asks for the rows of the next block: some short streams are too little for the hardware to foresee. Reaching past
  // the end does no harm.
  template <class Take>
  static void prefetch_next(Take take, const T* row, std::int64_t channels) {
    for (int k = kTogether; k < 2 * kTogether; ++k) __builtin_prefetch(take.at(row + k * channels), 0, 2);
  }

  // Calls block(first_row, std::integral_constant<int, rows>) so that the row count is known to the compiler.
  template <int together = kTogether, class Block>
  static void for_each_block(std::int64_t rows, Block&& block) {
    std::int64_t r = 0;
    for (; r + together <= rows; r += together) block(r, std::integral_constant<int, together>{});
    for (; r < rows; ++r) block(r, std::integral_constant<int, 1>{});
  }

  static double sum(const A* values, std::int64_t count) {
    V sum{};
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) sum += load(values + i);
    double total = i ? sum_of_lanes<A>(sum) : 0.0;
    for (; i < count; ++i) total += values[i];
    return total;
  }

  // Where float32 sums overflow, or hold a NaN or Inf: the same in double, for one group.
  static Moments wide_moments(const T* x, std::int64_t rows, std::int64_t channels, std::int64_t width) {
    const auto value = [=](std::int64_t r, std::int64_t c) {
      return static_cast<double>(load_first(x + r * channels + c, 1)[0]);
    };
    Moments result;
    result.count = static_cast<double>(rows * width);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < width; ++c) result.mean += value(r, c) / result.count;
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < width; ++c) {
        const double centred = value(r, c) - result.mean;
        result.squares += centred * centred;
      }
    }
    return result;
  }

  // Some neighbouring vectors of a row, or the first lanes of its last one.
  template <int count>
  struct WholeVectors {
    static constexpr int vectors = count;
    std::int64_t c;
    template <class E>
    V take(const E* p, int v) const { return load(p + c + v * lanes); }
    void give(A* p, int v, V vector) const { store(p + c + v * lanes, vector); }
  };
  struct FirstLanes {
    static constexpr int vectors = 1;
    std::int64_t c, rest;
    template <class E>
    V take(const E* p, int) const { return load_first(p + c, rest); }
    void give(A* p, int, V vector) const { store_first(p + c, vector, rest); }
  };

  // Per-channel sums of d = x - centre and of d^2 over all rows. Strips of four vectors by sixteen rows, so that sums stay
  // in registers; each asks for the one below it, whose rows the hardware does not foresee either.
  static void centred_sums(const T* x, std::int64_t rows, std::int64_t channels, const A* centre, A* first, A* second) {
    constexpr std::int64_t kVectors = 4;
    std::memset(first, 0, static_cast<std::size_t>(channels) * sizeof(A));
    std::memset(second, 0, static_cast<std::size_t>(channels) * sizeof(A));
    for (; rows > 0; rows -= kStripRows, x += kStripRows * channels) {
      const T* const end = x + std::min(kStripRows, rows) * channels;
      std::int64_t c = 0;
      for (; c + kVectors * lanes <= channels; c += kVectors * lanes) {
        add_centred(WholeVectors<kVectors>{c}, x, end, channels, centre, first, second);
      }
      for (; c + lanes <= channels; c += lanes) {
        add_centred(WholeVectors<1>{c}, x, end, channels, centre, first, second);
      }
      if (c < channels) add_centred(FirstLanes{c, channels - c}, x, end, channels, centre, first, second);
    }
  }

  template <class Columns>
  static void add_centred(Columns columns, const T* row, const T* end, std::int64_t channels, const A* centre, A* first,
                          A* second) {
    constexpr int vectors = Columns::vectors;
    V middle[vectors], added[vectors], squared[vectors];
    for (int v = 0; v < vectors; ++v) {
      middle[v] = columns.take(centre, v);
      added[v] = columns.take(first, v);
      squared[v] = columns.take(second, v);
    }
    for (; row != end; row += channels) {
      for (int v = 0; v < vectors; ++v) {
        __builtin_prefetch(row + kStripRows * channels + columns.c + v * lanes, 0, 2);
        const V centred = columns.take(row, v) - middle[v];
        added[v] += centred;
        squared[v] += centred * centred;
      }
    }
    for (int v = 0; v < vectors; ++v) {
      columns.give(first, v, added[v]);
      columns.give(second, v, squared[v]);
    }
  }

  // As for runs: one pass, each group centred on the mean of its first rows; a second one where that was far off.
  static void moments(const T* x, std::int64_t rows, std::int64_t channels, std::int64_t groups, A* scratch,
                      Moments* out) {
    A *const centre = scratch, *const first = scratch + channels, *const second = scratch + 2 * channels;
    const std::int64_t width = channels / groups;
    const double size = static_cast<double>(rows * width);
    const auto put_centre = [&](std::int64_t g, double value) {
      std::fill_n(centre + g * width, width, static_cast<A>(value));
    };

    const std::int64_t few = std::min<std::int64_t>(rows, 4);
    std::memset(centre, 0, static_cast<std::size_t>(channels) * sizeof(A));
    centred_sums(x, few, channels, centre, first, second);
    for (std::int64_t g = 0; g < groups; ++g) {
      put_centre(g, sum(first + g * width, width) / static_cast<double>(few * width));
    }
    for (bool is_last : {false, true}) {
      bool is_far = false;
      centred_sums(x, rows, channels, centre, first, second);
      for (std::int64_t g = 0; g < groups; ++g) {
        const double step = sum(first + g * width, width) / size;
        const double squares = sum(second + g * width, width);
        const double spread = squares / size - step * step;
        const double mean = centre[g * width] + step;
        if (!std::isfinite(squares)) {
          out[g] = wide_moments(x + g * width, rows, channels, width);
          continue;
        }
        out[g] = {size, mean, std::fmax(spread * size, 0.0)};
        if (is_last || step * step <= 4 * spread) continue;
        is_far = true;
        put_centre(g, mean);
      }
      if (!is_far) break;
    }
  }

  template <Activation act>
  static void normalize(const T* x, const T* residual, T* y, std::int64_t rows, std::int64_t channels,
                        AffineRow<T> affine, bool is_far) {
    if (is_far && is_streamable(y, channels)) {
      normalize_rows<act, true>(x, residual, y, rows, channels, affine, is_far);
      end_streams();
    } else {
      normalize_rows<act, false>(x, residual, y, rows, channels, affine, is_far);
    }
  }

  template <Activation act, bool streams>
  static void normalize_rows(const T* x, const T* residual, T* y, std::int64_t rows, std::int64_t channels,
                             AffineRow<T> affine, bool is_far) {
    constexpr std::int64_t kAhead = 4;  // rows
    // Two at a time: four rows read and four written would crowd one set of the first-level cache. Streams want one.
    for_each_block<streams ? 1 : 2>(rows, [&](std::int64_t r, auto together) {
      const std::int64_t at = r * channels;
      for_each<streams>(channels, [&](auto take, auto give) {
        const V mean = take(affine.mean), scale = take(affine.scale), shift = take(affine.shift);
        for (int k = 0; k < together; ++k) {
          const std::int64_t row = at + k * channels;
          if (is_far) {  // else it only costs time
            __builtin_prefetch(take.at(x + row + kAhead * channels), 0, 2);
            if (!streams) __builtin_prefetch(take.at(y + row + kAhead * channels), 1, 2);
          }
          V z = (take(x + row) - mean) * scale + shift;
          if (residual) z += take(residual + row);
          give(y + row, Act<act>::template value<A>(z));
        }
      });
    });
  }

  // dz of one vector, and x - mean on the way.
  template <Activation act, bool has_residual, class Take>
  static V upstream(Take take, const T* x, const T* residual, const T* dy, V mean, V scale, V shift, V& centred) {
    centred = take(x) - mean;
    if constexpr (act == Activation::none) {
      return take(dy);
    } else {
      V z = centred * scale + shift;
      if constexpr (has_residual) z += take(residual);
      return Act<act>::template gradient<A>(z, take(dy));
    }
  }

  template <Activation act, bool has_residual>
  static void sums(const T* x, const T* residual, const T* dy, std::int64_t rows, std::int64_t channels,
                   AffineRow<T> affine, A* dz_sum, A* dz_centred_sum) {
    std::memset(dz_sum, 0, static_cast<std::size_t>(channels) * sizeof(A));
    std::memset(dz_centred_sum, 0, static_cast<std::size_t>(channels) * sizeof(A));
    for_each_block(rows, [&](std::int64_t r, auto together) {
      for_each(channels, [&](auto take, auto give) {
        const V mean = take(affine.mean), scale = take(affine.scale), shift = take(affine.shift);
        V added = take(dz_sum), added_centred = take(dz_centred_sum);
        prefetch_next(take, x + r * channels, channels);
        prefetch_next(take, dy + r * channels, channels);
        for (int k = 0; k < together; ++k) {
          const std::int64_t row = (r + k) * channels;
          V centred;
          const V dz = upstream<act, has_residual>(take, x + row, has_residual ? residual + row : nullptr, dy + row,
                                                   mean, scale, shift, centred);
          added += dz;
          added_centred += dz * centred;
        }
        give(dz_sum, added);
        give(dz_centred_sum, added_centred);
      });
    });
  }

  template <Activation act>
  static void gradient_sums(const T* x, const T* residual, const T* dy, std::int64_t rows, std::int64_t channels,
                            AffineRow<T> affine, A* dz, A* dz_centred) {
    if (act != Activation::none && residual) sums<act, true>(x, residual, dy, rows, channels, affine, dz, dz_centred);
    else sums<act, false>(x, residual, dy, rows, channels, affine, dz, dz_centred);
  }

  template <Activation act, bool has_residual, bool streams>
  static void lines(const T* x, const T* residual, const T* dy, T* dx, T* dresidual, std::int64_t rows,
                    std::int64_t channels, AffineRow<T> affine, const A* slopes, const A* offsets, bool is_far) {
    for_each_block(rows, [&](std::int64_t r, auto together) {
      for_each<streams>(channels, [&](auto take, auto give) {
        const V mean = take(affine.mean), scale = take(affine.scale), shift = take(affine.shift);
        const V slope = take(slopes), offset = take(offsets);
        if (is_far && together == kTogether) {  // else it only costs time
          prefetch_next(take, x + r * channels, channels);
          prefetch_next(take, dy + r * channels, channels);
          if constexpr (has_residual) prefetch_next(take, residual + r * channels, channels);
        }
        for (int k = 0; k < together; ++k) {
          const std::int64_t row = (r + k) * channels;
          V centred;
          const V dz = upstream<act, has_residual>(take, x + row, has_residual ? residual + row : nullptr, dy + row,
                                                   mean, scale, shift, centred);
          if constexpr (has_residual) {
            if (dresidual) give(dresidual + row, dz);
          }
          give(dx + row, dz * scale - (centred * slope + offset));
        }
      });
    });
  }

  template <Activation act>
  static void gradient(const T* x, const T* residual, const T* dy, T* dx, T* dresidual, std::int64_t rows,
                       std::int64_t channels, AffineRow<T> affine, const A* slope, const A* offset, bool is_far) {
    const auto write = [&](auto has_residual, auto streams) {
      lines<act, has_residual, streams>(x, residual, dy, dx, dresidual, rows, channels, affine, slope, offset, is_far);
    };
    const bool streams = is_far && is_streamable(dx, channels) && (!dresidual || is_streamable(dresidual, channels));
    const bool has_residual = act != Activation::none && residual;
    if (has_residual && streams) write(std::true_type{}, std::true_type{});
    else if (has_residual) write(std::true_type{}, std::false_type{});
    else if (streams) write(std::false_type{}, std::true_type{});
    else write(std::false_type{}, std::false_type{});
    if (streams) end_streams();
  }
};

}  // namespace BATCHFREE_ISA
}  // namespace batchfree
