// The order of work that all kernels share: a reduction over each item, then a pass over its elements.
#pragma once

#include "parallel.hpp"

namespace batchfree {

// A tensor of more does not wait in the last-level cache for whoever reads it next: it is written past the caches.
inline constexpr std::int64_t kCachedBytes = 8 << 20;

// For each item (a group, or a sample): reduce(item, i) for its `reductions`, then finish(item), then map(item, i) for
// its `maps`. All three take the index of the calling thread as their last argument.
//
// Items go to threads whole, so that map finds in cache what reduce read. It walks forwards: backwards would find more
// there, but the hardware foresees worse what is written in that order. What is left when items do not divide evenly
// (everything, at batch 1 with one group) is split inside them instead.
// The shape alone cuts them, and `finish` joins in order: the two ways, and any number of threads, give the same bits.
template <class Reduce, class Finish, class Map>
void two_phases(std::int64_t items, std::int64_t reductions, std::int64_t maps, int threads, const Reduce& reduce,
                const Finish& finish, const Map& map) {
  constexpr std::int64_t kEnoughToBalance = 8;
  const std::int64_t whole = items >= kEnoughToBalance * threads ? items : items / threads * threads;
  parallel(whole, threads, [&](std::int64_t begin, std::int64_t end, int member) {
    for (std::int64_t item = begin; item < end; ++item) {
      for (std::int64_t i = 0; i < reductions; ++i) reduce(item, i, member);
      finish(item, member);
      for (std::int64_t i = 0; i < maps; ++i) map(item, i, member);
    }
  });

  const std::int64_t left = items - whole;
  const auto each = [&](std::int64_t count, const auto& visit) {
    parallel(left * count, threads, [&](std::int64_t begin, std::int64_t end, int member) {
      for (std::int64_t i = begin; i < end; ++i) visit(whole + i / count, i % count, member);
    });
  };
  each(reductions, reduce);
  parallel(left, threads, [&](std::int64_t begin, std::int64_t end, int member) {
    for (std::int64_t item = whole + begin; item < whole + end; ++item) finish(item, member);
  });
  each(maps, map);
}

// Threads worth waking for `size` elements: handing over work costs about as much as normalising this many.
inline int useful_threads(std::int64_t size, int threads) {
  constexpr std::int64_t kElementsPerThread = 16384;
  return static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, size / kElementsPerThread)));
}

}  // namespace batchfree
