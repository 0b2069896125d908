// Steepest descent: the baseline that figure 8.6 of the Deep Learning book (Goodfellow, Bengio, Courville 2016) shows.
//
//   exact   alpha = g'g / g'Hg, the minimiser along -g if f is quadratic; g'Hg is computed from one more gradient,
//           which is then exact. Otherwise alpha is the first trial of a Wolfe search.
//   wolfe   strong Wolfe conditions (Nocedal and Wright 2006, Algorithms 3.5 and 3.6)
//   bb      J. Barzilai, J. M. Borwein, Two-point step size gradient methods, IMA J. Numer. Anal. 8 (1988), made
//           global by a maximum over ten values (M. Raydan, SIAM J. Optim. 7 (1997))
// With G the largest |g|_inf of the run, where bounds hold no variable, it ends with
//   gradient   |g|_inf <= gtol G, and the remaining distance, estimated from the last two steps and then from up to
//              ten steps of linear conjugate gradients, is at most a thousandth of the distance so far
//   precision  no step along -g lowers f
//   derivative the same, and differences of f contradict g
//   nonfinite  the same, and f is not finite after the shortest one
#pragma once

#include "adaptk/solve/conjugate_gradient.hpp"

#include <array>

namespace adaptk::solve {

enum class StepRule { wolfe, exact, bb };

template <class T> struct SteepestDescentOptions {
    StepRule rule = StepRule::wolfe;
    T gtol = sizeof(T) == 4 ? T(1e-6) : T(1e-8);
    bool keep_gtol = false;  // whether gtol may be below what gradients by differences can reach
    std::int64_t max_iterations = 10000;
};

// w.x holds the start, within the bounds w.lower and w.upper if these have elements, and at the end the best point
// found, with its gradient in w.g.
template <class T, class Problem, class Monitor = NoMonitor>
Summary<T> steepest_descent(Problem& problem, const SteepestDescentOptions<T>& o, LineWork<T>& w,
                            Monitor&& watch = {}) {
    Summary<T> s;
    Line<T, Problem> line(problem, w, s);
    const int n = int(w.x.size());
    w.g.setConstant(std::numeric_limits<T>::quiet_NaN());
    std::array<T, 10> last{};
    const auto run = [&] {
        if (!line.start()) return Status::aborted;
        if (!std::isfinite(line.value) || !w.g.allFinite()) return Status::nonfinite;
        last.fill(line.value);
        T most = 0, step = std::numeric_limits<T>::quiet_NaN(), alpha = 0, bb = 0, slope_before = 0;
        int uncurved = 0;  // the last steps without positive curvature
        T gtol = gradient_tolerance(problem, o.gtol, o.keep_gtol), first_most = largest(w.g);
        const auto restart = [&](T most_before) {
            gtol = gradient_tolerance(problem, o.gtol, o.keep_gtol);
            most = most_before;
            alpha = bb = 0;
            first_most = std::max(first_most, largest(w.g));
            last.fill(line.value);
        };
        for (;; ++s.nit) {
            const T g_most = largest(w.g);
            most = std::max(most, g_most);
            if (const Signal signal = watch(Progress<T>{s.nit, line.value, step, g_most, w.x.data(), n});
                signal != Signal::go)
                return ended(signal);
            if (line.endless()) return Status::unbounded;
            if (g_most <= gtol * most && line.near()) {
                const Arrival arrival = line.confirm(most);
                if (arrival == Arrival::minimum) return Status::gradient;
                if (arrival == Arrival::aborted) return Status::aborted;
                if (arrival == Arrival::moved) restart(most);
            }
            if (s.nit >= o.max_iterations) return Status::limit;
            w.d = -w.g;
            line.slope0 = w.g.dot(w.d);
            // The step with the same predicted fall of f as the last one (Nocedal and Wright 2006, section 3.5), but at
            // most ten times as long: where f is flat it would be far too long.
            const T ratio = slope_before / line.slope0;
            T first = alpha > 0 ? alpha * std::min(ratio, 10 * std::sqrt(ratio)) : first_step(w.x, w.g, line.value);
            Search search = Search::failed;
            if (o.rule == StepRule::bb) {
                const T ceiling = *std::max_element(last.begin(), last.end());
                // Without positive curvature, as on the way down from a maximum, farther than the last step, and ever
                // more.
                uncurved = bb > 0 && std::isfinite(bb) ? 0 : bb == 0 ? uncurved : std::min(uncurved + 1, 60);
                if (bb > 0 && std::isfinite(bb)) {
                    first = bb;
                } else if (bb != 0) {
                    first = std::ldexp(alpha, 1 + uncurved);
                }
                for (int i = 0; i < 60 && search == Search::failed; ++i, first /= 4) {
                    if (!line.phi(first)) return Status::aborted;
                    if (line.fn == -std::numeric_limits<T>::infinity()) return Status::unbounded;
                    if (line.still) break;
                    if (!(line.fn <= ceiling + line.promised(T(1e-4)))) continue;
                    if (!line.derivative()) return Status::aborted;
                    if (std::isfinite(line.fn)) search = Search::found;
                }
            } else {
                if (o.rule == StepRule::exact) {
                    // Along -g the slope is linear in alpha.
                    if (!line.phi(first)) return Status::aborted;
                    if (std::isfinite(line.fn) && !line.derivative()) return Status::aborted;
                    const T bend = line.slope - line.slope0;
                    if (std::isfinite(line.fn) && bend > 0) {
                        const T exact = -first * line.slope0 / bend;
                        if (!line.phi(exact)) return Status::aborted;
                        if (line.fn <= line.value + line.promised(T(1e-4)) && !line.derivative())
                            return Status::aborted;
                        if (line.fn < line.value && std::isfinite(line.slope)) search = Search::found;
                    }
                }
                if (search == Search::failed) search = line.strong_wolfe(first, T(1e-4), T(0.9));
            }
            if (search == Search::aborted) return Status::aborted;
            if (search == Search::unbounded) return Status::unbounded;
            if (search == Search::failed) {
                if (const Status status = line.failure(first_most); status != Status::limit) return status;
                restart(T(0));
                continue;
            }
            alpha = line.alpha;
            slope_before = line.slope0;
            line.accept();
            step = line.step;
            // s's / s'y and s'y / y'y in turn; s = alpha d, and g stands for -d.
            const T sy = alpha * (line.slope - line.slope0);
            if (line.bent) {
                bb = 0;
            } else if (s.nit % 2 == 0) {
                bb = alpha * alpha * w.d.squaredNorm() / sy;
            } else {
                bb = sy / (w.g - w.gn).squaredNorm();
            }
            last[std::size_t(s.nit) % last.size()] = line.value;
        }
    };
    line.end(run());
    return s;
}

}  // namespace adaptk::solve
