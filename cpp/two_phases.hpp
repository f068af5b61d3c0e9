// The order of work that all kernels share: a reduction over each item, then a pass over its elements.
#pragma once

#include "parallel.hpp"

namespace batchfree {

// For each item (a group, or a sample): reduce(item, chunk) for every chunk, then finish(item), then map(item, chunk)
// for every chunk. All three take the index of the calling thread as their last argument.
//
// Items go to threads whole, so that map finds in cache what reduce read; it walks backwards for the same reason. What
// is left when they do not divide evenly (everything, at batch 1 with one group) is split by chunks instead. Chunks
// are cut by the shape and `finish` joins them in order: the two ways, and any number of threads, give the same bits.
template <class Reduce, class Finish, class Map>
void two_phases(std::int64_t items, std::int64_t chunks, int threads, const Reduce& reduce, const Finish& finish,
                const Map& map) {
  constexpr std::int64_t kEnoughToBalance = 8;
  const std::int64_t even = items / threads * threads;
  const std::int64_t whole = items >= kEnoughToBalance * threads ? items : even;
  parallel(whole, threads, [&](std::int64_t begin, std::int64_t end, int member) {
    for (std::int64_t item = begin; item < end; ++item) {
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) reduce(item, chunk, member);
      finish(item, member);
      for (std::int64_t chunk = chunks; chunk-- > 0;) map(item, chunk, member);
    }
  });

  const std::int64_t left = items - whole;
  const auto each_chunk = [&](const auto& visit) {
    parallel(left * chunks, threads, [&](std::int64_t begin, std::int64_t end, int member) {
      for (std::int64_t i = begin; i < end; ++i) visit(whole + i / chunks, i % chunks, member);
    });
  };
  each_chunk(reduce);
  parallel(left, threads, [&](std::int64_t begin, std::int64_t end, int member) {
    for (std::int64_t item = whole + begin; item < whole + end; ++item) finish(item, member);
  });
  each_chunk(map);
}

// Threads worth waking for `size` elements: handing over work costs about as much as normalising this many.
inline int useful_threads(std::int64_t size, int threads) {
  constexpr std::int64_t kElementsPerThread = 16384;
  return static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, size / kElementsPerThread)));
}

}  // namespace batchfree
