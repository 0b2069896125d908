// What adaptk/solve/_batch.py gives a batch of fits beside its arrays, wherever these are.
#pragma once

#include "adaptk/solve/batch_problem.hpp"
#include "batch_choice.hpp"

#include <pybind11/pybind11.h>

namespace adaptk::bindings {

// model: (number, size, inputs, degree, program or None), without the program.
inline detail::BatchChoice batch_choice(const pybind11::tuple& model) {
    return {detail::BatchModel(model[0].cast<int>()), model[1].cast<int>(), model[2].cast<int>(), model[3].cast<int>()};
}

// options: (ftol, xtol, gtol, max_iterations, polish, absolute_sigma, loss, poisson)
template <class T> void take_batch_options(const pybind11::tuple& options, solve::BatchOptions<T>& o) {
    const auto tolerance = [&](int i, T& value) {
        if (!options[i].is_none()) value = T(options[i].cast<double>());
    };
    tolerance(0, o.ftol);
    tolerance(1, o.xtol);
    tolerance(2, o.gtol);
    o.max_iterations = options[3].cast<int>();
    o.polish = options[4].cast<bool>();
    o.absolute_sigma = options[5].cast<bool>();
    o.loss = solve::Loss(options[6].cast<int>());
    o.poisson = options[7].cast<bool>();
}

}  // namespace adaptk::bindings
