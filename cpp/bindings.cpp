// The only door between the C++ core and Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "instruction_sets.hpp"

namespace nb = nanobind;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "unknown compiler";
#endif
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The compiled core of batchfree.";
  m.def("instruction_sets", &batchfree::instruction_sets,
        "Names of the instruction sets this machine can run, narrowest first; 'baseline' is always there.");
  m.def("compiler", &compiler, "Name and version of the compiler that built this extension.");
}
