// The kernels for (samples, spatial, channels): a group is a few neighbouring channels of every row. An item of the
// work is a sample, a chunk is some whole rows of it.
#pragma once

#include <algorithm>
#include <vector>

#include "parameters.hpp"
#include "scratch.hpp"
#include "two_phases.hpp"

namespace batchfree {

template <class T>
class ChannelsLast {
 public:
  ChannelsLast(const Problem& problem, const RowPrimitives<T>& primitives)
      : p_(problem),
        row_(primitives),
        act_(static_cast<int>(problem.activation)),
        width_(problem.channels / problem.groups),
        is_far_(problem.size() * static_cast<std::int64_t>(sizeof(T)) > kCachedBytes),
        threads_(useful_threads(problem.size(), problem.threads)) {
    const std::int64_t row_bytes = problem.channels * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t fitting = std::max<std::int64_t>(kChunkBytes / row_bytes, kFewestRows);
    const std::int64_t most = std::min(fitting, kMaxSumLength), rows = std::max<std::int64_t>(problem.spatial, 1);
    // Of about one size, and an even number of them as a rule: threads that share a sample then end together.
    const std::int64_t needed = (rows + most - 1) / most, cut = needed == 1 ? 1 : needed + needed % 2;
    rows_ = (rows + cut - 1) / cut;
    chunks_ = (problem.spatial + rows_ - 1) / rows_;
  }

  void forward(const Forward& f) const { run(f, true, true); }
  void moments(const Forward& f) const { run(f, true, false); }
  void apply(const Forward& f) const { run(f, false, true); }
  void backward(const Backward& b) const;

 private:
  using A = Compute<T>;
  // The second of the two passes over a chunk reads it from the second-level cache.
  static constexpr std::int64_t kChunkBytes = 64 * 1024;
  // However wide they are, half of them after even cuts: joining per-channel sums stays cheap beside making them.
  static constexpr std::int64_t kFewestRows = 32;

  // dx = dz * scale - (x - mean) * slope - offset, for one group.
  struct GroupLine {
    double slope, offset;
  };

  // What the inner loops need per channel, for one sample at a time. One per thread.
  struct Constants {
    Constants(std::int64_t channels, const void* tensor) : values(5, channels, tensor) {}
    A* mean() const { return values[0]; }
    A* scale() const { return values[1]; }
    A* shift() const { return values[2]; }
    A* slope() const { return values[3]; }
    A* offset() const { return values[4]; }
    AffineRow<T> affine() const { return {mean(), scale(), shift()}; }

    Scratch<A> values;
    std::int64_t sample = -1;  // whose constants these are,
    const GroupLine* lines = nullptr;  // and with which gradients
    char apart[kLineBytes] = {};  // from the next thread's
  };

  std::int64_t rows_of(std::int64_t chunk) const { return std::min(rows_, p_.spatial - chunk * rows_); }
  std::int64_t start_of(std::int64_t sample, std::int64_t chunk) const {
    return (sample * p_.spatial + chunk * rows_) * p_.channels;
  }
  void run(const Forward& f, bool measures, bool writes) const;
  void fill(Constants& constants, std::int64_t sample, const PerChannel<A>& weight, const PerChannel<A>& bias,
            const Statistics& statistics, const GroupLine* lines) const;

