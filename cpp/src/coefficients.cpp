// Coefficients of a step. Like kernels.cpp, this file is compiled once for each ADAPTK_TARGET, exports one function,
// and shares no symbol with its other objects. The powers of Adam's corrections are some forty multiply-adds. Without
// this, each would be a call of the C library, since the processor is known only at run time.
#include "coefficients.hpp"

#include "adaptk/logarithm.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#define ADAPTK_CONCAT2(a, b) a##b
#define ADAPTK_CONCAT(a, b) ADAPTK_CONCAT2(a, b)

namespace adaptk::detail {
namespace {

template <class R, class T>
void prepare(const double* hyper, double grad_scale, std::int64_t t, void* coefficients, const void* kept) {
    using Out = StepCoefficients<R, T>;
    static_assert(std::is_trivially_copyable_v<Out> && sizeof(Out) <= max_coefficients_bytes);
    static_assert(std::is_trivially_copyable_v<memo_of_t<R>> && sizeof(memo_of_t<R>) <= max_memo_bytes);
    static thread_local memo_of_t<R> last;
    memo_of_t<R> given;
    if (kept != nullptr) std::memcpy(&given, kept, sizeof given);
    const Out made = step_coefficients<R, T>(hyper, grad_scale, t, kept != nullptr ? given : last);
    std::memcpy(coefficients, &made, sizeof made);
}

double value_of(const ScalarNode* nodes, const ScalarNode& n, const double* hyper, std::int64_t t, const double* v) {
    const double a = arity(n.op) > 0 ? v[n.a] : 0.0;
    const double b = arity(n.op) > 1 ? v[n.b] : 0.0;
    switch (n.op) {
    case ScalarOp::number: return n.value;
    case ScalarOp::hyper: return hyper[n.a];
    case ScalarOp::step: return double(t);
    case ScalarOp::add: return a + b;
    case ScalarOp::subtract: return a - b;
    case ScalarOp::multiply: return a * b;
    case ScalarOp::divide: return a / b;
    case ScalarOp::maximum: return max(a, b);
    case ScalarOp::minimum: return min(a, b);
    case ScalarOp::less: return a < b ? 1.0 : 0.0;
    case ScalarOp::less_equal: return a <= b ? 1.0 : 0.0;
    case ScalarOp::equal: return a == b ? 1.0 : 0.0;
    case ScalarOp::not_equal: return a != b ? 1.0 : 0.0;
    case ScalarOp::power: return nodes[n.b].op == ScalarOp::step ? step_power(a, t) : any_power(a, b);
    case ScalarOp::negative: return -a;
    case ScalarOp::absolute: return std::fabs(a);
    case ScalarOp::square_root: return std::sqrt(a);
    case ScalarOp::sign: return sign(a);
    case ScalarOp::floor: return std::floor(a);
    case ScalarOp::logarithm: return logarithm(a);
    case ScalarOp::select: return a != 0.0 ? b : v[n.c];
    case ScalarOp::cumulative_product:
    case ScalarOp::reduced:
    case ScalarOp::state:
    case ScalarOp::shape:
    case ScalarOp::count: break;
    }
    return 0.0;
}

// A cumulative product, kept for the next step.
struct Running {
    const ScalarNode* node = nullptr;
    double hyper[max_hyperparameters] = {};
    std::int64_t t = 0;
    double product = 1.0;
};

double cumulative_product(const ScalarNode* nodes, const ScalarNode& n, const double* hyper, std::size_t hypers,
                          std::int64_t t) {
    static thread_local Running last;
    if (last.node != &n || last.t > t || std::memcmp(last.hyper, hyper, hypers * sizeof(double)) != 0) {
        last = {&n, {}, 0, 1.0};
        std::memcpy(last.hyper, hyper, hypers * sizeof(double));
    }
    // A smaller product does not change a difference from 1.
    const auto shows = [&] { return !(std::fabs(last.product) < 0x1p-60); };
    double values[max_scalar_nodes];
    while (last.t < t && shows()) {
        ++last.t;
        for (std::size_t i = 0; i <= n.a; ++i) values[i] = value_of(nodes, nodes[i], hyper, last.t, values);
        last.product *= values[n.a];
    }
    return shows() ? last.product : 0.0;
}

void evaluate(const ScalarNode* nodes, std::size_t first, std::size_t last, const double* hyper, std::size_t hypers,
              std::int64_t t, double* values) {
    for (std::size_t i = first; i < last; ++i) {
        if (nodes[i].op >= ScalarOp::reduced) continue;  // the caller has its value
        values[i] = nodes[i].op == ScalarOp::cumulative_product ? cumulative_product(nodes, nodes[i], hyper, hypers, t)
                                                                : value_of(nodes, nodes[i], hyper, t, values);
    }
}

template <class... R, class... W> constexpr CoefficientTable make_table(RuleList<R...>, RuleList<W...>) {
    return {{{prepare<R, float>, prepare<R, double>}...}, {{prepare<W, float>, prepare<W, double>}...}, evaluate};
}

constexpr CoefficientTable table = make_table(Rules{}, RowWiseRules{});

}  // namespace

const CoefficientTable& ADAPTK_CONCAT(coefficients_, ADAPTK_TARGET)() { return table; }

}  // namespace adaptk::detail
