// The two operators as nodes of torch's autograd graph. batchfree.torch has the same nodes in Python, for a torch that
// is not the one this file was built with; around a small map those take longer than the kernels.
//
// The only file that sees torch's headers. batchfree.torch checks shapes, types and layout before it calls.
#include <ATen/Parallel.h>
#include <ATen/TracerMode.h>
#include <ATen/record_function.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "group_norm.hpp"
#include "instruction_sets.hpp"

namespace nb = nanobind;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace nanobind::detail {

template <>
struct type_caster<Tensor> {
  NB_TYPE_CASTER(Tensor, const_name("torch.Tensor"))

  bool from_python(handle source, std::uint8_t, cleanup_list*) {
    if (!THPVariable_Check(source.ptr())) return false;
    value = THPVariable_Unpack(source.ptr());
    return true;
  }
  // None where the tensor is undefined.
  static handle from_cpp(const Tensor& tensor, rv_policy, cleanup_list*) { return THPVariable_Wrap(tensor); }
};

}  // namespace nanobind::detail

namespace {

using namespace batchfree;
using MaybeTensor = std::optional<Tensor>;

ElementType element_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return ElementType::float64;
    case at::kBFloat16: return ElementType::bfloat16;
    case at::kHalf: return ElementType::float16;
    default: return ElementType::float32;
  }
}

void* address(const Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

Parameters parameters(const Tensor& tensor) {
  return {address(tensor), tensor.defined() ? element_type(tensor) : ElementType::float32};
}

// The first half of `moments` are means, the second variances.
Statistics statistics(const Tensor& moments) {
  double* const values = moments.data_ptr<double>();
  return {values, values + moments.numel() / 2};
}

const PrimitiveTable& kernels() { return primitive_table(""); }

// channels_last where the values of `x` lie so, and contiguous where they lie so or must be moved.
at::MemoryFormat memory_format(const Tensor& x) {
  const auto last = x.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
  const bool is_last = (x.dim() == 4 || x.dim() == 5) && !x.is_contiguous() && x.is_contiguous(last);
  return is_last ? last : at::MemoryFormat::Contiguous;
}

Tensor in_order_of(const Tensor& like, const Tensor& tensor) {
  return tensor.defined() ? tensor.contiguous(memory_format(like)) : tensor;
}

// A saved tensor, whose values a hook may have moved.
Tensor dense(const Tensor& saved) { return in_order_of(saved, saved); }

// Whether it is memory of the CPU and nothing else: no transform's wrapper, no negated view, not all zeros unwritten.
bool is_readable(const Tensor& tensor) {
  const auto keys = tensor.key_set()
                        .remove(at::DispatchKey::AutogradCPU)
                        .remove(at::DispatchKey::ADInplaceOrView)
                        .remove(at::DispatchKey::AutocastCPU);
  return keys == at::DispatchKeySet(at::DispatchKey::CPU);
}

// Whether the gradient must be made of torch's operators: somebody differentiates it, a mode or a transform looks on,
// or a hook gave something else back than what was saved. `upstream` and `residual` should be like `x`.
bool needs_formula(const Tensor& x, const Tensor& upstream, const Tensor& residual = {}) {
  const auto agrees = [&](const Tensor& tensor) {
    return is_readable(tensor) && tensor.scalar_type() == x.scalar_type() && tensor.sizes() == x.sizes();
  };
  return at::GradMode::is_enabled() || c10::impl::TorchDispatchModeTLS::stack_len() > 0 ||
         at::tracer::impl::is_dispatch_enabled() || upstream._fw_grad(0).defined() || !is_readable(x) ||
         !agrees(upstream) || (residual.defined() && !agrees(residual));
}

// The gradients by that module's `differentiable_backward`.
template <class... Arguments>
variable_list by_formula(const char* module, const Arguments&... arguments) {
  const nb::gil_scoped_acquire acquire;
  try {
    const nb::object found = nb::module_::import_(module).attr("differentiable_backward")(arguments...);
    variable_list gradients;
    for (nb::handle gradient : found) gradients.push_back(nb::cast<MaybeTensor>(gradient).value_or(Tensor()));
    return gradients;
  } catch (nb::python_error& error) {  // the engine knows only torch's own class, which keeps the exception's type
    error.restore();
    python_error raised;
    raised.persist();
    throw raised;
  }
}

// The core adds in float64 and rounds to float32 at least; the gradient of a 16-bit parameter rounds once more.
Tensor rounded(const double* sums, const Tensor& parameter) {
  if (parameter.scalar_type() == at::kDouble) {
    const Tensor gradient = at::empty_like(parameter);
    std::copy_n(sums, gradient.numel(), static_cast<double*>(gradient.data_ptr()));
    return gradient;
  }
  const Tensor gradient = at::empty(parameter.sizes(), at::kFloat);
  std::transform(sums, sums + gradient.numel(), static_cast<float*>(gradient.data_ptr()),
                 [](double sum) { return static_cast<float>(sum); });
  return gradient.scalar_type() == parameter.scalar_type() ? gradient : gradient.to(parameter.scalar_type());
}

// As Python spells the enumerators of Activation; null is None.
constexpr const char* activation_names[] = {nullptr, "relu", "silu", "gelu", "gelu_tanh"};

}  // namespace

