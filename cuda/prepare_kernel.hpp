// What the host computes before a step, on the device, for steps that it may not look at: where the device counts the
// steps (some may be skipped, or replayed from a graph), and where hyperparameters lie in device memory.
#pragma once

#include "adaptk/rounding.hpp"
#include "step_kernel.hpp"

namespace adaptk::cuda {

template <class R, class T> ADAPTK_DEVICE void prepare(const PrepareLaunch& launch) {
    const bool skip = launch.control != nullptr && launch.control->skip != 0;
    const double clip = launch.control != nullptr ? launch.control->clip : 1.0;
    auto* coefficients = static_cast<StepCoefficients<R, T>*>(launch.coefficients);
    if (skip) return;
    for (unsigned i = blockIdx.x * block_threads + threadIdx.x; i < launch.count; i += gridDim.x * block_threads) {
        const CoefficientSlot slot = launch.slots[i];
        Count& count = *slot.count;
        const std::int64_t t = count.steps + 1;
        auto& memo = *reinterpret_cast<memo_of_t<R>*>(count.memo);
        coefficients[i] = step_coefficients<R, T>(slot.hyper, slot.grad_scale * clip, t, memo);
        if (launch.keys != nullptr) launch.keys[i] = step_key(slot.seed, t);
        count.steps = t;
    }
}

template <class R, class T>
__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    prepare_kernel(const __grid_constant__ PrepareLaunch launch) {
    prepare<R, T>(launch);
}

}  // namespace adaptk::cuda
