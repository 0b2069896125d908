// Batches of small least-squares problems, on the kernels of an instruction set and several threads.
#pragma once

#include "batch_kernels.hpp"

#include <string_view>

namespace adaptk::detail {

// The kernels of an instruction set, by its name in dispatch.hpp.
const BatchTable& batch_table(std::string_view isa);

// Called about twenty times a second by the calling thread; false ends the run.
struct BatchPoll {
    bool (*go)(void* context) = nullptr;
    void* context = nullptr;
};

// False if `poll` ended it: some problems then have no results.
template <class T>
bool solve_batch(const BatchTable& table, int threads, const BatchChoice& choice, const solve::BatchProblem<T>& problem,
                 const solve::BatchOptions<T>& options, const BatchPoll& poll);

}  // namespace adaptk::detail
