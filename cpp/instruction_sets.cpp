#include "instruction_sets.hpp"

#include <cstdlib>
#include <stdexcept>

namespace batchfree {

namespace {

void check_available(const std::string& name, const std::string& asked_by) {
  std::string allowed;
  for (const std::string& available : instruction_sets()) {
    if (available == name) return;
    allowed += (allowed.empty() ? "" : ", ") + available;
  }
  throw std::invalid_argument(asked_by + " '" + name + "' cannot run here. This machine and this build have: " +
                              allowed + ". Unset BATCHFREE_ISA to use the widest, or name one of these.");
}

std::string choose() {
  const char* const forced = std::getenv("BATCHFREE_ISA");
  if (!forced || !*forced) return instruction_sets().back();
  check_available(forced, "the instruction set that BATCHFREE_ISA names,");
  return forced;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names{"baseline"};
#if defined(BATCHFREE_HAS_X86_KERNELS)
  // __builtin_cpu_supports also asks the operating system (XGETBV) whether it saves the wide registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    names.push_back("avx2");
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      names.push_back("avx512");
    }
  }
#elif defined(BATCHFREE_HAS_NEON_KERNELS)
  names.push_back("neon");  // part of the architecture
#endif
  return names;
}

const std::string& instruction_set() {
  static const std::string chosen = choose();
  return chosen;
}

const PrimitiveTable& primitive_table(const std::string& name) {
  const std::string& wanted = name.empty() ? instruction_set() : name;
  if (!name.empty()) check_available(name, "the instruction set");
#if defined(BATCHFREE_HAS_X86_KERNELS)
  if (wanted == "avx512") return avx512::table;
  if (wanted == "avx2") return avx2::table;
#elif defined(BATCHFREE_HAS_NEON_KERNELS)
  if (wanted == "neon") return neon::table;
#endif
  return baseline::table;
}

}  // namespace batchfree
