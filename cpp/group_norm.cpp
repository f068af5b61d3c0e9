#include "group_norm.hpp"

#include "channels_first.hpp"
#include "channels_last.hpp"

namespace batchfree {

namespace {

// Calls use(kernels) with the kernels for the problem's element type and layout.
template <class Use>
void with_kernels(const Problem& problem, const PrimitiveTable& table, const Use& use) {
  const auto of_type = [&](const auto& primitives, auto element) {
    using T = decltype(element);
    // With one spatial element both layouts are the same memory, and a row of channels is the longer run.
    if (problem.layout == Layout::channels_last || problem.spatial == 1) use(ChannelsLast<T>(problem, primitives.row));
    else use(ChannelsFirst<T>(problem, primitives.run));
  };
  switch (problem.element) {
    case ElementType::float32: return of_type(table.float32, float{});
    case ElementType::float64: return of_type(table.float64, double{});
    case ElementType::bfloat16: return of_type(table.bfloat16, BFloat16{});
    case ElementType::float16: return of_type(table.float16, Float16{});
  }
}

}  // namespace

void forward(const Problem& problem, const Forward& f, const PrimitiveTable& table) {
  with_kernels(problem, table, [&](const auto& kernels) { kernels.forward(f); });
}

void backward(const Problem& problem, const Backward& b, const PrimitiveTable& table) {
  with_kernels(problem, table, [&](const auto& kernels) { kernels.backward(b); });
}

void moments(const Problem& problem, const Forward& f, const PrimitiveTable& table) {
  with_kernels(problem, table, [&](const auto& kernels) { kernels.moments(f); });
}

void apply(const Problem& problem, const Forward& f, const PrimitiveTable& table) {
  with_kernels(problem, table, [&](const auto& kernels) { kernels.apply(f); });
}

}  // namespace batchfree
