// Batches of small fits as the driver launches them: one fit a thread, the solver of adaptk/solve/batch.hpp.
#pragma once

#include "adaptk/solve/batch_problem.hpp"
#include "batch_choice.hpp"
#include "device.hpp"

#include <cstddef>

namespace adaptk::cuda {

// Of a batch's fits: what all threads together have of their points. An H100's 33,792 threads have 256 points with two
// coordinates each in half of it.
inline constexpr std::size_t most_fit_bytes = std::size_t{256} << 20;

template <class T> struct FitLaunch {
    T* points;  // for each thread of the grid what its fit knows of each point: fit_stride() numbers
    solve::BatchProblem<T> problem;
    solve::BatchOptions<T> options;
};

struct FitKernel {
    const void* symbol = nullptr;  // takes a FitLaunch<T>; null where there is none
    unsigned threads = 0;          // of a block
};
// The kernel of a model.
template <class T> FitKernel kernel_of_fits(detail::BatchModel model);

// Numbers that a thread has of each point.
template <class T> int fit_stride(const solve::BatchProblem<T>& problem, int inputs) {
    return 1 + inputs + (problem.weights != nullptr ? 1 : 0);
}

// What arrays on a device may not hold: bits of a word for each block.
enum FitFault : unsigned {
    fault_weights = 1,  // < 0, infinite or NaN
    fault_bounds = 2,   // lower < upper does not hold
    fault_outside = 4,  // the start is outside its bounds
    fault_scale = 8,    // of a loss: not positive and finite
    fault_counts = 16,  // < 0, and the loss is Poisson's
};
template <class T> struct FitCheckLaunch {
    unsigned* faults;
    solve::BatchProblem<T> problem;
    int size;
    bool counts;
};
template <class T> void launch_fit_check(const FitCheckLaunch<T>& p, unsigned blocks, cudaStream_t stream);

}  // namespace adaptk::cuda
