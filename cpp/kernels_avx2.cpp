// The inner loops for avx2; CMakeLists.txt gives this file its compiler flags.
#define BATCHFREE_ISA avx2
#include "primitive_table.hpp"
