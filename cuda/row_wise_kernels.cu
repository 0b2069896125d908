// The kernels of the rules that keep one number for each row.
#include "kernels.hpp"
#include "prepare_kernel.hpp"
#include "row_wise_kernel.hpp"

namespace adaptk::cuda {
namespace {

template <class K> const void* symbol(K* kernel) { return reinterpret_cast<const void*>(kernel); }

template <class R> RowWiseKernels kernels_of() {
    using Elements = OfElements<R>;
    RowWiseKernels k{};
    k.rule.step[0][0] = symbol(step_kernel<Elements, float>);
    k.rule.step[1][0] = symbol(step_kernel<Elements, double>);
    k.rule.step[0][1] = symbol(stored_step_kernel<Elements, float>);
    k.rule.step[1][1] = symbol(stored_step_kernel<Elements, double>);
    k.rule.prepare[0] = symbol(prepare_kernel<R, float>);
    k.rule.prepare[1] = symbol(prepare_kernel<R, double>);
    k.rule.coefficients_bytes[0] = sizeof(StepCoefficients<R, float>);
    k.rule.coefficients_bytes[1] = sizeof(StepCoefficients<R, double>);
    k.rule.place = kernel_count;
    k.factors[0] = symbol(row_factors_kernel<R, float>);
    k.factors[1] = symbol(row_factors_kernel<R, double>);
    k.bytes_of_row[0] = sizeof(StepCoefficients<Elements, float>);
    k.bytes_of_row[1] = sizeof(StepCoefficients<Elements, double>);
    return k;
}

template <class... R> RowWiseTable make_table(RuleList<R...>) { return {kernels_of<R>()...}; }

}  // namespace

const RowWiseTable& row_wise_kernels() {
    static const RowWiseTable table = make_table(RowWiseRules{});
    return table;
}

}  // namespace adaptk::cuda
