// The kernels for (samples, channels, spatial): a group is one contiguous run.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "parameters.hpp"
#include "scratch.hpp"
#include "two_phases.hpp"

namespace batchfree {

template <class T>
class ChannelsFirst {
 public:
  ChannelsFirst(const Problem& problem, const RunPrimitives<T>& primitives)
      : p_(problem),
        run_(primitives),
        act_(static_cast<int>(problem.activation)),
        items_(problem.samples * problem.groups),
        width_(problem.channels / problem.groups),
        values_(problem.values_per_group()),
        is_far_(problem.size() * static_cast<std::int64_t>(sizeof(T)) > kCachedBytes),
        threads_(useful_threads(problem.size(), problem.threads)),
        pieces_((problem.spatial + kMaxSumLength - 1) / kMaxSumLength),
        block_(std::clamp<std::int64_t>(kMaxSumLength / problem.spatial, 1, width_)),
        blocks_((width_ + block_ - 1) / block_) {}

  void forward(const Forward& f) const { run(f, true, true); }
  void moments(const Forward& f) const { run(f, true, false); }
  void apply(const Forward& f) const { run(f, false, true); }
  void backward(const Backward& b) const;

 private:
  using A = Compute<T>;
  static constexpr std::int64_t kMomentsChunk = 4096;  // small enough for a second pass in the first-level cache
  static_assert(kMomentsChunk <= kMaxSumLength);

  // What the inner loops need per channel, for one group at a time. One per thread.
  struct Constants {
    explicit Constants(std::int64_t width) : values(2, width) {}
    A* scale() const { return values[0]; }
    A* shift() const { return values[1]; }

    Scratch<A> values;
    std::int64_t item = -1;  // whose constants these are
    A mean = 0;
    char apart[kLineBytes] = {};  // from the next thread's
  };

  // Some channels of a group, or a piece of one channel where that is long.
  struct Part {
    std::int64_t channel;  // within the group
    std::int64_t at;       // of its first value in the tensor
    Runs runs;
  };
  std::int64_t parts() const { return blocks_ * pieces_; }
  Part part(std::int64_t item, std::int64_t index) const {
    const std::int64_t block = pieces_ == 1 ? index : index / pieces_;
    const std::int64_t channel = block * block_, begin = (index - block * pieces_) * kMaxSumLength;
    const std::int64_t channels = std::min(block_, width_ - channel);
    const std::int64_t values = std::min(kMaxSumLength, p_.spatial - begin);
    return {channel, item * values_ + channel * p_.spatial + begin, {channels, values, p_.spatial}};
  }

  void run(const Forward& f, bool measures, bool writes) const;
  AffineRuns<T> affine(Constants& constants, std::int64_t item, std::int64_t channel, const PerChannel<A>& weight,
                       const PerChannel<A>& bias, double mean, double rstd) const;

  // Calls visit(c, dz, dz * (x - mean)) with the sums of each channel of a group, from those of its pieces.
  template <class Visit>
  void each_sum(const A* dz, const A* dz_centred, const Visit& visit) const {
    if (pieces_ == 1) {  // apart, so that compilers see a loop to make vectors of
      for (std::int64_t c = 0; c < width_; ++c) visit(c, double{dz[c]}, double{dz_centred[c]});
      return;
    }
    const auto total = [this](const A* of_piece) { return std::accumulate(of_piece, of_piece + pieces_, 0.0); };
    for (std::int64_t c = 0; c < width_; ++c) visit(c, total(dz + c * pieces_), total(dz_centred + c * pieces_));
  }

