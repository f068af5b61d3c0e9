// Memory that the inner loops use beside the tensors, and where it should lie.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace batchfree {

inline constexpr std::uintptr_t kLineBytes = 64;  // of a cache

// Some arrays of one length, each in whole lines of the caches: their vectors do not cross from one line to the next,
// and no other thread writes to those lines. The arrays follow one another. Their values are undefined at first.
//
// Where `tensor` is given, they start an eighth of a page after it does in its page: the rows of 1024 float32 channels
// all start at one place of a page, and so in one set of the first-level cache, where the same channels of these arrays
// would crowd them.
template <class A>
class Scratch {
 public:
  Scratch(std::int64_t arrays, std::int64_t length, const void* tensor = nullptr)
      : stride_((length + kPerLine - 1) / kPerLine * kPerLine) {
    const std::uintptr_t room = tensor ? kPageBytes : kLineBytes;
    memory_.reset(new A[static_cast<std::size_t>(arrays * stride_) + room / sizeof(A)]);
    const std::uintptr_t line = reinterpret_cast<std::uintptr_t>(tensor) / kLineBytes * kLineBytes;
    const std::uintptr_t wanted = line + kPageBytes / 8 - reinterpret_cast<std::uintptr_t>(memory_.get());
    first_ = memory_.get() + wanted % room / sizeof(A);
  }

  A* operator[](std::int64_t array) const { return first_ + array * stride_; }

 private:
  static constexpr std::int64_t kPerLine = kLineBytes / sizeof(A);
  static constexpr std::uintptr_t kPageBytes = 4096;
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
