// Memory that the inner loops use beside the tensors, and where it should lie.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace batchfree {

inline constexpr std::int64_t kLineBytes = 64;  // of a cache

// Some arrays of one length, each in whole lines of the caches: a vector is then loaded from one line, and no other
// thread writes to it. Their values are undefined at first.
//
// They start an eighth of a page after `tensor` does in its page. Rows of 1024 float32 channels all start at one place
// of a page, and so in one set of the first-level cache, which the same channels of these arrays would crowd. And where
// the last 12 bits of an address are those of a line just ahead that is being written, processors wait.
template <class A>
class Scratch {
 public:
  Scratch(std::int64_t arrays, std::int64_t length, const void* tensor)
      : stride_((length + kPerLine - 1) / kPerLine * kPerLine),
        memory_(new A[static_cast<std::size_t>(arrays * stride_ + kPageBytes / static_cast<std::int64_t>(sizeof(A)))]) {
    const auto memory = reinterpret_cast<std::uintptr_t>(memory_.get());
    const auto wanted = reinterpret_cast<std::uintptr_t>(tensor) / kLineBytes * kLineBytes + kPageBytes / 8;
    first_ = reinterpret_cast<A*>(memory + (wanted - memory) % kPageBytes);
  }

  A* operator[](std::int64_t array) const { return first_ + array * stride_; }

 private:
  static constexpr std::int64_t kPerLine = kLineBytes / sizeof(A), kPageBytes = 4096;
  std::int64_t stride_;
  std::unique_ptr<A[]> memory_;
  A* first_;
};

// What each thread has for itself: `threads` objects of one kind, made with `arguments`.
template <class Own, class... Arguments>
std::vector<Own> per_thread(int threads, const Arguments&... arguments) {
  std::vector<Own> all;
  all.reserve(static_cast<std::size_t>(threads));
  for (int i = 0; i < threads; ++i) all.emplace_back(arguments...);
  return all;
}

}  // namespace batchfree