// Their names are what profilers and anomaly mode show.
namespace batchfree {

struct GroupNorm : torch::autograd::Function<GroupNorm> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                        const MaybeTensor& residual, std::int64_t groups, double eps, std::int64_t activation) {
    const Tensor w = weight.value_or(Tensor()), b = bias.value_or(Tensor()), r = residual.value_or(Tensor());
    const Tensor y = at::empty_like(x), moments = at::empty({2, x.size(0), groups}, at::kDouble);
    batchfree::forward(problem(x, groups, eps, activation),
                       {address(x), parameters(w), parameters(b), address(r), address(y), statistics(moments)},
                       kernels());
    // Without an activation nothing depends on the residual.
    context->save_for_backward({x, w, b, activation ? r : Tensor()});
    context->saved_data["moments"] = moments;
    context->saved_data["eps"] = eps;
    context->saved_data["activation"] = activation;
    context->saved_data["adds"] = r.defined();
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    const variable_list saved = context->get_saved_variables();
    const Tensor moments = context->saved_data["moments"].toTensor();
    const double eps = context->saved_data["eps"].toDouble();
    const std::int64_t activation = context->saved_data["activation"].toInt();
    std::size_t edge = 0;  // only inputs that were there have one
    const auto is_wanted = [&](bool given) { return given && context->needs_input_grad(edge++); };
    const bool wants_x = is_wanted(true), wants_w = is_wanted(saved[1].defined()),
               wants_b = is_wanted(saved[2].defined()),
               wants_r = is_wanted(context->saved_data["adds"].toBool());
    variable_list gradients;
    if (needs_formula(saved[0], upstreams[0], saved[3])) {
      gradients = by_formula("batchfree.torch._kernel", upstreams[0], saved[0], moments.size(2), saved[1], saved[2],
                             eps, activation_names[activation], saved[3],
                             std::array{wants_x, wants_w, wants_b, wants_r});
    } else {
      const Tensor x = dense(saved[0]), w = dense(saved[1]), b = dense(saved[2]), r = in_order_of(x, saved[3]);
      const Tensor upstream = in_order_of(x, upstreams[0]);
      const bool through = wants_r && r.defined();
      const Tensor of_x = wants_x || through ? at::empty_like(x) : Tensor();
      const Tensor of_r = through ? at::empty_like(x) : Tensor();
      std::vector<double> sums(wants_w || wants_b ? 2 * x.size(1) : 0);
      double* const of_w = sums.empty() ? nullptr : sums.data();
      double* const of_b = sums.empty() ? nullptr : of_w + x.size(1);
      batchfree::backward(problem(x, moments.size(2), eps, activation),
                          {address(upstream), address(x), parameters(w), parameters(b), address(r),
                           statistics(moments), address(of_x), address(of_r), of_w, of_b},
                          kernels());
      gradients = {wants_x ? of_x : Tensor(), wants_w ? rounded(of_w, w) : Tensor(),
                   wants_b ? rounded(of_b, b) : Tensor(), wants_r ? (through ? of_r : upstream) : Tensor()};
    }
    gradients.resize(7);  // groups, eps and activation have none
    return gradients;
  }

 private:
  static Problem problem(const Tensor& x, std::int64_t groups, double eps, std::int64_t activation) {
    Problem p;
    p.samples = x.size(0);
    p.channels = x.size(1);
    p.spatial = x.numel() / (p.samples * p.channels);
    p.groups = groups;
    p.layout = x.is_contiguous() ? Layout::channels_first : Layout::channels_last;
    p.element = element_type(x);
    p.activation = static_cast<Activation>(activation);
    p.eps = eps;
    p.threads = at::get_num_threads();
    return p;
  }
};

