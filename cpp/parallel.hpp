// Splitting a loop over the threads of the OpenMP runtime that is already in the process (torch's), if there is one.
#pragma once

#include <algorithm>
#include <cstdint>

namespace batchfree {

// Calls member(context, index, count) on up to `threads` threads, once each, and returns when all are done. On one
// thread where there is no runtime. `count` is how many were really given.
void run_team(int threads, void (*member)(void* context, int index, int count), void* context);

// Path of the OpenMP runtime's library; empty while there is none.
const char* threading_runtime();

// body(begin, end, member) over contiguous shares of [0, count), with member < threads. body must not throw.
template <class Body>
void parallel(std::int64_t count, int threads, const Body& body) {
  if (count <= 0) return;
  if (threads <= 1 || count == 1) {
    body(std::int64_t{0}, count, 0);
    return;
  }
  struct Context {
    const Body* body;
    std::int64_t count;
  } context{&body, count};
  run_team(
      static_cast<int>(std::min<std::int64_t>(threads, count)),
      [](void* erased, int index, int members) {
        const Context& c = *static_cast<const Context*>(erased);
        const std::int64_t begin = c.count * index / members, end = c.count * (index + 1) / members;
        if (begin < end) (*c.body)(begin, end, index);
      },
      &context);
}

}  // namespace batchfree
