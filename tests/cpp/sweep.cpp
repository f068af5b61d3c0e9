// The core without Python: every kernel against plain loops in double, on buffers of exact size, so that a sanitizer
// sees a byte too many, and on processors that are only emulated here.
//
// Arguments: what tests/closeness.py allows for float32, float64, bfloat16 and float16. Exit status 1, and the first
// case that is off, where a result is.
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "../../cpp/group_norm.hpp"
#include "../../cpp/instruction_sets.hpp"
#include "../../cpp/parallel.hpp"
#include "../../cpp/parameters.hpp"

using namespace batchfree;

namespace {

using Values = std::vector<double>;

// Multiples of 1/64 within 4, which every element type holds exactly.
Values draw(std::int64_t count, unsigned seed) {
  Values values(static_cast<std::size_t>(count));
  std::uint32_t state = seed * 2654435761u + 1;
  for (double& value : values) {
    state = state * 1664525u + 1013904223u;
    value = (static_cast<int>(state >> 23) - 255.5 > 0 ? 1 : -1) * static_cast<double>((state >> 8) % 255 + 1) / 64;
  }
  return values;
}

std::size_t size_of(ElementType type) { return type == ElementType::float64 ? 8 : type == ElementType::float32 ? 4 : 2; }

// Elements that end with their allocation, and start off the vector's alignment where `shifted`.
class Buffer {
 public:
  Buffer(ElementType type, std::size_t count, bool shifted)
      : type_(type), count_(count), shift_(shifted ? size_of(type) : 0),
        bytes_(new unsigned char[shift_ + count * size_of(type)]) {
    std::memset(bytes_.get(), 0xff, shift_ + count * size_of(type));  // NaN: a skipped element shows
  }
  Buffer(ElementType type, const Values& values, bool shifted) : Buffer(type, values.size(), shifted) {
    for (std::size_t i = 0; i < count_; ++i) write(i, values[i]);
  }

  void* data() const { return bytes_.get() + shift_; }

  Values read() const {
    Values values;
    const PerChannel<double> stored({data(), type_}, static_cast<std::int64_t>(count_), 0);
    for (std::size_t i = 0; i < count_; ++i) values.push_back(stored[static_cast<std::int64_t>(i)]);
    return values;
  }

 private:
  void write(std::size_t i, double value) {
    unsigned char* const at = bytes_.get() + shift_ + i * size_of(type_);
    const float single = static_cast<float>(value);
    std::uint32_t bits;
    std::memcpy(&bits, &single, sizeof(bits));
    std::uint16_t half = static_cast<std::uint16_t>(bits >> 16);
    if (type_ == ElementType::float16) {
      half = static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | ((bits & 0x7fffffffu) - (112u << 23)) >> 13);
    }
    if (type_ == ElementType::float64) std::memcpy(at, &value, sizeof(value));
    else if (type_ == ElementType::float32) std::memcpy(at, &single, sizeof(single));
    else std::memcpy(at, &half, sizeof(half));
  }

  ElementType type_;
  std::size_t count_, shift_;
  std::unique_ptr<unsigned char[]> bytes_;
};

constexpr double kRootOfTwoOverPi = 0.79788456080286535588;

