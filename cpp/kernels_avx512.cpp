// The inner loops for avx512; CMakeLists.txt gives this file its compiler flags.
#define BATCHFREE_ISA avx512
#include "primitive_table.hpp"
