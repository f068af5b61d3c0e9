// The inner loops for neon; CMakeLists.txt gives this file its compiler flags.
#define BATCHFREE_ISA neon
#include "primitive_table.hpp"
