// The step kernels of a share of the rules. Compiled once for each ADAPTK_PART in 0 ... parts - 1; or once without it,
// for all: most of the time of the host's compiler goes into what all rules share.
#include "kernels.hpp"
#include "prepare_kernel.hpp"
#include "step_kernel.hpp"

#include <type_traits>

namespace adaptk::cuda {
namespace {

template <class K> const void* symbol(K* kernel) { return reinterpret_cast<const void*>(kernel); }

template <class R> void add_steps(RuleKernels& k) {
    k.step[0][0] = symbol(step_kernel<R, float>);
    k.step[1][0] = symbol(step_kernel<R, double>);
    k.coefficients_bytes[0] = sizeof(StepCoefficients<R, float>);
    k.coefficients_bytes[1] = sizeof(StepCoefficients<R, double>);
}

template <class R> void add_stored_steps(RuleKernels& k) {
    k.step[0][1] = symbol(stored_step_kernel<R, float>);
    k.step[1][1] = symbol(stored_step_kernel<R, double>);
}

// The place of the rule whose kernels these are: one with another's formula goes to the file that has them.
template <class R, class... All> constexpr std::size_t kernel_place(std::size_t own, RuleList<All...>) {
    std::size_t i = 0, place = own;
    ((std::is_same_v<kernel_of_t<R>, All> ? place = i++ : i++), ...);
    return place;
}

template <std::size_t Part, std::size_t I, class R> void add_rule(KernelTable& table) {
    if constexpr (kernel_place<R>(I, Rules{}) % parts == Part) {
        add_steps<kernel_of_t<R>>(table[I]);
        add_stored_steps<kernel_of_t<R>>(table[I]);
        table[I].prepare[0] = symbol(prepare_kernel<R, float>);
        table[I].prepare[1] = symbol(prepare_kernel<R, double>);
        table[I].place = I;
    }
}

// Streams are of the type that is computed in.
template <std::size_t Part, std::size_t S> void add_streams(KernelTable& table) {
    constexpr std::size_t place = Rules::size + S;
    if constexpr (place % parts == Part) {
        add_steps<Streams<S>>(table[place]);
        table[place].place = place;
    }
}

template <std::size_t Part> void add_combine([[maybe_unused]] KernelTable& table) {
    if constexpr (combine_place % parts == Part) {
        add_steps<Combine>(table[combine_place]);
        add_stored_steps<Combine>(table[combine_place]);
        table[combine_place].place = combine_place;
    }
}

template <std::size_t Part, class... R, std::size_t... I, std::size_t... S>
void add_all(KernelTable& table, RuleList<R...>, std::index_sequence<I...>, std::index_sequence<S...>) {
    (add_rule<Part, I, R>(table), ...);
    (add_streams<Part, S>(table), ...);
    add_combine<Part>(table);
}

template <std::size_t Part> void add_part(KernelTable& table) {
    add_all<Part>(table, Rules{}, std::make_index_sequence<Rules::size>{}, std::make_index_sequence<stream_rules>{});
}

}  // namespace

#if defined(ADAPTK_PART)
template <> void add_kernels<ADAPTK_PART>(KernelTable& table) { add_part<ADAPTK_PART>(table); }
#else
template <> void add_kernels<0>(KernelTable& table) { add_part<0>(table); }
template <> void add_kernels<1>(KernelTable& table) { add_part<1>(table); }
template <> void add_kernels<2>(KernelTable& table) { add_part<2>(table); }
template <> void add_kernels<3>(KernelTable& table) { add_part<3>(table); }
static_assert(parts == 4);
#endif

}  // namespace adaptk::cuda
