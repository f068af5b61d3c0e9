#include "instruction_sets.hpp"

namespace batchfree {

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names{"baseline"};
#if defined(__x86_64__) && defined(__GNUC__)
  // __builtin_cpu_supports also asks the operating system (XGETBV) whether it saves the wide registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    names.push_back("avx2");
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      names.push_back("avx512");
    }
  }
#elif defined(__aarch64__)
  names.push_back("neon");  // part of the architecture
#endif
  return names;
}

}  // namespace batchfree