struct StandardizeWeight : torch::autograd::Function<StandardizeWeight> {
  static Tensor forward(AutogradContext* context, const Tensor& weight, bool is_unbiased, double eps) {
    const Tensor y = at::empty_like(weight), moments = at::empty({2, weight.size(0)}, at::kDouble);
    batchfree::forward(problem(weight, is_unbiased, eps),
                       {address(weight), {}, {}, nullptr, address(y), statistics(moments)}, kernels());
    context->save_for_backward({weight});
    context->saved_data["moments"] = moments;
    context->saved_data["is_unbiased"] = is_unbiased;
    context->saved_data["eps"] = eps;
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    const variable_list saved = context->get_saved_variables();
    const bool is_unbiased = context->saved_data["is_unbiased"].toBool();
    const double eps = context->saved_data["eps"].toDouble();
    variable_list gradients;
    if (needs_formula(saved[0], upstreams[0])) {
      gradients = by_formula("batchfree.torch._filter_kernel", upstreams[0], saved[0], is_unbiased ? "qiao" : "bit",
                             eps);
    } else {
      const Tensor weight = dense(saved[0]), upstream = in_order_of(weight, upstreams[0]);
      const Tensor of_weight = at::empty_like(weight), moments = context->saved_data["moments"].toTensor();
      batchfree::backward(problem(weight, is_unbiased, eps),
                          {address(upstream), address(weight), {}, {}, nullptr, statistics(moments),
                           address(of_weight), nullptr, nullptr, nullptr},
                          kernels());
      gradients = {of_weight};
    }
    gradients.resize(3);
    return gradients;
  }

 private:
  // Every filter a sample of one group: whatever the order of the fan-in, it is one run in memory.
  static Problem problem(const Tensor& weight, bool is_unbiased, double eps) {
    Problem p;
    p.samples = weight.size(0);
    p.channels = 1;
    p.spatial = weight.numel() / p.samples;
    p.groups = 1;
    p.layout = Layout::channels_first;
    p.element = element_type(weight);
    p.divisor = is_unbiased ? Divisor::unbiased : Divisor::biased;
    p.eps = eps;
    p.threads = at::get_num_threads();
    return p;
  }
};

}  // namespace batchfree

namespace {

Tensor group_norm(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& residual,
                  std::int64_t groups, double eps, std::int64_t activation) {
  const nb::gil_scoped_release release;
  RECORD_FUNCTION("batchfree::group_norm", std::vector<c10::IValue>());  // for profilers
  return GroupNorm::apply(x, weight, bias, residual, groups, eps, activation);
}

Tensor standardize_weight(const Tensor& weight, bool is_unbiased, double eps) {
  const nb::gil_scoped_release release;
  RECORD_FUNCTION("batchfree::standardize_weight", std::vector<c10::IValue>());
  return StandardizeWeight::apply(weight, is_unbiased, eps);
}

}  // namespace

NB_MODULE(_autograd_nodes, m) {
  m.doc() = "Group Norm and Weight Standardization as nodes of torch's autograd graph.";
  m.attr("TORCH_BUILD") = BATCHFREE_TORCH_BUILD;
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const python_error&) {  // raised by a hook in Python, for instance on saved tensors
      torch::translate_exception_to_python(thrown);
    } catch (const c10::Error&) {
      torch::translate_exception_to_python(thrown);
    }
  });
  m.def("group_norm", &group_norm);
  m.def("standardize_weight", &standardize_weight);
}
