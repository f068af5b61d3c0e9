// The kernels for (samples, channels, spatial): a group is one contiguous run.
#pragma once

#include <algorithm>
#include <vector>

#include "parameters.hpp"
#include "two_phases.hpp"

namespace batchfree {

template <class T>
class ChannelsFirst {
 public:
  ChannelsFirst(const Problem& problem, const RunPrimitives<T>& primitives)
      : p_(problem),
        run_(primitives),
        act_(static_cast<int>(problem.activation)),
        width_(problem.channels / problem.groups),
        values_(problem.values_per_group()),
        threads_(useful_threads(problem.size(), problem.threads)) {}

  void forward(const Forward& f) const { run(f, true, true); }
  void moments(const Forward& f) const { run(f, true, false); }
  void apply(const Forward& f) const { run(f, false, true); }
  void backward(const Backward& b) const;

 private:
  // A quarter of a first-level cache: the second of the two passes over a chunk is free.
  static constexpr std::int64_t kChunk = 4096;
  static_assert(kChunk <= kMaxSumLength);

  void run(const Forward& f, bool measures, bool writes) const;
  void normalize(const Forward& f, std::int64_t item, std::int64_t begin, std::int64_t end) const;

  Affine affine(const Parameters& weight, const Parameters& bias, const Statistics& s, double rstd, std::int64_t item,
                std::int64_t channel) const {
    const std::int64_t c = item % p_.groups * width_ + channel;
    return {s.mean[item], rstd * parameter(weight, c, 1), parameter(bias, c, 0)};
  }

  const Problem& p_;
  const RunPrimitives<T>& run_;
  int act_;
  std::int64_t width_;   // channels per group
  std::int64_t values_;  // per group
  int threads_;
};

template <class T>
void ChannelsFirst<T>::run(const Forward& f, bool measures, bool writes) const {
  const T* const x = static_cast<const T*>(f.x);
  const std::int64_t items = p_.samples * p_.groups;
  const std::int64_t chunks = (values_ + kChunk - 1) / kChunk;
  std::vector<Moments> parts(measures ? static_cast<std::size_t>(items * chunks) : 0);
  const auto end_of = [&](std::int64_t chunk) { return std::min(values_, (chunk + 1) * kChunk); };

  two_phases(
      items, chunks, threads_,
      [&](std::int64_t item, std::int64_t chunk, int) {
        if (!measures) return;
        const std::int64_t begin = chunk * kChunk;
        parts[item * chunks + chunk] = run_.moments(x + item * values_ + begin, end_of(chunk) - begin);
      },
      [&](std::int64_t item, int) {
        if (!measures) return;
        Moments all;
        for (std::int64_t chunk = 0; chunk < chunks; ++chunk) merge(all, parts[item * chunks + chunk]);
        f.statistics.mean[item] = all.mean;
        f.statistics.variance[item] = all.squares / all.count;
      },
      [&](std::int64_t item, std::int64_t chunk, int) {
        if (writes) normalize(f, item, chunk * kChunk, end_of(chunk));
      });
}

// The values [begin, end) of one group, channel by channel.
template <class T>
void ChannelsFirst<T>::normalize(const Forward& f, std::int64_t item, std::int64_t begin, std::int64_t end) const {
  const double rstd = scale_of(p_, f.statistics.variance[item]).rstd;
  const T* const residual = static_cast<const T*>(f.residual);
  for (std::int64_t channel = begin / p_.spatial; begin < end; ++channel) {
    const std::int64_t stop = std::min(end, (channel + 1) * p_.spatial);
    const std::int64_t at = item * values_ + begin;
    run_.normalize[act_](static_cast<const T*>(f.x) + at, residual ? residual + at : nullptr,
                         static_cast<T*>(f.y) + at, stop - begin,
                         affine(f.weight, f.bias, f.statistics, rstd, item, channel));
    begin = stop;
  }
}

template <class T>
void ChannelsFirst<T>::backward(const Backward& b) const {
  const T *const x = static_cast<const T*>(b.x), *const dy = static_cast<const T*>(b.dy);
  const T* const residual = static_cast<const T*>(b.residual);
  T *const dx = static_cast<T*>(b.dx), *const dresidual = static_cast<T*>(b.dresidual);
  const std::int64_t items = p_.samples * p_.groups;
  const std::int64_t pieces = (p_.spatial + kMaxSumLength - 1) / kMaxSumLength;  // of one channel
  const std::int64_t chunks = width_ * pieces;
  std::vector<GradientSums> parts(static_cast<std::size_t>(items * chunks));
  std::vector<GradientLine> lines(static_cast<std::size_t>(items));
  std::vector<Scale> scales(static_cast<std::size_t>(items));
  for (std::int64_t item = 0; item < items; ++item) scales[item] = scale_of(p_, b.statistics.variance[item]);

  const auto visit = [&](std::int64_t item, std::int64_t chunk, const auto& body) {
    const std::int64_t channel = pieces == 1 ? chunk : chunk / pieces;
    const std::int64_t begin = (chunk - channel * pieces) * kMaxSumLength;
    const std::int64_t count = std::min(kMaxSumLength, p_.spatial - begin);
    const std::int64_t at = item * values_ + channel * p_.spatial + begin;
    body(at, count, affine(b.weight, b.bias, b.statistics, scales[item].rstd, item, channel));
  };
  two_phases(
      items, chunks, threads_,
      [&](std::int64_t item, std::int64_t chunk, int) {
        visit(item, chunk, [&](std::int64_t at, std::int64_t count, const Affine& line) {
          parts[item * chunks + chunk] =
              run_.gradient_sums[act_](x + at, residual ? residual + at : nullptr, dy + at, count, line);
        });
      },
      [&](std::int64_t item, int) {
        double dz = 0, dz_centred = 0;
        for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
          const GradientSums& part = parts[item * chunks + chunk];
          const double weight = parameter(b.weight, item % p_.groups * width_ + chunk / pieces, 1);
          dz += weight * part.dz;
          dz_centred += weight * part.dz_centred;
        }
        lines[item] = {scales[item].slope_factor * dz_centred, scales[item].rstd * dz / static_cast<double>(values_)};
      },
      [&](std::int64_t item, std::int64_t chunk, int) {
        if (!dx) return;
        visit(item, chunk, [&](std::int64_t at, std::int64_t count, const Affine& line) {
          run_.gradient[act_](x + at, residual ? residual + at : nullptr, dy + at, dx + at,
                              dresidual ? dresidual + at : nullptr, count, line, lines[item]);
        });
      });
  if (!b.dweight && !b.dbias) return;
  for (std::int64_t c = 0; c < p_.channels; ++c) {
    double dweight = 0, dbias = 0;
    for (std::int64_t n = 0; n < p_.samples; ++n) {
      const std::int64_t item = n * p_.groups + c / width_;
      double dz = 0, dz_centred = 0;
      for (std::int64_t piece = 0; piece < pieces; ++piece) {
        const GradientSums& part = parts[item * chunks + c % width_ * pieces + piece];
        dz += part.dz;
        dz_centred += part.dz_centred;
      }
      dbias += dz;
      dweight += scales[item].rstd * dz_centred;
    }
    if (b.dweight) b.dweight[c] = dweight;
    if (b.dbias) b.dbias[c] = dbias;
  }
}

}  // namespace batchfree