  const Problem& p_;
  const RunPrimitives<T>& run_;
  int act_;
  std::int64_t items_;   // groups of all samples
  std::int64_t width_;   // channels per group
  std::int64_t values_;  // per group
  bool is_far_;
  int threads_;
  std::int64_t pieces_;  // per channel
  std::int64_t block_;   // channels per part
  std::int64_t blocks_;  // per group
};

template <class T>
AffineRuns<T> ChannelsFirst<T>::affine(Constants& constants, std::int64_t item, std::int64_t channel,
                                       const PerChannel<A>& weight, const PerChannel<A>& bias, double mean,
                                       double rstd) const {
  if (constants.item != item) {
    constants.item = item;
    constants.mean = static_cast<A>(mean);
    const double mean_rest = mean - constants.mean;  // what rounding lost
    const std::int64_t first = item % p_.groups * width_;
    A *const scales = constants.scale(), *const shifts = constants.shift();
    for (std::int64_t c = 0; c < width_; ++c) {
      const double scale = rstd * weight[first + c];
      scales[c] = static_cast<A>(scale);
      shifts[c] = static_cast<A>(bias[first + c] - mean_rest * scale);
    }
  }
  return {constants.mean, constants.scale() + channel, constants.shift() + channel};
}

template <class T>
void ChannelsFirst<T>::run(const Forward& f, bool measures, bool writes) const {
  const T *const x = static_cast<const T*>(f.x), *const residual = static_cast<const T*>(f.residual);
  T* const y = static_cast<T*>(f.y);
  const std::int64_t chunks = measures ? (values_ + kMomentsChunk - 1) / kMomentsChunk : 0;
  std::vector<Moments> found(static_cast<std::size_t>(items_ * chunks));
  std::vector<double> rstds(static_cast<std::size_t>(items_));
  const double share = 1 / static_cast<double>(values_);
  std::vector<Constants> constants = per_thread<Constants>(threads_, width_);
  const PerChannel<A> weight(f.weight, p_.channels, 1), bias(f.bias, p_.channels, 0);

  two_phases(
      items_, chunks, writes ? parts() : 0, threads_,
      [&](std::int64_t item, std::int64_t chunk, int) {
        const std::int64_t begin = chunk * kMomentsChunk, count = std::min(kMomentsChunk, values_ - begin);
        found[item * chunks + chunk] = run_.moments(x + item * values_ + begin, count);
      },
      [&](std::int64_t item, int) {
        if (measures) {
          const Moments all = merged(&found[item * chunks], chunks, 1);
          f.statistics.mean[item] = all.mean;
          f.statistics.variance[item] = all.squares * share;
        }
        rstds[item] = scale_of(p_, f.statistics.variance[item]).rstd;
      },
      [&](std::int64_t item, std::int64_t index, int member) {
        const Part p = part(item, index);
        run_.normalize[act_](x + p.at, residual ? residual + p.at : nullptr, y + p.at, p.runs,
                             affine(constants[member], item, p.channel, weight, bias, f.statistics.mean[item],
                                    rstds[item]),
                             is_far_);
      });
}

template <class T>
void ChannelsFirst<T>::backward(const Backward& b) const {
  const T *const x = static_cast<const T*>(b.x), *const dy = static_cast<const T*>(b.dy);
  const T* const residual = static_cast<const T*>(b.residual);
  T *const dx = static_cast<T*>(b.dx), *const dresidual = static_cast<T*>(b.dresidual);
  std::vector<Constants> constants = per_thread<Constants>(threads_, width_);
  const PerChannel<A> weight(b.weight, p_.channels, 1), bias(b.bias, p_.channels, 0);
  const std::int64_t count = items_ * width_ * pieces_;  // [item][channel][piece]
  const std::unique_ptr<A[]> sums(new A[static_cast<std::size_t>(2 * count)]);
  A *const dz_sums = sums.get(), *const dz_centred_sums = dz_sums + count;
  std::vector<GradientLine<T>> lines(static_cast<std::size_t>(items_));
  // All of them first: a small group would wait longer for its root and two divisions than for anything else.
  const double share = 1 / static_cast<double>(values_);
  std::vector<Scale> scales(static_cast<std::size_t>(items_));
  for (std::int64_t item = 0; item < items_; ++item) scales[item] = scale_of(p_, b.statistics.variance[item]);
  const auto affine_of = [&](std::int64_t item, std::int64_t channel, int member) {
    return affine(constants[member], item, channel, weight, bias, b.statistics.mean[item], scales[item].rstd);
  };

  two_phases(
      items_, parts(), dx ? parts() : 0, threads_,
      [&](std::int64_t item, std::int64_t index, int member) {
        const Part p = part(item, index);
        const std::int64_t piece = pieces_ == 1 ? 0 : index % pieces_;
        const std::int64_t to = (item * width_ + p.channel) * pieces_ + piece;
        run_.gradient_sums[act_](x + p.at, residual ? residual + p.at : nullptr, dy + p.at, p.runs,
                                 affine_of(item, p.channel, member), dz_sums + to, dz_centred_sums + to);
      },
      [&](std::int64_t item, int) {
        const std::int64_t at = item * width_ * pieces_, first = item % p_.groups * width_;
        const double mean = b.statistics.mean[item], mean_rest = mean - static_cast<A>(mean);
        double dz = 0, dz_centred = 0;
        each_sum(dz_sums + at, dz_centred_sums + at, [&](std::int64_t c, double of_channel, double of_channel_centred) {
          dz += weight[first + c] * of_channel;
          dz_centred += weight[first + c] * of_channel_centred;
        });
        const double slope = scales[item].slope_factor * (dz_centred - mean_rest * dz);
        const double offset = scales[item].rstd * share * dz - mean_rest * slope;
        lines[item] = {static_cast<A>(slope), static_cast<A>(offset)};
      },
      [&](std::int64_t item, std::int64_t index, int member) {
        const Part p = part(item, index);
        run_.gradient[act_](x + p.at, residual ? residual + p.at : nullptr, dy + p.at, dx + p.at,
                            dresidual ? dresidual + p.at : nullptr, p.runs, affine_of(item, p.channel, member),
                            lines[item], is_far_);
      });
  if (!b.dweight) return;
  std::fill_n(b.dweight, p_.channels, 0.0);
  std::fill_n(b.dbias, p_.channels, 0.0);
  for (std::int64_t item = 0; item < items_; ++item) {
    const std::int64_t at = item * width_ * pieces_, first = item % p_.groups * width_;
    const double mean = b.statistics.mean[item], mean_rest = mean - static_cast<A>(mean);
    const double rstd = scales[item].rstd;
    double *const dweight = b.dweight + first, *const dbias = b.dbias + first;
    each_sum(dz_sums + at, dz_centred_sums + at, [=](std::int64_t c, double dz, double dz_centred) {
      dbias[c] += dz;
      dweight[c] += rstd * (dz_centred - mean_rest * dz);
    });
  }
}

}  // namespace batchfree
