// Newton's method with products H v instead of H: a trust region whose steps are computed by conjugate gradients.
//
//   T. Steihaug, The conjugate gradient method and trust regions in large scale optimization,
//   SIAM J. Numer. Anal. 20 (1983); Nocedal and Wright 2006, Algorithm 7.2
//   C. Lanczos (1950): the smallest eigenvalue at stationary points
//
// With G the largest |g| of the run it ends with
//   gradient   |g| <= gtol G, the smallest Ritz value of H is >= -16 n eps |H|, and either the remaining distance is at
//              most a thousandth of the distance so far, or the model predicts a fall of less than 4 eps |f|
//   step       an inner solution of residual <= sqrt(eps) |g| has |p| <= xtol |x|
//   precision  no step lowers f
//   derivative the same, and differences of f contradict g
//   saddle     |g| as under gradient, a Ritz value < -16 n eps |H|, and f is not lower along its vector
#pragma once

#include "adaptk/solve/newton.hpp"

namespace adaptk::solve {

template <class T> struct NewtonCgWork {
    void resize(int n_) {
        n = n_;
        ritz = std::min(n, 64);
        for (Vector<T>* v : {&x, &g, &p, &xn, &gn, &r, &d, &hd}) v->resize(n);
        basis.resize(n, ritz);
        tri.resize(ritz);
        u.resize(ritz);
    }
    int n = 0, ritz = 0;
    Vector<T> x, g, p, xn, gn, r, d, hd, u;
    Matrix<T> basis;
    Tridiagonal<T> tri;
};

template <class T, class Problem, class Monitor> class NewtonCg {
  public:
    NewtonCg(Problem& problem, const NewtonOptions<T>& options, NewtonCgWork<T>& work, Monitor& monitor)
        : f(problem), o(options), w(work), watch(monitor) {}

    Summary<T> run() {
        s.status = iterate();
        s.value = value;
        s.gradient = largest(w.g);
        if (s.status > Status::limit && !have_lambda && !lanczos()) s.status = Status::aborted;
        if (have_lambda) s.lambda_min = lambda;
        return s;
    }

  private:
    Status iterate() {
        const T nan = std::numeric_limits<T>::quiet_NaN();
        w.g.setConstant(nan);
        ++s.nfev;
        if (!f.value(w.x.data(), value)) return Status::aborted;
        if (!std::isfinite(value)) return Status::nonfinite;
        first_value = value;
        ++s.njev;
        if (!f.gradient(w.x.data(), w.g.data())) return Status::aborted;
        if (!w.g.allFinite()) return Status::nonfinite;
        radius = o.radius;
        T most = 0, step = nan, gtol = gradient_tolerance(f, o.gtol, o.keep_gtol);
        int failures = 0;
        for (;; ++s.nit) {
            const T g_norm = norm(w.g);
            most = std::max(most, g_norm);
            if (first == 0) first = g_norm;
            if (const Signal signal = watch(Progress<T>{s.nit, value, step, largest(w.g), w.x.data(), w.n});
                signal != Signal::go)
                return ended(signal);
            have_lambda = false;
            bool flat = g_norm <= gtol * most;
            if (flat && s.nit < o.max_iterations) {
                if (!near()) return Status::aborted;
                flat = settled || negative;  // with negative curvature the eigenvalue decides
            }
            if (!flat && failures > 0) {
                const Status status = unless_wrong();
                if (status != Status::limit && status != Status::precision) return status;
                flat = settled = status == Status::precision;
                if (!flat) {
                    gtol = gradient_tolerance(f, o.gtol, o.keep_gtol);
                    most = path = radius = 0;
                    g_most = 0;
                    failures = 0;
                    continue;
                }
            }
            if (flat) {
                if (!lanczos()) return Status::aborted;
                const T noise = 16 * T(w.n) * epsilon<T> * w.tri.bound();
                const Status good = g_norm <= gtol * most ? Status::gradient : Status::precision;
                if (lambda > noise && settled) return good;
                if (s.nit >= o.max_iterations) return Status::limit;
                const bool level = lambda >= -noise;
                if (!level || settled) {
                    const int left = level ? leave_flat() : leave_saddle();
                    if (left < 0) return Status::aborted;
                    if (left == 0) return level ? good : Status::saddle;
                    step = norm(w.p);
                    failures = 0;
                    continue;
                }
            }
            if (s.nit >= o.max_iterations) return Status::limit;
            bool blocked = false;  // f is not finite at the last trial
            for (int tries = 0;; ++tries) {
                T predicted;
                bool exact, boundary;
                if (!steihaug(predicted, exact, boundary)) return Status::aborted;
                const T length = norm(w.p);
                w.xn = w.x + w.p;
                if (tries > 100 || !(predicted > 0) || (w.xn.array() == w.x.array()).all()) {
                    if (blocked) return Status::nonfinite;
                    ++failures;
                    break;
                }
                T fn;
                ++s.nfev;
                if (!f.value(w.xn.data(), fn)) return Status::aborted;
                if (fn == -std::numeric_limits<T>::infinity()) {
                    w.x.swap(w.xn);
                    value = fn;
                    return Status::unbounded;
                }
                const bool finite = std::isfinite(fn);
                blocked = !finite;
                const T ratio = finite ? (value - fn) / predicted : T(-1);
                const bool rounding = finite && predicted <= 4 * epsilon<T> * std::max(std::abs(value), std::abs(fn));
                bool accept = finite && fn < value;
                if (accept || rounding) {
                    ++s.njev;
                    if (!f.gradient(w.xn.data(), w.gn.data())) return Status::aborted;
                    accept = w.gn.allFinite() && (accept || (fn == value && norm(w.gn) < norm(w.g)));
                }
                if (rounding && !accept) {
                    ++failures;
                    break;
                }
                if (ratio < T(0.25) && !rounding) {
                    radius = std::min(radius, length) / 4;
                } else if (ratio > T(0.75) && boundary) {
                    radius *= 2;
                }
                if (!accept) continue;
                const bool small = exact && length <= o.xtol * norm(w.x);
                step = length;
                path += length;
                w.x.swap(w.xn);
                w.g.swap(w.gn);
                value = fn;
                failures = 0;
                if (small) return Status::step;
                break;
            }
        }
    }

    // Sets `settled`: whether a step of conjugate gradients is short relative to the distance so far, or predicts too
    // small a fall of f.
    bool near() {
        settled = w.g.isZero(T(0));
        negative = false;
        if (settled) return true;
        T predicted;
        bool exact, boundary;
        if (!steihaug(predicted, exact, boundary)) return false;
        settled =
            predicted <= 4 * epsilon<T> * std::abs(value) || (!boundary && norm(w.p) <= left_of_the_way<T> * path);
        return true;
    }

    // No step lowers f: Status::precision, or Status::derivative if g is not the gradient. Status::limit: a better
    // gradient by differences is available, so continue.
    Status unless_wrong() {
        if (norm(w.g) <= std::sqrt(epsilon<T>) * first) return Status::precision;
        T lowest = value;
        Vector<T>& best = w.hd;
        const auto at = [&](const Vector<T>& point, T& f_there) {
            ++s.nfev;
            if (!f.value(point.data(), f_there)) return false;
            if (f_there < lowest) {
                lowest = f_there;
                best = point;
            }
            return true;
        };
        w.d = -w.g;
        const Agreement agreement =
            judge_minimum(w.x, w.g, w.d, value, value_error<T>(f), w.xn, w.r, s.disagreement, at);
        if (agreement == Agreement::aborted) return Status::aborted;
        if (lowest == -std::numeric_limits<T>::infinity()) {
            w.x = best;
            value = lowest;
            return Status::unbounded;
        }
        const bool rests = agreement == Agreement::fails && at_rest(f, s.disagreement, first);
        // A probe that is clearly lower shows that the steps were wrong, not that there are none.
        const bool lower = lowest < value;
        const bool useful = value - lowest > 16 * epsilon<T> * std::max(std::abs(value), std::abs(first_value));
        const bool refined = !rests && (agreement == Agreement::fails || useful) && refine(f);
        if (lower) {
            w.x = best;
            value = lowest;
        }
        if (lower || refined) {
            ++s.njev;
            if (!f.gradient(w.x.data(), w.g.data())) return Status::aborted;
        }
        if (rests) return Status::precision;
        if (refined || (agreement == Agreement::holds && useful)) return Status::limit;
        return agreement == Agreement::holds ? Status::precision : Status::derivative;
    }

    bool product(const Vector<T>& v, Vector<T>& hv) {
        ++s.nhev;
        return f.product(w.x.data(), v.data(), hv.data());
    }

    // p by conjugate gradients on the model until the residual is min(1/2, sqrt(|g| / G)) |g|, the radius, or a
    // direction of negative curvature.
    bool steihaug(T& predicted, bool& exact, bool& boundary) {
        w.p.setZero();
        w.r = w.g;
        w.d = -w.g;
        const T g_norm = norm(w.g);
        if (g_most < g_norm) g_most = g_norm;
        const T target = g_norm * std::max(std::sqrt(epsilon<T>), std::min(T(0.5), std::sqrt(g_norm / g_most)) / 2);
        T rr = w.r.squaredNorm();
        predicted = 0;
        exact = boundary = false;
        for (int i = 0; i < 2 * w.n + 10; ++i) {
            if (!product(w.d, w.hd)) return false;
            const T curvature = w.d.dot(w.hd);
            if (!std::isfinite(curvature)) break;
            if (radius <= 0) {
                // The first length: the Cauchy step's, else that of x.
                const T x_norm = norm(w.x);
                radius = curvature > 0 ? rr / curvature * norm(w.d) : x_norm > 0 ? x_norm : T(1);
                radius = std::max(radius, x_norm);
            }
            negative = curvature <= 0;
            const T alpha = rr / curvature;
            const bool inside = curvature > 0 && (w.p + alpha * w.d).norm() < radius;
            if (!inside) {
                const T pp = w.p.squaredNorm(), pd = w.p.dot(w.d), dd = w.d.squaredNorm();
                const T root = std::sqrt(pd * pd + dd * (radius * radius - pp));
                const T tau = pd > 0 ? (radius * radius - pp) / (pd + root) : (root - pd) / dd;
                predicted += tau * (rr - tau * curvature / 2);
                w.p += tau * w.d;
                boundary = true;
                return true;
            }
            predicted += alpha * rr / 2;
            w.p += alpha * w.d;
            w.r += alpha * w.hd;
            const T next = w.r.squaredNorm();
            if (std::sqrt(next) <= target) {
                exact = std::sqrt(next) <= 2 * std::sqrt(epsilon<T>) * g_norm;
                return true;
            }
            w.d = (next / rr) * w.d - w.r;
            rr = next;
        }
        return true;
    }

    // The smallest Ritz value of H in a Krylov space of up to 64 dimensions, basis kept orthogonal.
    bool lanczos() {
        const int n = w.n;
        w.tri.d.setZero();
        w.tri.e.setZero();
        auto start = w.basis.col(0);
        for (int i = 0; i < n; ++i) start[i] = T(1) + T(0.5) * std::sin(T(i) * T(1.7) + T(0.3));
        start /= start.norm();
        int k = 0;
        T bound = 0;
        for (; k < w.ritz; ++k) {
            w.d = w.basis.col(k);
            if (!product(w.d, w.hd)) return false;
            if (!w.hd.allFinite()) return true;
            w.tri.d[k] = w.d.dot(w.hd);
            bound = std::max(bound, norm(w.hd));
            for (int twice = 0; twice < 2; ++twice)
                for (int i = 0; i <= k; ++i) w.hd -= w.basis.col(i).dot(w.hd) * w.basis.col(i);
            const T beta = norm(w.hd);
            if (k + 1 == w.ritz) break;
            if (!(beta > T(n) * epsilon<T> * bound)) {
                // An invariant space: go on with a vector outside it.
                w.hd.setZero();
                for (int i = 0; i < n; ++i) w.hd[i] = std::cos(T(i) * T(k + 2) + T(0.1));
                for (int twice = 0; twice < 2; ++twice)
                    for (int i = 0; i <= k; ++i) w.hd -= w.basis.col(i).dot(w.hd) * w.basis.col(i);
                const T outside = norm(w.hd);
                if (!(outside > T(0))) break;
                w.basis.col(k + 1) = w.hd / outside;
                continue;
            }
            w.tri.e[k] = beta;
            w.basis.col(k + 1) = w.hd / beta;
        }
        // Unused rows must not lower the smallest eigenvalue.
        for (int i = k + 1; i < w.ritz; ++i) w.tri.d[i] = bound;
        w.tri.measure();
        lambda = w.tri.smallest();
        have_lambda = true;
        return true;
    }

    // More than the rounding of f near a point. If terms of f cancel, that is the rounding of the terms, such as x'Hx.
    T least_fall(const Vector<T>& point) const {
        return 16 * epsilon<T> * (std::abs(value) + w.tri.bound() * point.squaredNorm());
    }

    // Moves to the lower one of x + t d and x - t d, if it is lower by more than f's rounding: 1 moved, 0 not, -1
    // aborted.
    int try_both(T t) {
        T best = value, best_t = 0;
        for (const T side : {t, -t}) {
            w.xn = w.x + side * w.d;
            T fn;
            ++s.nfev;
            if (!f.value(w.xn.data(), fn)) return -1;
            if (std::isfinite(fn) && fn < best && fn < value - least_fall(w.xn)) {
                best = fn;
                best_t = side;
            }
        }
        if (best_t == 0) return 0;
        w.p = best_t * w.d;
        w.xn = w.x + w.p;
        ++s.njev;
        if (!f.gradient(w.xn.data(), w.gn.data())) return -1;
        if (!w.gn.allFinite()) return 0;
        w.x.swap(w.xn);
        w.g.swap(w.gn);
        value = best;
        radius = std::max(radius, std::abs(best_t));
        return 1;
    }

    T reach() const {
        const T x_norm = norm(w.x);
        return radius > 0 ? radius : x_norm > 0 ? x_norm : T(1);
    }

    int leave_saddle() {
        w.tri.eigenvector(lambda, w.u);
        w.d = w.basis * w.u;
        // However short the reach is, go so far that the fall |lambda| t^2 / 2 is eight times what try_both asks for.
        T t = std::max(reach(), 4 * std::sqrt(least_fall(w.x) / -lambda));
        for (int i = 0; i < 60; ++i, t /= 4)
            if (const int moved = try_both(t); moved != 0) return moved;
        return 0;
    }

    // Second derivatives decide nothing, so this tries points along the Ritz vector and some axes.
    int leave_flat() {
        w.tri.eigenvector(lambda, w.u);
        w.d = w.basis * w.u;
        for (int axis = -1; axis < std::min(w.n, 64); ++axis) {
            if (axis >= 0) {
                w.d.setZero();
                w.d[axis] = 1;
            }
            for (const T share : {T(1), T(1e-1), T(1e-2), T(1e-4)})
                if (const int moved = try_both(reach() * share); moved != 0) return moved;
        }
        return 0;
    }

    Problem& f;
    const NewtonOptions<T>& o;
    NewtonCgWork<T>& w;
    Monitor& watch;
    Summary<T> s;
    T value = std::numeric_limits<T>::quiet_NaN(), radius = 0, g_most = 0, lambda = 0;
    T first = 0, first_value = 0, path = 0;  // |g| and f of the start; the distance so far
    bool have_lambda = false;
    bool negative = false;  // the last step met curvature <= 0
    bool settled = false;   // a small gradient is that of a minimum, if the eigenvalue says so
};

template <class T, class Problem, class Monitor = NoMonitor>
Summary<T> newton_cg(Problem& problem, const NewtonOptions<T>& options, NewtonCgWork<T>& work, Monitor&& monitor = {}) {
    return NewtonCg<T, Problem, std::remove_reference_t<Monitor>>(problem, options, work, monitor).run();
}

}  // namespace adaptk::solve
