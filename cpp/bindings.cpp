// The door between the C++ core and Python; autograd_nodes.cpp is that to torch.
//
// Tensors come as addresses: building an array object per argument costs more than normalising a small tensor.
// batchfree.torch checks shapes, types and layout before it calls; nothing here can check an address.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

#include "group_norm.hpp"
#include "instruction_sets.hpp"
#include "parallel.hpp"

namespace nb = nanobind;
using namespace batchfree;

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

using Address = std::uintptr_t;  // 0 for null

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Room for a call's statistics between forward and backward: a tensor would take longer to make than they do.
struct Doubles {
  explicit Doubles(std::size_t count) : values(count) {}
  Address address() { return reinterpret_cast<Address>(values.data()); }

  std::vector<double> values;
};

// A problem, the type of its weight and bias, and the kernels that will solve it.
struct Call {
  Problem problem;
  ElementType parameter;
  const PrimitiveTable* kernels;
};

void construct(Call* self, std::int64_t samples, std::int64_t channels, std::int64_t spatial, std::int64_t groups,
               bool channels_last, int element, int parameter_element, int activation, bool unbiased, double eps,
               int threads, const char* instruction_set) {
  Problem p;
  p.samples = samples;
  p.channels = channels;
  p.spatial = spatial;
  p.groups = groups;
  p.layout = channels_last ? Layout::channels_last : Layout::channels_first;
  p.element = static_cast<ElementType>(element);
  p.activation = static_cast<Activation>(activation);
  p.divisor = unbiased ? Divisor::unbiased : Divisor::biased;
  p.eps = eps;
  p.threads = threads;
  new (self) Call{p, static_cast<ElementType>(parameter_element), &primitive_table(instruction_set)};
}

// The first samples * groups doubles at `address` are means, the next are variances.
Statistics statistics(const Problem& p, Address address) {
  return {pointer<double>(address), pointer<double>(address) + p.samples * p.groups};
}

using Step = void (*)(const Problem&, const Forward&, const PrimitiveTable&);

template <Step step>
void run_forward(const Call& call, Address x, Address weight, Address bias, Address residual, Address y,
                 Address moments) {
  const Problem& p = call.problem;
  const nb::gil_scoped_release release;
  std::vector<double> unwanted(moments ? 0 : static_cast<std::size_t>(2 * p.samples * p.groups));
  if (!moments) moments = reinterpret_cast<Address>(unwanted.data());
  step(p, {pointer(x), {pointer(weight), call.parameter}, {pointer(bias), call.parameter}, pointer(residual),
           pointer(y), statistics(p, moments)},
       *call.kernels);
}

// Rounds to float32 unless the parameters are float64; a 16-bit parameter's gradient is torch's to round.
void store(Address to, const double* values, std::int64_t count, ElementType parameter) {
  if (!to) return;
  if (parameter == ElementType::float64) std::copy_n(values, count, pointer<double>(to));
  else std::transform(values, values + count, pointer<float>(to), [](double v) { return static_cast<float>(v); });
}

void run_backward(const Call& call, Address dy, Address x, Address weight, Address bias, Address residual,
                  Address moments, Address dx, Address dresidual, Address dweight, Address dbias) {
  const Problem& p = call.problem;
  const nb::gil_scoped_release release;
  std::vector<double> sums(dweight || dbias ? static_cast<std::size_t>(2 * p.channels) : 0);
  double* const of_weight = sums.empty() ? nullptr : sums.data();
  double* const of_bias = sums.empty() ? nullptr : of_weight + p.channels;
  backward(p, {pointer(dy), pointer(x), {pointer(weight), call.parameter}, {pointer(bias), call.parameter},
               pointer(residual), statistics(p, moments), pointer(dx), pointer(dresidual), of_weight, of_bias},
           *call.kernels);
  store(dweight, of_weight, p.channels, call.parameter);
  store(dbias, of_bias, p.channels, call.parameter);
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The compiled core of batchfree.";
  // An autograd graph that outlives the interpreter holds a Problem, and that is nobody's mistake.
  nb::set_leak_warnings(false);
  m.def("instruction_sets", &instruction_sets,
        "Names of the instruction sets this machine can run, narrowest first; 'baseline' is always there.");
  m.def("instruction_set", &instruction_set,
        "The one in use: the widest, or what the environment variable BATCHFREE_ISA names.");
  m.def("compiler", &compiler, "Name and version of the compiler that built this extension.");
  m.def("threading_runtime", &threading_runtime,
        "Path of the OpenMP runtime that kernels share with torch; empty where none is loaded.");

  nb::class_<Call>(m, "Problem", "Sizes, types and settings of a call; see group_norm.hpp.")
      .def("__init__", &construct, nb::arg("samples"), nb::arg("channels"), nb::arg("spatial"), nb::arg("groups"),
           nb::arg("channels_last"), nb::arg("element"), nb::arg("parameter_element"), nb::arg("activation"),
           nb::arg("unbiased"), nb::arg("eps"), nb::arg("threads"), nb::arg("instruction_set") = "");
  nb::class_<Doubles>(m, "Doubles", "Room for some float64 values, for as long as it lives.")
      .def(nb::init<std::size_t>(), nb::arg("count"))
      .def_prop_ro("address", &Doubles::address);
  const char* const steps =
      "Addresses of dense arrays, 0 for null. moments: (2, samples, groups) doubles, means first.";
  m.def("forward", &run_forward<forward>, steps);
  m.def("moments", &run_forward<moments>, steps);
  m.def("apply", &run_forward<apply>, steps);
  m.def("backward", &run_backward, "As forward; dweight, dbias: float32, or float64 where the parameters are.");
}