  const Problem& p_;
  const RowPrimitives<T>& row_;
  int act_;
  std::int64_t width_;  // channels per group
  bool is_far_;
  int threads_;
  std::int64_t rows_;    // per chunk
  std::int64_t chunks_;  // per sample
};

template <class T>
void ChannelsLast<T>::fill(Constants& constants, std::int64_t sample, const PerChannel<A>& weight,
                           const PerChannel<A>& bias, const Statistics& statistics, const GroupLine* lines) const {
  if (constants.sample == sample && constants.lines == lines) return;
  constants.sample = sample;
  constants.lines = lines;
  A *const means = constants.mean(), *const scales = constants.scale(), *const shifts = constants.shift();
  for (std::int64_t g = 0; g < p_.groups; ++g) {
    const std::int64_t group = sample * p_.groups + g, first = g * width_;
    const double rstd = scale_of(p_, statistics.variance[group]).rstd;
    const A mean = static_cast<A>(statistics.mean[group]);
    const double mean_rest = statistics.mean[group] - mean;  // what rounding lost
    std::fill_n(means + first, width_, mean);
    for (std::int64_t c = first; c < first + width_; ++c) {
      const double scale = rstd * weight[c];
      scales[c] = static_cast<A>(scale);
      shifts[c] = static_cast<A>(bias[c] - mean_rest * scale);
    }
    if (!lines) continue;
    std::fill_n(constants.slope() + first, width_, static_cast<A>(lines[group].slope));
    std::fill_n(constants.offset() + first, width_, static_cast<A>(lines[group].offset - mean_rest * lines[group].slope));
  }
}

template <class T>
void ChannelsLast<T>::run(const Forward& f, bool measures, bool writes) const {
  const T *const x = static_cast<const T*>(f.x), *const residual = static_cast<const T*>(f.residual);
  const std::int64_t groups = p_.groups;
  std::vector<Moments> parts(measures ? static_cast<std::size_t>(p_.samples * chunks_ * groups) : 0);
  std::vector<Constants> constants = per_thread<Constants>(threads_, p_.channels, x);
  const PerChannel<A> weight(f.weight, p_.channels, 1), bias(f.bias, p_.channels, 0);

  two_phases(
      p_.samples, measures ? chunks_ : 0, writes ? chunks_ : 0, threads_,
      [&](std::int64_t sample, std::int64_t chunk, int member) {
        constants[member].sample = -1;  // their room serves as scratch here
        row_.moments(x + start_of(sample, chunk), rows_of(chunk), p_.channels, groups,
                     constants[member].values[0], &parts[(sample * chunks_ + chunk) * groups]);
      },
      [&](std::int64_t sample, int) {
        if (!measures) return;
        for (std::int64_t g = 0; g < groups; ++g) {
          const Moments all = merged(&parts[sample * chunks_ * groups + g], chunks_, groups);
          f.statistics.mean[sample * groups + g] = all.mean;
          f.statistics.variance[sample * groups + g] = all.squares / all.count;
        }
      },
      [&](std::int64_t sample, std::int64_t chunk, int member) {
        fill(constants[member], sample, weight, bias, f.statistics, nullptr);
        const std::int64_t at = start_of(sample, chunk);
        row_.normalize[act_](x + at, residual ? residual + at : nullptr, static_cast<T*>(f.y) + at, rows_of(chunk),
                             p_.channels, constants[member].affine(), is_far_);
      });
}

template <class T>
void ChannelsLast<T>::backward(const Backward& b) const {
  const T *const x = static_cast<const T*>(b.x), *const dy = static_cast<const T*>(b.dy);
  const T* const residual = static_cast<const T*>(b.residual);
  T *const dx = static_cast<T*>(b.dx), *const dresidual = static_cast<T*>(b.dresidual);
  const std::int64_t channels = p_.channels;
  std::vector<Constants> constants = per_thread<Constants>(threads_, channels, x);
  const PerChannel<A> weight(b.weight, channels, 1), bias(b.bias, channels, 0);
  // Per (sample, chunk) and per sample: dz of every channel, then dz * (x - rounded mean).
  const Scratch<A> parts(p_.samples * chunks_ * 2, channels, x);
  std::vector<double> sums(static_cast<std::size_t>(p_.samples * 2 * channels));
  std::vector<GroupLine> lines(static_cast<std::size_t>(p_.samples * p_.groups));

  const auto finish = [&](std::int64_t sample, int) {
    double *const dz_sums = &sums[sample * 2 * channels], *const dz_centred_sums = dz_sums + channels;
    for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const std::int64_t part = (sample * chunks_ + chunk) * 2;
      for (std::int64_t c = 0; c < channels; ++c) dz_sums[c] += parts[part][c];
      for (std::int64_t c = 0; c < channels; ++c) dz_centred_sums[c] += parts[part + 1][c];
    }
    for (std::int64_t g = 0; g < p_.groups; ++g) {
      const std::int64_t group = sample * p_.groups + g;
      const double mean = b.statistics.mean[group], mean_rest = mean - static_cast<A>(mean);
      const Scale scale = scale_of(p_, b.statistics.variance[group]);
      double dz = 0, dz_centred = 0;
      for (std::int64_t c = g * width_; c < (g + 1) * width_; ++c) {
        dz_centred_sums[c] -= mean_rest * dz_sums[c];
        dz += weight[c] * dz_sums[c];
        dz_centred += weight[c] * dz_centred_sums[c];
      }
      lines[group] = {scale.slope_factor * dz_centred, scale.rstd * dz / static_cast<double>(p_.values_per_group())};
    }
  };
  two_phases(
      p_.samples, chunks_, dx ? chunks_ : 0, threads_,
      [&](std::int64_t sample, std::int64_t chunk, int member) {
        fill(constants[member], sample, weight, bias, b.statistics, nullptr);
        const std::int64_t at = start_of(sample, chunk);
        const std::int64_t part = (sample * chunks_ + chunk) * 2;
        row_.gradient_sums[act_](x + at, residual ? residual + at : nullptr, dy + at, rows_of(chunk), channels,
                                 constants[member].affine(), parts[part], parts[part + 1]);
      },
      finish,
      [&](std::int64_t sample, std::int64_t chunk, int member) {
        fill(constants[member], sample, weight, bias, b.statistics, lines.data());
        const std::int64_t at = start_of(sample, chunk);
        row_.gradient[act_](x + at, residual ? residual + at : nullptr, dy + at, dx + at,
                            dresidual ? dresidual + at : nullptr, rows_of(chunk), channels,
                            constants[member].affine(), constants[member].slope(), constants[member].offset(), is_far_);
      });
  if (!b.dweight) return;
  std::fill_n(b.dweight, channels, 0.0);
  std::fill_n(b.dbias, channels, 0.0);
  for (std::int64_t group = 0; group < p_.samples * p_.groups; ++group) {
    const double rstd = scale_of(p_, b.statistics.variance[group]).rstd;
    const std::int64_t first = group % p_.groups * width_;
    const double* const dz_sums = &sums[group / p_.groups * 2 * channels];
    for (std::int64_t c = first; c < first + width_; ++c) {
      b.dbias[c] += dz_sums[c];
      b.dweight[c] += rstd * dz_sums[channels + c];
    }
  }
}

}  // namespace batchfree
