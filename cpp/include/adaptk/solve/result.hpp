// What all solvers share: how they end, what they report, and what they require of the functions to solve.
//
// A problem is a struct with member functions that write their result, and return false if the run must end at once
// (their owner knows why):
//     bool value(const T* x, T& f);                         newton, conjugate_gradient, steepest_descent
//     bool gradient(const T* x, T* g);
//     bool hessian(const T* x, T* h);                       newton: n x n, symmetric
//     bool product(const T* x, const T* v, T* hv);          newton_cg: the Hessian times v
//     bool residuals(const T* x, T* r);                     levenberg_marquardt
//     bool jacobian(const T* x, const T* r, T* j);          m x n, row-major
// and, optionally, how exact derivatives by differences are:
//     T hessian_error() const;                              newton: relative, eps without it
//     bool refine();                                        better derivatives from here on, which cost more
//     bool can_refine() const;                              whether refine() would do anything
//     T value_error() const;                                of values and residuals: relative, eps without it
//     T gradient_error() const;                             of gradients by differences, relative to the largest one
//     T gradient_step(const T* x, int k) const;             newton: steps of one-sided differences of f, else 0
// Instead of jacobian():
//     T* jacobian_in_place(const T* x, const T* r);         in memory of the problem, valid until the next call;
//                                                           the solver may scale it; null for false
// A value that is not finite is not a failure: the solver takes a shorter step.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace adaptk::solve {

// Positive: converged. The inequalities are those of the solvers' headers.
enum class Status : int {
    limit = 0,        // iterations or evaluations are used up
    gradient = 1,     // the gradient is small; for newton: at a minimum, lambda_min >= -16 n eps |H|
    reduction = 2,    // the last reduction is small
    step = 3,         // the last step is small
    both = 4,         // reduction and step
    precision = 5,    // no step can change the function by more than its own rounding
    stopped = -1,     // by the callback
    time = -2,        // max_seconds are over
    nonfinite = -3,   // the function, gradient or Hessian is not finite where it must be
    indefinite = -4,  // the plain Newton method met a Hessian without a Cholesky factor
    saddle = -5,      // stationary, with lambda_min < 0 and no lower point to be found along its eigenvector
    unbounded = -6,   // the function fell to minus infinity, or still falls where squares of x overflow
    curvature = -7,   // cg: a direction with p'Ap <= 0
    aborted = -8,     // a function of the problem said so
    derivative = -9,  // the derivative does not agree with the function: disagreement in the summary says where
};

// What a monitor returns. It is called once per iteration.
enum class Signal { go, stop, time, abort };

template <class T> struct Progress {
    std::int64_t nit;
    T value;     // f, or half the sum of squares
    T step;      // its 2-norm
    T gradient;  // its largest element
    const T* x;
    int n;
};

struct NoMonitor {
    template <class T> Signal operator()(const Progress<T>&) { return Signal::go; }
};

// Where a derivative disagrees with its function: the variable, or -1 for the direction of the last step, and the
// slopes by the derivative and by the function.
template <class T> struct Disagreement {
    int variable = -1;
    T claimed = std::numeric_limits<T>::quiet_NaN(), found = std::numeric_limits<T>::quiet_NaN();
};

template <class T> struct Summary {
    Status status = Status::limit;
    Disagreement<T> disagreement;
    T value = std::numeric_limits<T>::quiet_NaN();
    T gradient = std::numeric_limits<T>::quiet_NaN();
    T lambda_min = std::numeric_limits<T>::quiet_NaN();
    std::int64_t nit = 0, nfev = 0, njev = 0, nhev = 0;
};

template <class T> inline constexpr T epsilon = std::numeric_limits<T>::epsilon();

inline Status ended(Signal signal) {
    if (signal == Signal::stop) return Status::stopped;
    return signal == Signal::time ? Status::time : Status::aborted;
}

}  // namespace adaptk::solve
