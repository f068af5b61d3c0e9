// Which instruction sets this processor and operating system can run, and which one the kernels use.
//
// Detection happens at run time, so that one wheel serves every machine: kernels are compiled once per set and the
// widest one found here is used.
#pragma once

#include <string>
#include <vector>

#include "primitives.hpp"

namespace batchfree {

// Names in rising order of width, "baseline" always first: what the compiler assumes of every machine of this
// architecture. Then "avx2" (with FMA and F16C) and "avx512" (F, BW, DQ, VL) on x86-64, or "neon" on AArch64.
// Pure function of the machine; safe to call from any thread.
std::vector<std::string> instruction_sets();

// The one in use: the widest, or the one that the environment variable BATCHFREE_ISA names when this is first called.
// Throws std::invalid_argument where that is not one of instruction_sets().
const std::string& instruction_set();

// The kernels of a set, by its name; of instruction_set() where the name is empty. Throws as above.
const PrimitiveTable& primitive_table(const std::string& name = "");

}  // namespace batchfree
