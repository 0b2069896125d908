// Inputs and outputs of batches of small least-squares problems (batch.hpp), as plain data.
#pragma once

#include "adaptk/solve/losses.hpp"

#include <cstdint>

namespace adaptk::solve {

// Arrays are row-major. A stride of 0 means that all problems share one row.
template <class T> struct BatchProblem {
    std::int64_t count = 0;    // of problems
    int points = 0;            // of each
    const T* data = nullptr;   // count x points
    const T* start = nullptr;  // size each, within the bounds
    std::int64_t start_stride = 0;
    const T* coordinates = nullptr;  // points x inputs each
    std::int64_t coordinates_stride = 0;
    const T* weights = nullptr;  // points each, >= 0; data of weight 0 may be anything
    std::int64_t weights_stride = 0;
    const T* lower = nullptr;  // size each; both or none
    const T* upper = nullptr;
    std::int64_t bounds_stride = 0;
    const bool* fixed = nullptr;  // size each: variables that keep their start
    std::int64_t fixed_stride = 0;
    const T* loss_scale = nullptr;  // of a robust loss, one each
    std::int64_t loss_scale_stride = 0;
    T* x = nullptr;             // count x size; the best point
    T* cost = nullptr;          // half the sum of squares there
    int* status = nullptr;      // of result.hpp
    int* iterations = nullptr;  // trial points after the start
    T* covariance = nullptr;    // count x size x size, or null
    T* deviation = nullptr;     // count x size, with the covariance: the roots of its diagonal
};

template <class T> struct BatchOptions {
    T ftol = sizeof(T) == 4 ? T(1e-5) : T(1e-10);
    T xtol = sizeof(T) == 4 ? T(1e-5) : T(1e-10);
    T gtol = sizeof(T) == 4 ? T(1e-6) : T(1e-12);
    int max_iterations = 100;
    bool polish = true;
    bool absolute_sigma = false;  // whether the covariance is not scaled by the variance of the residuals
    Loss loss = Loss::linear;
    bool poisson = false;  // data are counts; `loss` must be linear
};

}  // namespace adaptk::solve