// The activation and its derivative, as the books have them.
double value_of(Activation act, double z) {
  switch (act) {
    case Activation::none: return z;
    case Activation::relu: return z > 0 ? z : 0;
    case Activation::silu: return z / (1 + std::exp(-z));
    case Activation::gelu: return z * 0.5 * (1 + std::erf(z / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return z * 0.5 * (1 + std::tanh(kRootOfTwoOverPi * (z + 0.044715 * z * z * z)));
  }
  return NAN;
}

double slope_of(Activation act, double z) {
  const double s = 1 / (1 + std::exp(-z)), t = std::tanh(kRootOfTwoOverPi * (z + 0.044715 * z * z * z));
  switch (act) {
    case Activation::none: return 1;
    case Activation::relu: return z > 0 ? 1 : 0;
    case Activation::silu: return s * (1 + z * (1 - s));
    case Activation::gelu:
      return 0.5 * (1 + std::erf(z / std::sqrt(2.0))) + z * 0.5 * kRootOfTwoOverPi * std::exp(-z * z / 2);
    case Activation::gelu_tanh:
      return 0.5 * (1 + t) + z * 0.5 * (1 - t * t) * kRootOfTwoOverPi * (1 + 3 * 0.044715 * z * z);
  }
  return NAN;
}

struct Results {
  Values y, dx, dresidual, dweight, dbias;
};

struct Inputs {
  Values x, dy, residual, weight, bias;  // empty where there is none
};

// Plain loops over (n, c, s), in the problem's own order of memory.
Results expected(const Problem& p, const Inputs& in) {
  const std::int64_t width = p.channels / p.groups;
  const double m = static_cast<double>(p.values_per_group());
  Results r{Values(in.x.size()), Values(in.x.size()), Values(in.x.size()), Values(p.channels), Values(p.channels)};
  for (std::int64_t group = 0; group < p.samples * p.groups; ++group) {
    const std::int64_t n = group / p.groups, first = group % p.groups * width;
    const auto each = [&](const auto& visit) {
      for (std::int64_t c = first; c < first + width; ++c) {
        for (std::int64_t s = 0; s < p.spatial; ++s) {
          visit(p.layout == Layout::channels_first ? (n * p.channels + c) * p.spatial + s
                                                   : (n * p.spatial + s) * p.channels + c, c);
        }
      }
    };
    double mean = 0, squares = 0, sum = 0, centred_sum = 0;
    each([&](std::int64_t i, std::int64_t) { mean += in.x[i] / m; });
    each([&](std::int64_t i, std::int64_t) { squares += (in.x[i] - mean) * (in.x[i] - mean); });
    const double deviation = std::sqrt(squares / (m - 1));
    const double rstd = p.divisor == Divisor::biased ? 1 / std::sqrt(squares / m + p.eps) : 1 / (deviation + p.eps);
    each([&](std::int64_t i, std::int64_t c) {
      const double normalised = (in.x[i] - mean) * rstd, weight = in.weight.empty() ? 1 : in.weight[c];
      const double z = normalised * weight + (in.bias.empty() ? 0 : in.bias[c]) + (in.residual.empty() ? 0 : in.residual[i]);
      const double dz = in.dy[i] * slope_of(p.activation, z);
      r.y[i] = value_of(p.activation, z);
      r.dresidual[i] = dz;
      r.dbias[c] += dz;
      r.dweight[c] += dz * normalised;
      sum += dz * weight / m;
      centred_sum += dz * weight * (in.x[i] - mean);
    });
    const double slope = p.divisor == Divisor::biased ? rstd * rstd * rstd / m : rstd * rstd / ((m - 1) * deviation);
    each([&](std::int64_t i, std::int64_t c) {
      const double weight = in.weight.empty() ? 1 : in.weight[c];
      r.dx[i] = rstd * (r.dresidual[i] * weight - sum) - (in.x[i] - mean) * slope * centred_sum;
    });
  }
  return r;
}

Results computed(const Problem& p, const Inputs& in, ElementType parameter_type, bool shifted, const PrimitiveTable& table) {
  const std::size_t size = in.x.size();
  const Buffer x(p.element, in.x, shifted), dy(p.element, in.dy, shifted), residual(p.element, in.residual, shifted);
  const Buffer weight(parameter_type, in.weight, shifted), bias(parameter_type, in.bias, shifted);
  const Buffer y(p.element, size, shifted), dx(p.element, size, shifted), dresidual(p.element, size, shifted);
  const auto or_null = [](const Values& values, const Buffer& buffer) { return values.empty() ? nullptr : buffer.data(); };
  const Parameters weights{or_null(in.weight, weight), parameter_type}, biases{or_null(in.bias, bias), parameter_type};
  const std::unique_ptr<double[]> mean(new double[p.samples * p.groups]), variance(new double[p.samples * p.groups]);
  const std::unique_ptr<double[]> dweight(new double[p.channels]), dbias(new double[p.channels]);
  const Statistics statistics{mean.get(), variance.get()};
  const Forward f{x.data(), weights, biases, or_null(in.residual, residual), y.data(), statistics};
  forward(p, f, table);
  const bool through = !in.residual.empty() && p.activation != Activation::none;
  backward(p, {dy.data(), x.data(), weights, biases, f.residual, statistics, dx.data(),
               through ? dresidual.data() : nullptr, dweight.get(), dbias.get()}, table);

  // The halves alone give what the whole gave.
  const Buffer again(p.element, size, shifted);
  const std::unique_ptr<double[]> mean_alone(new double[p.samples * p.groups]), variance_alone(new double[p.samples * p.groups]);
  const Statistics alone{mean_alone.get(), variance_alone.get()};
  moments(p, {x.data(), {}, {}, nullptr, nullptr, alone}, table);
  apply(p, {x.data(), weights, biases, f.residual, again.data(), alone}, table);
  if (std::memcmp(y.data(), again.data(), size * size_of(p.element)) != 0) std::exit(2);
  return {y.read(), dx.read(), through ? dresidual.read() : Values(), Values(dweight.get(), dweight.get() + p.channels),
          Values(dbias.get(), dbias.get() + p.channels)};
}

// The rule of tests/closeness.py; NaN is never near.
bool near(const Values& got, const Values& wanted, double tolerance) {
  double largest = 0;
  for (const double value : wanted) largest = std::fmax(largest, std::fabs(value));
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!(std::fabs(got[i] - wanted[i]) <= tolerance * (std::fabs(wanted[i]) + largest))) return false;
  }
  return true;
}

