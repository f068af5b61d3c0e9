// The inner loops for baseline; CMakeLists.txt gives this file its compiler flags.
#define BATCHFREE_ISA baseline
#include "primitive_table.hpp"
