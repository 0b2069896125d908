// Nonlinear conjugate gradients.
//
//   W. W. Hager, H. Zhang, A new conjugate gradient method with guaranteed descent and an efficient line search,
//   SIAM J. Optim. 16 (2005); The limited memory conjugate gradient method, SIAM J. Optim. 23 (2013), equation 4.5
//   J. C. Gilbert, J. Nocedal, Global convergence properties of conjugate gradient methods, SIAM J. Optim. 2 (1992)
//   R. Fletcher, C. M. Reeves (1964); M. R. Hestenes, E. Stiefel (1952); Y. H. Dai, Y. Yuan (1999)
//
// With G the largest |g|_inf of the run, where bounds hold no variable, it ends with
//   gradient   |g|_inf <= gtol G, and the remaining distance, estimated from the last two steps and then from up to
//              ten steps of linear conjugate gradients, is at most a thousandth of the distance so far
//   precision  no step along -g lowers f
//   derivative the same, and differences of f contradict g
//   nonfinite  the same, and f is not finite after the shortest one
#pragma once

#include "adaptk/solve/line_search.hpp"

namespace adaptk::solve {

enum class Beta { hz, pr_plus, fr, hs, dy };

template <class T> struct ConjugateGradientOptions {
    Beta beta = Beta::hz;
    T gtol = sizeof(T) == 4 ? T(1e-6) : T(1e-10);
    bool keep_gtol = false;  // whether gtol may be below what gradients by differences can reach
    std::int64_t max_iterations = 10000;
};

template <class T> struct ConjugateGradientWork : LineWork<T> {
    void resize(int n) {
        LineWork<T>::resize(n);
        y.resize(n);
        first.resize(n);
    }
    Vector<T> y, first;  // the last change of the gradient, and the first gradient
};

// The first step along -g: a hundredth of x, else the step that would take f to 0 if f were linear (Hager and Zhang
// 2005, I0).
template <class T> T first_step(const Vector<T>& x, const Vector<T>& g, T value) {
    const T g_most = largest(g), x_most = largest(x);
    if (x_most > 0) return T(0.01) * x_most / g_most;
    if (value != 0) return T(0.01) * (std::abs(value) / g_most) / (g.squaredNorm() / g_most);
    return T(1) / g_most;
}

template <class T>
T beta_of(Beta kind, const Vector<T>& g, const Vector<T>& gn, const Vector<T>& y, const Vector<T>& d) {
    const T dy = d.dot(y);
    switch (kind) {
    case Beta::pr_plus: return std::max(T(0), gn.dot(y) / g.squaredNorm());
    case Beta::fr: return gn.squaredNorm() / g.squaredNorm();
    case Beta::hs: return std::max(T(0), gn.dot(y) / dy);
    case Beta::dy: return gn.squaredNorm() / dy;
    case Beta::hz: break;
    }
    // Bounded from below by eta g'd / |d|^2, which has the right units whatever f and x are measured in.
    const T b = (y.dot(gn) - 2 * (y.squaredNorm() / dy) * d.dot(gn)) / dy;
    return std::max(b, T(0.4) * g.dot(d) / d.squaredNorm());
}

// w.x holds the start, within the bounds w.lower and w.upper if these have elements, and at the end the best point
// found, with its gradient in w.g.
template <class T, class Problem, class Monitor = NoMonitor>
Summary<T> conjugate_gradient(Problem& problem, const ConjugateGradientOptions<T>& o, ConjugateGradientWork<T>& w,
                              Monitor&& watch = {}) {
    Summary<T> s;
    Line<T, Problem> line(problem, w, s);
    const int n = int(w.x.size());
    w.g.setConstant(std::numeric_limits<T>::quiet_NaN());
    const auto run = [&] {
        if (!line.start()) return Status::aborted;
        if (!std::isfinite(line.value) || !w.g.allFinite()) return Status::nonfinite;
        T most = 0, step = std::numeric_limits<T>::quiet_NaN(), alpha = 0;
        std::int64_t since_restart = 0;
        T gtol = gradient_tolerance(problem, o.gtol, o.keep_gtol);
        w.first = w.g;
        T first_most = largest(w.g);
        // If the gradient has been far larger than at the start, one that is small relative to that may still be as
        // large as at the start.
        const auto still_slopes = [&] {
            return (w.g.array().abs() >= w.first.array().abs() / 2 && w.g.array().abs() > gtol * first_most).any();
        };
        w.d = -w.g;
        const auto restart = [&](T most_before) {
            gtol = gradient_tolerance(problem, o.gtol, o.keep_gtol);
            w.first = w.g;
            first_most = std::max(first_most, largest(w.g));
            most = most_before;
            alpha = 0;
            since_restart = 0;
            w.d = -w.g;
        };
        for (;; ++s.nit) {
            const T g_most = largest(w.g);
            most = std::max(most, g_most);
            if (const Signal signal = watch(Progress<T>{s.nit, line.value, step, g_most, w.x.data(), n});
                signal != Signal::go)
                return ended(signal);
            if (line.endless()) return Status::unbounded;
            if (g_most <= gtol * most && line.near() && !still_slopes()) {
                const Arrival arrival = line.confirm(most);
                if (arrival == Arrival::minimum) return Status::gradient;
                if (arrival == Arrival::aborted) return Status::aborted;
                if (arrival == Arrival::moved) restart(most);
            }
            if (s.nit >= o.max_iterations) return Status::limit;
            line.slope0 = w.g.dot(w.d);
            // Within rounding, d is not a descent direction, or it is not finite.
            if (!(line.slope0 < -T(1e-10) * norm(w.g) * norm(w.d))) since_restart = -1;
            Search search = Search::failed;
            for (int again = 0; again < 2 && search == Search::failed; ++again) {
                if (since_restart < 0 || again > 0) {
                    if (since_restart == 0) break;  // that was along -g already
                    w.d = -w.g;
                    line.slope0 = w.g.dot(w.d);
                    since_restart = 0;
                    alpha = 0;
                }
                // If g has grown, as on the way down from a maximum, the last alpha is far too long.
                if (alpha > 0) alpha = std::min(alpha, 1000 * line.step / norm(w.d));
                T first = alpha > 0 ? 2 * alpha : first_step(w.x, w.g, line.value);
                if (alpha > 0) {
                    // I1: the minimiser of the parabola through phi(0), phi'(0) and a point well inside.
                    const T probe = alpha / 10;
                    if (!line.phi(probe)) return Status::aborted;
                    const T bend = line.fn - line.value - probe * line.slope0;
                    if (line.fn <= line.value && bend > 0 && std::isfinite(bend))
                        first = -line.slope0 * probe * probe / (2 * bend);
                }
                search = o.beta == Beta::hz ? line.hager_zhang(first, T(0.1), T(0.9))
                                            : line.strong_wolfe(first, T(1e-4), T(0.1));
            }
            if (search == Search::aborted) return Status::aborted;
            if (search == Search::unbounded) return Status::unbounded;
            if (search == Search::failed) {
                if (const Status status = line.failure(first_most); status != Status::limit) return status;
                restart(T(0));
                continue;
            }
            alpha = line.alpha;
            line.accept();
            step = line.step;
            w.y = w.g - w.gn;
            const T b = beta_of(o.beta, w.gn, w.g, w.y, w.d);
            // Powell's test: gradients that have lost their conjugacy would keep Fletcher and Reeves's steps short.
            const bool powell = o.beta == Beta::fr && std::abs(w.gn.dot(w.g)) > T(0.2) * w.g.squaredNorm();
            ++since_restart;
            // Only the first n directions are conjugate, and only among the same free variables.
            if (powell || line.turned || !std::isfinite(b) ||
                (o.beta != Beta::hz && since_restart >= std::max(n, 20))) {
                w.d = -w.g;
                since_restart = 0;
            } else {
                w.d = b * w.d - w.g;
                line.trim();
            }
        }
    };
    line.end(run());
    return s;
}

}  // namespace adaptk::solve
