// The table of one instruction set. Included only by kernels_<name>.cpp, which defines BATCHFREE_ISA.
#pragma once

#include "row_primitives.hpp"
#include "run_primitives.hpp"

namespace batchfree {
namespace BATCHFREE_ISA {

#define BATCHFREE_EACH_ACTIVATION(function)                                                               \
  {function<Activation::none>, function<Activation::relu>, function<Activation::silu>, function<Activation::gelu>, \
   function<Activation::gelu_tanh>}

template <class T>
constexpr Primitives<T> primitives() {
  return {
      {Run<T>::moments, BATCHFREE_EACH_ACTIVATION(Run<T>::template normalize),
       BATCHFREE_EACH_ACTIVATION(Run<T>::template gradient_sums), BATCHFREE_EACH_ACTIVATION(Run<T>::template gradient)},
      {Rows<T>::moments, BATCHFREE_EACH_ACTIVATION(Rows<T>::template normalize),
       BATCHFREE_EACH_ACTIVATION(Rows<T>::template gradient_sums),
       BATCHFREE_EACH_ACTIVATION(Rows<T>::template gradient)},
  };
}

#undef BATCHFREE_EACH_ACTIVATION

extern const PrimitiveTable table = {primitives<float>(), primitives<double>(), primitives<BFloat16>(),
                                     primitives<Float16>()};

}  // namespace BATCHFREE_ISA
}  // namespace batchfree
