// The loops around the rules that keep one number for each row. Like kernels.cpp, this file is compiled once for each
// instruction set; all loops are internal, and one function is exported.
#include "row_kernels.hpp"

#include "compiler.hpp"

#include <utility>

#define ADAPTK_CONCAT2(a, b) a##b
#define ADAPTK_CONCAT(a, b) ADAPTK_CONCAT2(a, b)

namespace adaptk::detail {
namespace {

using std::size_t;

constexpr size_t accumulators = 16;

// x[j] + x[j + N / 2] for all j, and so on with these sums. It is not a loop, because compilers kept a loop's sums in
// memory, which took longer than the squares.
template <size_t N, size_t Stride = 1, class T> ADAPTK_HD T tree_sum(const T* x) {
    if constexpr (N == 1) {
        return x[0];
    } else {
        return tree_sum<N / 2, 2 * Stride>(x) + tree_sum<N / 2, 2 * Stride>(x + Stride);
    }
}

// Each accumulator gets every sixteenth square, whatever the width of a vector.
template <class R, class T, bool Coupled>
ADAPTK_HD T sum_of_squares(const StepCoefficients<R, T>& c, const T* ADAPTK_RESTRICT p, const T* ADAPTK_RESTRICT g,
                           size_t n) {
    const auto square = [&](size_t i) {
        T pi = p[i];
        T gi = g[i];
        apply_common<Coupled>(c.common, pi, gi);
        return gi * gi;
    };
    alignas(64) T sum[accumulators] = {};
    const size_t whole = n / accumulators * accumulators;
    for (size_t i = 0; i < whole; i += accumulators)
        for (size_t j = 0; j < accumulators; ++j) sum[j] = sum[j] + square(i + j);
    for (size_t i = whole; i < n; ++i) sum[i - whole] = sum[i - whole] + square(i);
    return tree_sum<accumulators>(sum);
}

// S: the states that have a number for each element.
template <class R, class T, bool Coupled, class... S>
ADAPTK_HD void update_elements(const StepCoefficients<R, T>& c, T factor, size_t n, T* ADAPTK_RESTRICT p,
                               const T* ADAPTK_RESTRICT g, S* ADAPTK_RESTRICT... s) {
    ADAPTK_INDEPENDENT
    for (size_t i = 0; i < n; ++i) {
        T pi = p[i];
        T gi = g[i];
        apply_common<Coupled>(c.common, pi, gi);
        R::update(c.rule, factor, pi, gi, s[i]...);
        p[i] = pi;
    }
}

// The indices of these states, in order.
template <class R, size_t... I> constexpr auto other_states(std::index_sequence<I...>) {
    return std::index_sequence<(I < row_state<R> ? I : I + 1)...>{};
}

template <class R, class T, bool Coupled, size_t... I>
ADAPTK_HD void update_row(const StepCoefficients<R, T>& c, T factor, void* const* b, size_t n,
                          std::index_sequence<I...>) {
    update_elements<R, T, Coupled>(c, factor, n, static_cast<T*>(b[0]), static_cast<const T*>(b[1]),
                                   static_cast<T*>(b[2 + I])...);
}

template <class R, class T, bool Coupled>
ADAPTK_HD void update_row(const StepCoefficients<R, T>& c, T factor, void* const* b, size_t n) {
    update_row<R, T, Coupled>(c, factor, b, n, other_states<R>(std::make_index_sequence<R::states.size() - 1>{}));
}

template <class R, class T> const StepCoefficients<R, T>& as(const void* coefficients) {
    return *static_cast<const StepCoefficients<R, T>*>(coefficients);
}

template <class R, class T, bool Coupled> void step_row(const void* coefficients, void* const* b, size_t n) {
    const StepCoefficients<R, T> c = as<R, T>(coefficients);
    const T sum = sum_of_squares<R, T, Coupled>(c, static_cast<const T*>(b[0]), static_cast<const T*>(b[1]), n);
    const T factor = R::factor(c.rule, T(double(sum) / double(n)), *static_cast<T*>(b[2 + row_state<R>]));
    update_row<R, T, Coupled>(c, factor, b, n);
}

template <class R, class T, bool Coupled>
double square_sum(const void* coefficients, const void* p, const void* g, size_t n) {
    return double(
        sum_of_squares<R, T, Coupled>(as<R, T>(coefficients), static_cast<const T*>(p), static_cast<const T*>(g), n));
}

template <class R, class T> double factor(const void* coefficients, double mean, void* number) {
    return double(R::factor(as<R, T>(coefficients).rule, T(mean), *static_cast<T*>(number)));
}

template <class R, class T, bool Coupled>
void update(const void* coefficients, double factor, void* const* b, size_t n) {
    update_row<R, T, Coupled>(as<R, T>(coefficients), T(factor), b, n);
}

template <class R, class T, bool Coupled> constexpr RowWiseKernels kernels() {
    return {step_row<R, T, Coupled>, square_sum<R, T, Coupled>, factor<R, T>, update<R, T, Coupled>};
}

template <class... R> constexpr RowWiseTable make_table(RuleList<R...>) {
    return {{{{kernels<R, float, false>(), kernels<R, float, true>()},
              {kernels<R, double, false>(), kernels<R, double, true>()}}...}};
}

constexpr RowWiseTable table = make_table(RowWiseRules{});

}  // namespace

const RowWiseTable& ADAPTK_CONCAT(row_wise_, ADAPTK_TARGET)() { return table; }

}  // namespace adaptk::detail
