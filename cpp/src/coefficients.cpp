// Coefficients of a step. As kernels.cpp, this file is compiled once for each ADAPTK_TARGET, exports one function, and
// shares no symbol with its other objects. The powers of Adam's corrections are some forty multiply-adds: a call of the
// C library each where the processor is only known when the program runs.
#include "coefficients.hpp"

#include <cstring>
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

template <class... R> constexpr CoefficientTable make_table(RuleList<R...>) {
    return {{{prepare<R, float>, prepare<R, double>}...}};
}

constexpr CoefficientTable table = make_table(Rules{});

}  // namespace

const CoefficientTable& ADAPTK_CONCAT(coefficients_, ADAPTK_TARGET)() { return table; }

}  // namespace adaptk::detail