// Bits of `which`: a residual, weights, biases, 16-bit parameters, buffers off the vector's alignment.
void check(const Problem& p, unsigned which, const std::string& set, const double* tolerances) {
  const auto given = [&](unsigned bit) { return (which >> bit & 1) != 0; };
  const Inputs in{draw(p.size(), 1), draw(p.size(), 2), given(0) ? draw(p.size(), 3) : Values(),
                  given(1) ? draw(p.channels, 4) : Values(), given(2) ? draw(p.channels, 5) : Values()};
  const bool own_type = given(3) || size_of(p.element) != 2;
  const Results wanted = expected(p, in);
  const Results got = computed(p, in, own_type ? p.element : ElementType::float32, given(4), primitive_table(set));
  const double tolerance = tolerances[static_cast<int>(p.element)];
  // Sums over samples leave as double; their terms were made in float32 at least.
  const double of_sums = p.element == ElementType::float64 ? tolerance : tolerances[0];
  if (near(got.y, wanted.y, tolerance) && near(got.dx, wanted.dx, tolerance) &&
      near(got.dresidual, wanted.dresidual, tolerance) && near(got.dweight, wanted.dweight, of_sums) &&
      near(got.dbias, wanted.dbias, of_sums)) {
    return;
  }
  std::printf("%s: samples %lld, channels %lld, spatial %lld, groups %lld, layout %d, element %d, activation %d, "
              "divisor %d, threads %d, inputs %u is off\n",
              set.c_str(), static_cast<long long>(p.samples), static_cast<long long>(p.channels),
              static_cast<long long>(p.spatial), static_cast<long long>(p.groups), static_cast<int>(p.layout),
              static_cast<int>(p.element), static_cast<int>(p.activation), static_cast<int>(p.divisor), p.threads, which);
  std::exit(1);
}

struct Shape {
  std::int64_t samples, channels, spatial, groups;
};

// Both sides of every vector's length, both sides of a chunk, groups of one channel and one group of all.
constexpr Shape kShapes[] = {{1, 2, 1, 1},   {3, 6, 1, 2},  {2, 4, 2, 4},    {1, 6, 3, 3},    {2, 3, 5, 1},  {1, 4, 7, 2},
                             {1, 8, 8, 4},   {2, 2, 9, 2},  {1, 15, 15, 5},  {1, 16, 16, 16}, {1, 17, 17, 1}, {1, 31, 4, 31},
                             {1, 32, 33, 8}, {2, 33, 6, 3}, {1, 64, 49, 32}, {1, 65, 2, 13},  {9, 8, 63, 8},
                             {2, 24, 49, 2}};
constexpr Shape kLargeShapes[] = {{1, 3, 8193, 3}, {1, 2, 20011, 1}, {1, 320, 70, 1}, {3, 64, 300, 64}};

// Not 1e-5: two values alone have then a gradient of next to zero, in which any rounding shows.
constexpr double kEps = 0.5;

void sweep(const Shape& shape, ElementType element, Activation activation, unsigned which, int threads,
           const std::string& set, const double* tolerances) {
  for (const Layout layout : {Layout::channels_first, Layout::channels_last}) {
    Problem p{shape.samples, shape.channels, shape.spatial, shape.groups, layout, element, activation, Divisor::biased, kEps};
    p.threads = threads;
    check(p, which, set, tolerances);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) return 3;
  double tolerances[4];
  for (int i = 0; i < 4; ++i) tolerances[i] = std::atof(arguments[i + 1]);
  dlopen("libgomp.so.1", RTLD_NOW);  // as torch would; on one thread where there is none

  int cases = 0;
  for (const std::string& set : instruction_sets()) {
    for (int element = 0; element < 4; ++element) {
      unsigned which = 0;
      for (int activation = 0; activation < kActivationCount; ++activation) {
        const auto with = [&](const Shape& shape, int threads) {
          // Every residual with every activation; the rest in turns, which the odd step takes through all of it.
          for (const unsigned residual : {0u, 1u}) {
            sweep(shape, static_cast<ElementType>(element), static_cast<Activation>(activation),
                  (which += 6) % 32 / 2 * 2 + residual, threads, set, tolerances);
            cases += 2;
          }
        };
        for (const Shape& shape : kShapes) with(shape, 1);
        for (const Shape& shape : kLargeShapes) {
          if (activation < 2) with(shape, activation == 0 ? 1 : 3);
        }
      }
      for (const std::int64_t fan_in : {2, 9, 27, 9000}) {
        for (const Divisor divisor : {Divisor::biased, Divisor::unbiased}) {
          check({5, 1, fan_in, 1, Layout::channels_first, static_cast<ElementType>(element), Activation::none, divisor, kEps},
                0, set, tolerances);
          ++cases;
        }
      }
    }
  }
  std::printf("%d cases, threads from '%s', sets:", cases, threading_runtime());
  for (const std::string& set : instruction_sets()) std::printf(" %s", set.c_str());
  std::printf("\n");
}
