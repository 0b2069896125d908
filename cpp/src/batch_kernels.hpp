// What an object of batch kernels (batch_kernels.cpp, compiled once for each instruction set) provides to batch.cpp.
#pragma once

#include "adaptk/solve/batch.hpp"
#include "batch_choice.hpp"

namespace adaptk::detail {

template <class T> struct BatchKernels {
    // One thread's work. `block`: points * (2 + inputs) registers, aligned to them.
    void (*run)(const BatchChoice& choice, const solve::BatchProblem<T>& problem, const solve::BatchOptions<T>& options,
                void* block, const solve::BatchFeed& feed);
    // The model's values and derivatives at points of one problem, for tests: value[points], slope[points x size].
    void (*model)(const BatchChoice& choice, int points, const T* p, const T* coordinates, T* value, T* slope);
    void (*exp)(std::int64_t n, const T* x, T* y);
};

struct BatchTable {
    BatchKernels<float> f32;
    BatchKernels<double> f64;
    int register_bytes;
};

const BatchTable& batch_portable();
const BatchTable& batch_v3();
const BatchTable& batch_v4();

}  // namespace adaptk::detail
