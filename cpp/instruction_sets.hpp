// Which instruction sets this processor and operating system can run.
//
// Detection happens at run time, so that one wheel serves every machine: kernels are compiled once per set and the
// widest one found here is used.
#pragma once

#include <string>
#include <vector>

namespace batchfree {

// Names in rising order of width, "baseline" always first: what the compiler assumes of every machine of this
// architecture. Then "avx2" (with FMA and F16C) and "avx512" (F, BW, DQ, VL) on x86-64, or "neon" on AArch64.
// Pure function of the machine; safe to call from any thread.
std::vector<std::string> instruction_sets();

}  // namespace batchfree
