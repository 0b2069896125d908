// The step kernels of a share of the rules. Compiled once for each ADAPTK_PART in 0 ... parts - 1.
#include "kernels.hpp"
#include "prepare_kernel.hpp"
#include "runtime.hpp"
#include "step_kernel.hpp"

namespace adaptk::cuda {
namespace {

template <class R, class T> void launch_step(const StepLaunch& p, unsigned blocks, cudaStream_t stream) {
    launch(step_kernel<R, T>, "step_kernel", blocks, block_threads, stream, p);
}

template <class R, class T> void launch_prepare(const PrepareLaunch& p, unsigned blocks, cudaStream_t stream) {
    launch(prepare_kernel<R, T>, "prepare_kernel", blocks, block_threads, stream, p);
}

template <class R, class T> const void* symbol() { return reinterpret_cast<const void*>(step_kernel<R, T>); }

template <std::size_t I, class R> void add_rule(KernelTable& table) {
    if constexpr (I % parts == ADAPTK_PART) {
        using K = kernel_of_t<R>;
        table[I] = {{launch_step<K, float>, launch_step<K, double>},
                    {launch_prepare<R, float>, launch_prepare<R, double>},
                    {symbol<K, float>(), symbol<K, double>()},
                    {sizeof(StepCoefficients<K, float>), sizeof(StepCoefficients<K, double>)},
                    I};
    }
}

template <std::size_t I, class R> void add_other(KernelTable& table) {
    if constexpr (I % parts == ADAPTK_PART)
        table[I] = {{launch_step<R, float>, launch_step<R, double>},
                    {},
                    {symbol<R, float>(), symbol<R, double>()},
                    {sizeof(StepCoefficients<R, float>), sizeof(StepCoefficients<R, double>)},
                    I};
}

template <class... R, std::size_t... I, std::size_t... S>
void add_all(KernelTable& table, RuleList<R...>, std::index_sequence<I...>, std::index_sequence<S...>) {
    (add_rule<I, R>(table), ...);
    (add_other<Rules::size + S, Streams<S>>(table), ...);
    add_other<add_scaled_place, AddScaled>(table);
}

}  // namespace

template <> void add_kernels<ADAPTK_PART>(KernelTable& table) {
    add_all(table, Rules{}, std::make_index_sequence<Rules::size>{}, std::make_index_sequence<stream_rules>{});
}

}  // namespace adaptk::cuda
