// Rules that keep one number for each row (adaptk/row_wise.hpp): each row is a tensor of its own. A warp adds up the
// squares of a row as cpp/src/row_kernels.cpp does, updates its number, and writes the coefficients that the kernel of
// the step updates its elements by.
#pragma once

#include "adaptk/row_wise.hpp"
#include "row_launch.hpp"
#include "step_kernel.hpp"

#include <array>
#include <type_traits>

namespace adaptk::cuda {

// Such a rule as one of elements, once the factor of a row is known.
template <class R> struct OfElements {
    static_assert(row_state<R> == state_count < R > -1);
    static_assert(state_count<R> <= table_states);  // the rows of more would need MoreStates
    static constexpr std::array<int, state_count<R> - 1> states{};
    template <class T> struct Coefficients {
        typename R::template Coefficients<T> rule;
        T factor;
    };
    template <class T, class... S> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, S&... s) {
        R::update(c.rule, c.factor, p, g, s...);
    }
};

// An element of a buffer in any format of the list.
template <class List, class T>
ADAPTK_DEVICE T element_of(const void* base, std::uint8_t format, [[maybe_unused]] const void* beside, std::int64_t e) {
    T x = T(0);
    with_format(List{}, format, [&]<class F>(Tag<F>) {
        const typename F::Element stored = load_element(static_cast<const typename F::Element*>(base) + e);
        if constexpr (SplitFormat<F>) {
            const auto rest = load_element(static_cast<const typename F::Side*>(beside) + e);
            x = F::template decode<OneLane>(std::uint32_t(stored), std::uint32_t(rest));
        } else if constexpr (StochasticFormat<F>) {
            x = F::template decode<OneLane>(std::uint32_t(stored));
        } else {
            x = T(F::decode(stored));
        }
    });
    return x;
}

// The sum of the squares of a row, in parts of a tile: each in 16 accumulators, half a warp, and the parts in their
// order.
template <class T, class Gradient> ADAPTK_DEVICE double sum_of_squares(std::int64_t size, int lane, const Gradient& g) {
    constexpr int accumulators = 16;
    double sum = 0.0;
    for (std::int64_t begin = 0; begin < size; begin += 2 * tile) {
        const std::int64_t first = begin + lane / accumulators * tile;
        const std::int64_t end = first + tile < size ? first + tile : size;
        T squares = T(0);
#pragma unroll 4
        for (std::int64_t e = first + lane % accumulators; e < end; e += accumulators) {
            const T x = g(e);
            squares = squares + x * x;
        }
#pragma unroll
        for (int apart = accumulators / 2; apart > 0; apart /= 2)
            squares = squares + __shfl_xor_sync(0xffffffffu, squares, apart);
        const T second = __shfl_sync(0xffffffffu, squares, accumulators);
        sum = sum + double(__shfl_sync(0xffffffffu, squares, 0));
        if (begin + tile < size) sum = sum + double(second);
    }
    return sum;
}

template <class R, class T>
__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    row_factors_kernel(const __grid_constant__ RowFactorsLaunch launch) {
    if (launch.control != nullptr && launch.control->skip != 0) return;
    const StepCoefficients<R, T> c = *static_cast<const StepCoefficients<R, T>*>(launch.coefficients);
    auto* const out = static_cast<StepCoefficients<OfElements<R>, T>*>(launch.of_rows);
    const int lane = int(threadIdx.x % warp);
    for (std::uint32_t i = blockIdx.x * warps_per_block + threadIdx.x / warp; i < launch.count;
         i += gridDim.x * warps_per_block) {
        const Tensor& t = launch.tensors[i];
        const void* const beside = launch.sides != nullptr ? launch.sides[i].of_buffer[0] : nullptr;
        double sum = 0.0;
        const auto add_squares = [&]<bool Coupled>(std::bool_constant<Coupled>) {
            with_format(GradientFormats{}, t.format[1], [&]<class F>(Tag<F>) {
                const auto* const gradient = static_cast<const typename F::Element*>(t.buffer[1]);
                sum = sum_of_squares<T>(t.size, lane, [&](std::int64_t e) {
                    T p = T(0), g = T(F::decode(load_element(gradient + e)));
                    if constexpr (Coupled)
                        p = element_of<typename Computes<T>::Params, T>(t.buffer[0], t.format[0], beside, e);
                    apply_common<Coupled>(c.common, p, g);
                    return g;
                });
            });
        };
        if (c.common.coupled) {
            add_squares(std::true_type{});
        } else {
            add_squares(std::false_type{});
        }
        if (lane != 0) continue;
        T* const at = static_cast<T*>(t.buffer[2 + row_state<R>]);
        T number = __ldcg(static_cast<const T*>(at));
        const T factor = R::factor(c.rule, T(sum / double(t.size)), number);
        __stcg(at, number);
        out[i] = {c.common, {c.rule, factor}};
        if (launch.key != nullptr) launch.keys_of_rows[i] = *launch.key;
    }
}

}  // namespace adaptk::cuda
