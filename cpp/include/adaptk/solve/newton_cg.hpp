// Newton's method with products H v instead of H: a trust region whose steps are computed by conjugate gradients.
//
//   T. Steihaug, The conjugate gradient method and trust regions in large scale optimization,
//   SIAM J. Numer. Anal. 20 (1983); Nocedal and Wright 2006, Algorithm 7.2
//   C. J. Lin, J. J. More, Newton's method for large bound-constrained optimization problems, SIAM J. Optim. 9 (1999)
//   C. Lanczos (1950): the smallest eigenvalue at stationary points
//
// With G the largest |g| of the run it ends with
//   gradient   |g| <= gtol G, the smallest Ritz value of H is >= -16 n eps |H|, and either the remaining distance is at
//              most a thousandth of the distance so far, or the model predicts a fall of less than 4 eps |f|
//   step       an inner solution of residual <= sqrt(eps) |g| has |p| <= xtol |x|
//   precision  no step lowers f
//   derivative the same, and differences of f contradict g
//   saddle     |g| as under gradient, a Ritz value < -16 n eps |H|, and f is not lower along its vector
// With bounds, g and H are those of the free variables, as in newton.hpp.
#pragma once

#include "adaptk/solve/newton.hpp"

namespace adaptk::solve {

template <class T> struct NewtonCgWork {
    void resize(int n_) {
        n = n_;
        ritz = std::min(n, 64);
        for (Vector<T>* v : {&x, &g, &p, &xn, &gn, &r, &d, &hd, &s, &hs}) v->resize(n);
        basis.resize(n, ritz);
        tri.resize(ritz);
        u.resize(ritz);
    }
    int n = 0, ritz = 0;
    Vector<T> x, g, p, xn, gn, r, d, hd, u;
    Vector<T> s, hs;         // a part of the step, and its product with H
    Vector<T> lower, upper;  // bounds; without elements: none
    // With bounds: the gradient of all variables, the bounds of p, the variables free at x and during a step, and those
    // at a bound without a slope that are left out of lambda.
    Vector<T> whole_g, low, high;
    Eigen::Array<bool, Eigen::Dynamic, 1> free, moving, touching;
    Matrix<T> basis;
    Tridiagonal<T> tri;
};

template <class T, class Problem, class Monitor> class NewtonCg {
  public:
    NewtonCg(Problem& problem, const NewtonOptions<T>& options, NewtonCgWork<T>& work, Monitor& monitor)
        : f(problem), o(options), w(work), watch(monitor), box(work.lower, work.upper) {
        if (!box) return;
        w.whole_g.setConstant(w.n, std::numeric_limits<T>::quiet_NaN());
        w.low.resize(w.n);
        w.high.resize(w.n);
        for (auto* v : {&w.free, &w.moving, &w.touching}) v->setConstant(w.n, false);
        box.clip(w.x);
    }

    Summary<T> run() {
        s.status = iterate();
        s.value = value;
        if (box && !parted) part_gradient();
        s.gradient = largest(w.g);
        if (s.status > Status::limit && !have_lambda && !lanczos()) s.status = Status::aborted;
        if (have_lambda) s.lambda_min = lambda;
        if (box) w.g = w.whole_g;
        return s;
    }

  private:
    // With bounds: w.g becomes the gradient of the free variables.
    void part_gradient() {
        w.whole_g = w.g;
        box.project(w.x, w.whole_g, w.g);
        for (int i = 0; i < w.n; ++i) w.free[i] = !box.holds(i, w.x[i], w.whole_g[i]);
        w.touching.setConstant(false);
        parted = true;
    }
    void keep_free(Vector<T>& v, const Eigen::Array<bool, Eigen::Dynamic, 1>& which) const {
        if (!box) return;
        for (int i = 0; i < w.n; ++i)
            if (!which[i]) v[i] = 0;
    }
    // |w.gn| at w.xn, of the free variables there.
    T slopes_there() {
        if (!box) return norm(w.gn);
        box.project(w.xn, w.gn, w.hd);
        return norm(w.hd);
    }
    void move(T fn) {
        w.x.swap(w.xn);
        w.g.swap(w.gn);
        value = fn;
        parted = false;
    }

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
        int failures = 0, doublings = 0;
        const bool began_far_out = far_out(w.x);
        for (;; ++s.nit) {
            if (!began_far_out && far_out(w.x)) return Status::unbounded;
            if (box && !parted) part_gradient();
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
                    if (left == 0) return lambda >= -noise ? good : Status::saddle;
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
                if (box) box.snap(w.xn, w.x);
                if (tries > 100 || !(predicted > 0) || (w.xn.array() == w.x.array()).all()) {
                    if (blocked) return Status::nonfinite;
                    ++failures;
                    break;
                }
                if (!w.xn.allFinite()) {
                    radius = length / 4;
                    continue;
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
                    accept = w.gn.allFinite() && (accept || (fn == value && slopes_there() < norm(w.g)));
                }
                if (rounding && !accept) {
                    ++failures;
                    break;
                }
                if (ratio < T(0.25) && !rounding) {
                    radius = std::min(radius, length) / 4;
                }
                doublings = ratio > T(0.75) && boundary ? doublings + 1 : 0;
                if (doublings > 0) radius = std::max(radius, wider_radius(length, doublings));
                if (!accept) continue;
                const bool small = exact && length <= o.xtol * norm(w.x);
                step = length;
                path += length;
                move(fn);
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
        const Agreement agreement = judge_minimum(w.x, box ? w.whole_g : w.g, w.d, value, value_error<T>(f), w.xn, w.r,
                                                  s.disagreement, at, box);
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
            parted = false;
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
    // direction of negative curvature. With bounds, a part that leads out of them is projected and shortened until the
    // model falls, and the next part is for the variables that are free at its end (Lin and More). Since x is within
    // the bounds, projections do not lengthen p.
    bool steihaug(T& predicted, bool& exact, bool& boundary) {
        constexpr int most_parts = 50, most_halvings = 20;
        const T g_norm = norm(w.g);
        if (g_most < g_norm) g_most = g_norm;
        const T target = std::max(std::sqrt(epsilon<T>), std::min(T(0.5), std::sqrt(g_norm / g_most)) / 2);
        w.p.setZero();
        // Residuals and directions in units of |g|, whose square may underflow.
        w.r = (box ? w.whole_g : w.g) / g_norm;
        if (box) {
            w.low = w.lower - w.x;
            w.high = w.upper - w.x;
            w.moving = w.free;
        }
        const Box<T> room(w.low, w.high);
        predicted = 0;
        exact = boundary = negative = false;
        int products = 0;
        for (int part = 0; part < most_parts; ++part) {
            T fall;
            bool met;
            if (!part_of_step(g_norm, target, products, fall, met)) return false;
            w.xn = w.p + w.s;
            if (!box || !room.clip(w.xn)) {
                w.p = w.xn;
                predicted += fall;
                boundary = met;
                exact = w.hs.allFinite() && residual(w.moving) <= 2 * std::sqrt(epsilon<T>);
                return true;
            }
            // The part on its way to the bounds: r is the gradient at its start again.
            w.r -= w.hs;
            bool fell = false;
            T t = 1;
            for (int i = 0; i < most_halvings && !fell; ++i, t /= 2) {
                w.xn = w.p + t * w.s;
                room.clip(w.xn);
                w.d = w.xn - w.p;
                if (!product(w.d, w.hd)) return false;
                const T slope = g_norm * w.r.dot(w.d), change = slope + w.d.dot(w.hd) / 2;
                fell = change < 0 && change <= T(1e-4) * slope;
                if (!fell) continue;
                w.p = w.xn;
                w.r += w.hd / g_norm;
                predicted -= change;
            }
            if (!fell) break;
            for (int i = 0; i < w.n; ++i) w.moving[i] = !room.holds(i, w.p[i], w.r[i]) && !w.touching[i];
            const T rest = residual(w.moving);
            exact = rest <= 2 * std::sqrt(epsilon<T>);
            boundary = norm(w.p) >= T(0.9) * radius;
            if (rest <= target || boundary || products > 2 * w.n + 10) break;
        }
        return true;
    }

    // |r| of some variables.
    T residual(const Eigen::Array<bool, Eigen::Dynamic, 1>& which) {
        if (!box) return norm(w.r);
        w.hd = w.r;
        keep_free(w.hd, which);
        return norm(w.hd);
    }

    // w.s by conjugate gradients from w.p among the moving variables, with H s / |g| in w.hs, which is added to w.r.
    // `met`: |p + s| is the radius.
    bool part_of_step(T g_norm, T target, int& products, T& fall, bool& met) {
        w.s.setZero();
        w.hs.setZero();
        fall = 0;
        met = false;
        w.d = -w.r;
        keep_free(w.d, w.moving);
        T rr = w.d.squaredNorm();
        while (products < 2 * w.n + 10) {
            ++products;
            if (!product(w.d, w.hd)) return false;
            const T curvature = w.d.dot(w.hd);
            if (!std::isfinite(curvature)) break;
            if (radius <= 0) {
                // The first length: the Cauchy step's, else that of x.
                const T x_norm = norm(w.x);
                radius = curvature > 0 ? rr / curvature * g_norm * norm(w.d) : x_norm > 0 ? x_norm : T(1);
                radius = std::max(radius, x_norm);
            }
            negative = negative || curvature <= 0;
            T alpha = rr / curvature * g_norm;
            w.xn = w.p + w.s;
            const bool inside = curvature > 0 && (w.xn + alpha * w.d).norm() < radius;
            if (!inside) {
                // In units of the radius, whose square may overflow.
                w.xn /= radius;
                const T pp = w.xn.squaredNorm(), pd = w.xn.dot(w.d), dd = w.d.squaredNorm();
                const T root = std::sqrt(pd * pd + dd * (1 - pp));
                alpha = radius * (pd > 0 ? (1 - pp) / (pd + root) : (root - pd) / dd);
                met = true;
            }
            fall += alpha * (g_norm * rr - alpha * curvature / 2);
            w.s += alpha * w.d;
            w.hd *= alpha / g_norm;
            w.hs += w.hd;
            w.r += w.hd;
            if (met) return true;
            const T next = residual_square();
            if (std::sqrt(next) <= target) return true;
            w.d *= next / rr;
            for (int i = 0; i < w.n; ++i)
                if (!box || w.moving[i]) w.d[i] -= w.r[i];
            rr = next;
        }
        return true;
    }
    T residual_square() {
        const T size = residual(w.moving);
        return size * size;
    }

    // The smallest Ritz value of H in a Krylov space of up to 64 dimensions, basis kept orthogonal.
    bool lanczos() {
        const int n = w.n;
        w.tri.d.setZero();
        w.tri.e.setZero();
        w.hd.setOnes();
        keep_free(w.hd, w.free);
        const int dimensions = std::min(w.ritz, int(w.hd.sum()));
        have_lambda = true;
        if (dimensions == 0) {
            lambda = std::numeric_limits<T>::infinity();
            return true;
        }
        w.basis.setZero();
        for (int i = 0; i < n; ++i) w.d[i] = T(1) + T(0.5) * std::sin(T(i) * T(1.7) + T(0.3));
        keep_free(w.d, w.free);
        w.basis.col(0) = w.d / w.d.norm();
        int k = 0;
        T bound = 0;
        for (;; ++k) {
            w.d = w.basis.col(k);
            if (!product(w.d, w.hd)) return false;
            keep_free(w.hd, w.free);
            if (!w.hd.allFinite()) {
                have_lambda = false;
                return true;
            }
            w.tri.d[k] = w.d.dot(w.hd);
            bound = std::max(bound, norm(w.hd));
            for (int twice = 0; twice < 2; ++twice)
                for (int i = 0; i <= k; ++i) w.hd -= w.basis.col(i).dot(w.hd) * w.basis.col(i);
            const T beta = norm(w.hd);
            if (k + 1 == dimensions) break;
            if (!(beta > T(n) * epsilon<T> * bound)) {
                // An invariant space: go on with a vector outside it.
                w.hd.setZero();
                for (int i = 0; i < n; ++i) w.hd[i] = std::cos(T(i) * T(k + 2) + T(0.1));
                keep_free(w.hd, w.free);
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
            to_point(side);
            if (!w.xn.allFinite() || (w.xn.array() == w.x.array()).all()) continue;
            T fn;
            ++s.nfev;
            if (!f.value(w.xn.data(), fn)) return -1;
            if (std::isfinite(fn) && fn < best && fn < value - least_fall(w.xn)) {
                best = fn;
                best_t = side;
            }
        }
        if (best_t == 0) return 0;
        to_point(best_t);
        w.p = w.xn - w.x;
        ++s.njev;
        if (!f.gradient(w.xn.data(), w.gn.data())) return -1;
        if (!w.gn.allFinite()) return 0;
        move(best);
        radius = std::max(radius, std::abs(best_t));
        return 1;
    }
    void to_point(T t) {
        w.xn = w.x + t * w.d;
        if (box) box.clip(w.xn);
    }

    T reach() const {
        const T x_norm = norm(w.x);
        return radius > 0 ? radius : x_norm > 0 ? x_norm : T(1);
    }

    // With bounds, lambda then no longer counts variables that are at a bound without a slope, if only they make it
    // negative and no lower point is found.
    int leave_saddle() {
        w.tri.eigenvector(lambda, w.u);
        w.d = w.basis * w.u;
        // However short the reach is, go so far that the fall |lambda| t^2 / 2 is eight times what try_both asks for.
        T t = std::max(reach(), 4 * std::sqrt(least_fall(w.x) / -lambda));
        for (int i = 0; i < 60; ++i, t /= 4)
            if (const int moved = try_both(t); moved != 0) return moved;
        if (!box) return 0;
        bool any = false;
        for (int k = 0; k < w.n; ++k) {
            if (!w.free[k] || !box.on_bound(k, w.x[k])) continue;
            w.free[k] = false;
            w.touching[k] = any = true;
        }
        if (!any) return 0;
        if (!lanczos()) return -1;
        return have_lambda && lambda < -16 * T(w.n) * epsilon<T> * w.tri.bound() ? leave_saddle() : 0;
    }

    // Second derivatives decide nothing, so this tries points along the Ritz vector and some axes.
    int leave_flat() {
        w.tri.eigenvector(lambda, w.u);
        w.d = w.basis * w.u;
        for (int axis = -1; axis < std::min(w.n, 64); ++axis) {
            if (axis >= 0) {
                if (box && !w.free[axis]) continue;
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
    const Box<T> box;
    bool parted = false;  // w.g is the gradient of the free variables
    Summary<T> s;
    T value = std::numeric_limits<T>::quiet_NaN(), radius = 0, g_most = 0, lambda = 0;
    T first = 0, first_value = 0, path = 0;  // |g| and f of the start; the distance so far
    bool have_lambda = false;
    bool negative = false;  // the last step met curvature <= 0
    bool settled = false;   // a small gradient is that of a minimum, if the eigenvalue says so
};

// work.x holds the start, within the bounds work.lower and work.upper if these have elements, and at the end the best
// point found, with its gradient in work.g.
template <class T, class Problem, class Monitor = NoMonitor>
Summary<T> newton_cg(Problem& problem, const NewtonOptions<T>& options, NewtonCgWork<T>& work, Monitor&& monitor = {}) {
    return NewtonCg<T, Problem, std::remove_reference_t<Monitor>>(problem, options, work, monitor).run();
}

}  // namespace adaptk::solve
