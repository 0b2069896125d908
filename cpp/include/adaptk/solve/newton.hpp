// Newton's method for minimisation with dense Hessians, with or without bounds.
//
//   I. Goodfellow, Y. Bengio, A. Courville, Deep Learning (2016), Algorithm 8.8 and equation 8.28
//   J. J. More, D. C. Sorensen, Computing a trust region step, SIAM J. Sci. Stat. Comput. 4 (1983)
//   J. Nocedal, S. J. Wright, Numerical Optimization, second edition (2006), Algorithms 4.1 and 7.2
//   D. P. Bertsekas, Projected Newton methods for optimization problems with simple constraints, SIAM J. Control Optim.
//   20 (1982)
//
// With f, g, H at x, |.| the 2-norm and G the largest |g| of the run, it ends with
//   gradient    lambda_min >= -16 n eps |H|, and |g_i| <= eps (|H| |x|)_i for each i, which is rounding, or |g| <= gtol
//               G and either the remaining distance is at most a thousandth of the distance so far, or the model
//               predicts a fall of less than 4 eps |f|. If H is singular, g along its null space is only rounding.
//   unbounded   f is -inf, or squares of x overflow
//   step        the full step has |p| <= xtol |x|, and H is positive definite
//   precision   the model predicts a fall of less than 4 eps |f|, H is positive definite, and a step lowers neither f
//               nor |g|
//   derivative  as precision, but g is not small and differences of f contradict it
//   saddle      |g| as under gradient, lambda_min < -16 n eps |H|, and f is not lower along the eigenvector
//   nonfinite   f is not finite however short the step
//   indefinite  damping none: H has no Cholesky factor
// In the bounds of lambda_min, eps is the relative error of H: that of the type, or the error of differences.
// At a stationary point with lambda_min < 0 the step is along its eigenvector, to the lower side. Where lambda_min is 0
// within rounding, points along that eigenvector and the axes are tried, since the second derivative decides nothing.
//
// With bounds, g and H are those of the free variables: a variable is held while it is at a bound and f falls outward.
// A step that leads out of the bounds is replaced by the minimum of g'p + p'(H + lambda I)p/2 within them, with the
// lambda of that step. One that is at a bound without a slope takes part in a saddle only if a lower point is found.
#pragma once

#include "adaptk/solve/agreement.hpp"
#include "adaptk/solve/trust_region.hpp"

namespace adaptk::solve {

enum class Damping { trust_region, levenberg, none };

template <class T> struct NewtonOptions {
    Damping damping = Damping::trust_region;
    T gtol = sizeof(T) == 4 ? T(1e-6) : T(1e-12);
    T xtol = sizeof(T) == 4 ? T(1e-6) : T(1e-12);
    T radius = 0;            // the first one; 0: the length of the first step that the model suggests
    bool keep_gtol = false;  // whether gtol may be below what gradients by differences can reach
    std::int64_t max_iterations = 1000;
    bool eigenvalue = true;  // compute lambda_min at the end
};

template <class T> struct NewtonWork {
    void resize(int n_) {
        n = n_;
        for (Vector<T>* v : {&x, &g, &p, &xn, &gn, &t, &most, &idle}) v->resize(n);
        h.resize(n, n);
        l.resize(n, n);
        tri.resize(n);
        trust.resize(n);
    }
    int n = 0;
    Vector<T> x, g, p, xn, gn, t;
    Vector<T> most;  // the largest |g_i| of the run
    Vector<T> idle;  // 1 for a variable that the step leaves
    Matrix<T> h, l;
    Vector<T> lower, upper;  // bounds; without elements: none
    // With bounds: the gradient and Hessian of all variables, and work space.
    Vector<T> whole_g;
    Matrix<T> whole_h;
    Eigen::Array<bool, Eigen::Dynamic, 1> touching;  // at a bound without a slope, and left out of lambda
    BoxWork<T> bounded;
    Tridiagonal<T> tri;
    TrustWork<T> trust;
};

// w.x holds the start, within the bounds w.lower and w.upper if these have elements, and at the end the best point
// found, with its gradient and Hessian in w.g and w.h.
template <class T, class Problem, class Monitor, class Linalg> class Newton {
  public:
    Newton(Problem& problem, const NewtonOptions<T>& options, NewtonWork<T>& work, Monitor& monitor)
        : f(problem), o(options), w(work), watch(monitor), box(work.lower, work.upper) {
        if (!box) return;
        w.whole_g.setConstant(w.n, std::numeric_limits<T>::quiet_NaN());
        w.whole_h.resize(w.n, w.n);
        w.touching.resize(w.n);
        w.bounded.resize(w.n);
        box.clip(w.x);
    }

    Summary<T> run() {
        s.status = iterate();
        s.value = value;
        if (box && !parted) part_gradient();
        s.gradient = largest(w.g);
        if (s.status != Status::aborted && o.eigenvalue && !known_lambda && have_hessian) {
            if (!(w.n >= 128 && (definite || Linalg::blocked) && inverse_lanczos())) eigenvalue();
        }
        if (have_hessian) s.lambda_min = box && none_is_free() ? std::numeric_limits<T>::infinity() : lambda;
        if (box) {
            w.g = w.whole_g;
            if (have_hessian) w.h = w.whole_h;
        }
        return s;
    }

  private:
    enum class Outcome { moved, ended, rejected, unbounded };

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
        gtol = gradient_tolerance(f, o.gtol, o.keep_gtol);
        w.most.setZero();
        T step = nan;
        const bool began_far_out = far_out(w.x);
        for (;; ++s.nit) {
            if (!began_far_out && far_out(w.x)) return Status::unbounded;
            if (box) part_gradient();
            const T g_norm = norm(w.g);
            most = std::max(most, g_norm);
            if (first == 0) first = g_norm;
            w.most = w.most.cwiseMax(w.g.cwiseAbs());
            if (const Signal signal = watch(Progress<T>{s.nit, value, step, largest(w.g), w.x.data(), w.n});
                signal != Signal::go)
                return ended(signal);
            ++s.nhev;
            have_hessian = true;
            known_lambda = false;
            if (!f.hessian(w.x.data(), w.h.data())) return Status::aborted;
            size = w.h.norm();
            if (!std::isfinite(size) && !w.h.allFinite()) return Status::nonfinite;
            if (box) part_hessian();
            definite = factor(0);
            // A g that has not fallen is none, however far out x is.
            const bool fallen = s.nit == 0 || g_norm <= first / 16;
            const bool rounding = fallen && g_norm <= epsilon<T> * size * norm(w.x) && is_rounding();
            bool stationary = rounding || g_norm <= gtol * most || (!definite && within_a_difference());
            if (stationary && definite) {
                if (rounding || near()) return last_step(g_norm) ? Status::gradient : Status::aborted;
                stationary = false;
            }
            if (stationary) {
                eigenvalue();
                const bool flat = lambda >= -level();
                stationary = !flat || rounding || (g_norm <= gtol * most && null_space_is_rounding() && near_flat());
                if (o.damping == Damping::none && !flat) return Status::saddle;
                if (stationary) {
                    const Outcome outcome = flat ? leave_flat() : leave_saddle();
                    if (outcome == Outcome::ended) return Status::aborted;
                    if (outcome == Outcome::unbounded) return Status::unbounded;
                    // The plain method reports what it met, and does not continue from the lower point.
                    if (o.damping == Damping::none && outcome == Outcome::moved) return Status::saddle;
                    if (outcome == Outcome::rejected) {
                        if (rounding || g_norm <= gtol * most) return verdict();
                    } else {
                        step = norm(w.p);
                        if (s.nit + 1 >= o.max_iterations) return Status::limit;
                        continue;
                    }
                }
            }
            if (s.nit >= o.max_iterations) return Status::limit;
            hold_idle();
            const Status status = o.damping == Damping::none        ? full_step()
                                  : o.damping == Damping::levenberg ? levenberg_step()
                                                                    : trust_step();
            release_idle();
            if (status != Status::limit) return status;
            step = norm(w.p);
        }
    }

    // With bounds: w.g becomes the gradient of the free variables.
    void part_gradient() {
        w.whole_g = w.g;
        box.project(w.x, w.whole_g, w.g);
        parted = true;
    }
    // w.h becomes their Hessian, with some curvature for the others, which then keep their value. It is not less than
    // the smallest eigenvalue of the free variables.
    void part_hessian() {
        w.whole_h = w.h;
        w.touching.setConstant(false);
        for (int k = 0; k < w.n; ++k)
            if (box.holds(k, w.x[k], w.whole_g[k])) set_apart(k, size > 0 ? size : T(1));
    }
    bool none_is_free() const {
        for (int k = 0; k < w.n; ++k)
            if (!box.holds(k, w.x[k], w.whole_g[k])) return false;
        return true;
    }
    void set_apart(int k, T curvature) {
        w.h.row(k).setZero();
        w.h.col(k).setZero();
        w.h(k, k) = curvature;
    }

    // A variable without slope and curvature, such as one that f does not depend on, gets some curvature for a step, so
    // that it keeps its value: H is then singular only if others make it so.
    void hold_idle() {
        idle = false;
        w.idle.setZero();
        for (int k = 0; k < w.n && size > 0; ++k) {
            if (w.h(k, k) != 0 || w.g[k] != 0) continue;
            if (!w.h.row(k).head(k).isZero(T(0)) || !w.h.col(k).tail(w.n - k).isZero(T(0))) continue;
            w.h(k, k) = size;
            w.idle[k] = 1;
            idle = true;
        }
        if (!idle) return;
        known_lambda = false;
        definite = factor(0);
    }
    void release_idle() {
        if (!idle) return;
        for (int k = 0; k < w.n; ++k)
            if (w.idle[k] != 0) w.h(k, k) = 0;
        known_lambda = definite = idle = false;
    }

    // w.l becomes the factor of H + shift I; false if it has none.
    bool factor(T shift) {
        w.l = w.h;
        if (shift != 0) w.l.diagonal().array() += shift;
        if constexpr (Linalg::blocked) {
            minor = Linalg::cholesky(w.l.data(), w.n);
            return minor == 0;
        } else {
            return Linalg::cholesky(w.l);
        }
    }

    // out becomes |H| |x|.
    void size_of_slopes(Vector<T>& out) {
        if (box) {
            out.noalias() = w.whole_h.cwiseAbs() * w.x.cwiseAbs();
        } else {
            out.noalias() = w.h.cwiseAbs() * w.x.cwiseAbs();
        }
    }

    // Whether each g_i is no more than the rounding of (H x)_i.
    bool is_rounding() {
        size_of_slopes(w.t);
        return (w.g.array().abs() <= epsilon<T> * w.t.array()).all();
    }

    // Whether g is no more than rounding along the solution of (H + level I) p = -g, which is the null space if H has
    // one.
    bool null_space_is_rounding() {
        w.trust.g = w.g;
        w.tri.to(w.trust.g);
        if (!w.tri.solve(2 * std::max(level(), std::numeric_limits<T>::min()), w.trust.g, w.trust.y)) return false;
        w.tri.from(w.trust.y);
        const Vector<T>& p = w.trust.y;
        size_of_slopes(w.t);
        w.t += w.most;
        return std::abs(w.g.dot(p)) <= T(w.n) * epsilon<T> * w.t.dot(p.cwiseAbs());
    }

    // Whether the full step is short relative to the distance so far, or predicts too small a fall of f.
    bool near() {
        newton_direction();
        const T length = norm(w.p), promised = -w.g.dot(w.p) / 2;
        return length <= left_of_the_way<T> * path || promised <= 4 * epsilon<T> * std::abs(value);
    }

    // No point along the eigenvector is lower. If H is computed by differences, and is small because f is flat, its
    // error is also that of the gradients of the run.
    Status verdict() const {
        const T x_norm = norm(w.x), slopes = by_differences() && x_norm > 0 ? most / x_norm : T(0);
        return lambda >= -16 * T(w.n) * hessian_error() * std::max(size, slopes) ? Status::gradient : Status::saddle;
    }

    // The same as near() if H is singular: of the step in the other directions, so with a shift far above the error of
    // H.
    bool near_flat() {
        w.trust.g = w.g;
        w.tri.to(w.trust.g);
        if (!w.tri.solve(std::sqrt(level()) * std::sqrt(size), w.trust.g, w.trust.y)) return true;
        const T length = norm(w.trust.y), promised = w.trust.g.dot(w.trust.y) / 2;
        return length <= left_of_the_way<T> * path || promised <= 4 * epsilon<T> * std::abs(value);
    }

    // Eigenvalues below this are 0 up to the error of H.
    T level() const { return 16 * T(w.n) * hessian_error() * size; }
    T hessian_error() const {
        if constexpr (requires { f.hessian_error(); }) return f.hessian_error();
        return epsilon<T>;
    }
    bool by_differences() const { return hessian_error() > epsilon<T>; }

    // p = -H^-1 g from the factor.
    void newton_direction() {
        w.p = -w.g;
        Linalg::cholesky_solve(w.l, w.p);
    }

    // The steps return Status::limit if the iteration continues.
    Status full_step() {
        if (!definite) return Status::indefinite;
        newton_direction();
        TrustStep<T> step;
        if (box) bend(T(0), step);
        to_trial();
        T fn;
        ++s.nfev;
        if (!f.value(w.xn.data(), fn)) return Status::aborted;
        ++s.njev;
        if (!f.gradient(w.xn.data(), w.gn.data())) return Status::aborted;
        if (fn == -std::numeric_limits<T>::infinity()) return Status::unbounded;
        if (!std::isfinite(fn) || !w.gn.allFinite()) return Status::nonfinite;
        if (const T length = norm(w.p); length <= o.xtol * norm(w.x)) {
            if (slopes_there() < norm(w.g)) move(fn);
            return Status::step;
        }
        move(fn);
        return Status::limit;
    }

    // At a minimum within gtol the full step doubles the digits of x for one evaluation.
    bool last_step(T g_norm) {
        if (g_norm == 0) return true;
        newton_direction();
        to_trial();
        T fn;
        ++s.nfev;
        if (!f.value(w.xn.data(), fn)) return false;
        if (!(fn <= value + 2 * epsilon<T> * std::abs(value))) return true;
        ++s.njev;
        if (!f.gradient(w.xn.data(), w.gn.data())) return false;
        if (w.gn.allFinite() && slopes_there() < g_norm) move(fn);
        return true;
    }

    void move(T fn) {
        path += norm(w.xn - w.x);
        w.x.swap(w.xn);
        w.g.swap(w.gn);
        value = fn;
        parted = false;
    }

    // w.xn becomes x + p.
    void to_trial() {
        w.xn = w.x + w.p;
        if (box) box.snap(w.xn, w.x);
    }

    // |w.gn| at w.xn, of the free variables there.
    T slopes_there() {
        if (!box) return norm(w.gn);
        box.project(w.xn, w.gn, w.bounded.slopes);
        return norm(w.bounded.slopes);
    }

    // With bounds: if x + p is outside, p becomes the minimum within them of the model with `shift` for lambda. Where
    // that cannot be computed, or the model itself is lower there, x + p is projected.
    void bend(T shift, TrustStep<T>& step) {
        BoxWork<T>& b = w.bounded;
        Vector<T>& projected = w.trust.z;
        bool outside = false;
        for (int i = 0; i < w.n; ++i) {
            if (box.holds(i, w.x[i], w.whole_g[i])) w.p[i] = 0;  // where it is only rounding
            b.low[i] = box.lower(i) - w.x[i];
            b.high[i] = box.upper(i) - w.x[i];
            outside = outside || w.p[i] < b.low[i] || w.p[i] > b.high[i];
        }
        if (!outside) return;
        Box<T>(b.low, b.high).clip(w.p);
        projected = w.p;
        const bool found = minimise_in_box<Linalg>(w.h, shift, w.g, b, w.p);
        const T fall = w.p.allFinite() ? model_fall(w.p) : T(-1), other = model_fall(projected);
        full = full && found && fall >= other;
        step.predicted = fall;
        if (!(fall >= other)) {
            w.p = projected;
            step.predicted = other;
        }
        step.length = norm(w.p);
    }
    T model_fall(const Vector<T>& p) {
        w.trust.u.noalias() = w.h.template selfadjointView<Eigen::Lower>() * p;
        return -(w.g.dot(p) + p.dot(w.trust.u) / 2);
    }

    enum class Trial { accepted, worse, aborted, converged, stuck, unbounded };

    // Evaluates x + p. `ratio` is the actual reduction over the predicted one.
    Trial attempt(T predicted, T length, T& ratio) {
        to_trial();
        ratio = -1;
        if ((w.xn.array() == w.x.array()).all()) return Trial::stuck;
        if (!w.xn.allFinite()) return Trial::worse;
        T fn;
        ++s.nfev;
        if (!f.value(w.xn.data(), fn)) return Trial::aborted;
        if (fn == -std::numeric_limits<T>::infinity()) {
            w.x.swap(w.xn);
            value = fn;
            return Trial::unbounded;
        }
        blocked = !std::isfinite(fn);
        if (blocked) return Trial::worse;
        const bool below_rounding = predicted <= 4 * epsilon<T> * std::max(std::abs(value), std::abs(fn));
        const bool small = full && !idle && length <= o.xtol * norm(w.x);
        ratio = (value - fn) / predicted;
        if (below_rounding || small) {
            // f cannot tell; the gradient can: it has fallen, or grows steeper along p.
            ++s.njev;
            if (!f.gradient(w.xn.data(), w.gn.data())) return Trial::aborted;
            const T rounding = 2 * epsilon<T> * std::abs(value);
            const bool better =
                w.gn.allFinite() && (fn < value || (fn <= value + rounding &&
                                                    (slopes_there() <= norm(w.g) / 2 || w.gn.dot(w.p) < w.g.dot(w.p))));
            if (better) move(fn);
            if (small) return Trial::converged;
            ratio = better ? T(1) : T(-1);
            return better ? Trial::accepted : Trial::stuck;
        }
        if (!(fn < value)) return Trial::worse;
        ++s.njev;
        if (!f.gradient(w.xn.data(), w.gn.data())) return Trial::aborted;
        if (!w.gn.allFinite()) return Trial::worse;
        move(fn);
        return Trial::accepted;
    }

    Status conclude(Trial trial) {
        switch (trial) {
        case Trial::aborted: return Status::aborted;
        case Trial::converged: return Status::step;
        case Trial::unbounded: return Status::unbounded;
        case Trial::stuck:
            if (blocked) return Status::nonfinite;
            break;
        default: return Status::limit;
        }
        // No representable point is lower. At a saddle that would not be a result.
        if (!definite) {
            if (!known_lambda) eigenvalue();
            if (lambda < -level()) {
                const Outcome outcome = leave_saddle();
                if (outcome == Outcome::ended) return Status::aborted;
                if (outcome == Outcome::unbounded) return Status::unbounded;
                if (outcome == Outcome::moved) return Status::limit;
                if (lambda < -level()) return Status::saddle;
            }
        }
        return unless_wrong();
    }

    // No step lowers f: Status::precision, or Status::derivative if g is not the gradient. Status::limit: a better
    // gradient by differences is available, so continue.
    Status unless_wrong() {
        if (norm(w.g) <= std::sqrt(epsilon<T>) * first) return Status::precision;
        T lowest = value;
        Vector<T>& best = w.trust.z;
        const auto at = [&](const Vector<T>& point, T& f_there) {
            ++s.nfev;
            if (!f.value(point.data(), f_there)) return false;
            if (f_there < lowest) {
                lowest = f_there;
                best = point;
            }
            return true;
        };
        w.t = -w.g;
        const Agreement agreement = judge_minimum(w.x, box ? w.whole_g : w.g, w.t, value, value_error<T>(f), w.xn,
                                                  w.trust.u, s.disagreement, at, box);
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
        if (!refined && !(agreement == Agreement::holds && useful))
            return agreement == Agreement::holds ? Status::precision : Status::derivative;
        gtol = gradient_tolerance(f, o.gtol, o.keep_gtol);
        most = path = radius = alpha = 0;
        w.most.setZero();
        return Status::limit;
    }

    void eigenvalue() {
        w.tri.q = w.h;
        w.tri.compute();
        lambda = w.tri.smallest();
        known_lambda = true;
    }

    // The smallest eigenvalue of a large H from a Krylov space of H^-1 (Lanczos), where its inverse is the largest: a
    // hundredth of the work of a tridiagonalisation. An indefinite H is shifted, by little more than is needed to make
    // it definite. Runs at the end, so it may allocate.
    bool inverse_lanczos() {
        constexpr int most = 60;
        T shift = 0;
        while (!factor(shift)) {
            if constexpr (!Linalg::blocked) return false;
            shift = std::max(2 * shift, below(shift) + T(1e-3) * size);
            if (!std::isfinite(shift)) return false;
        }
        Matrix<T> basis(w.n, most);
        Tridiagonal<T> small;
        for (int i = 0; i < w.n; ++i) w.t[i] = T(1) + T(0.5) * std::sin(T(i) * T(1.7) + T(0.3));
        w.t /= norm(w.t);
        small.resize(most);
        small.d.setZero();
        small.e.setZero();
        T before = 0;
        for (int k = 0; k < most; ++k) {
            basis.col(k) = w.t;
            w.p = w.t;
            Linalg::cholesky_solve(w.l, w.p);
            small.d[k] = -w.t.dot(w.p);
            for (int twice = 0; twice < 2; ++twice)
                for (int i = 0; i <= k; ++i) w.p -= basis.col(i).dot(w.p) * basis.col(i);
            const T beta = norm(w.p);
            if (!std::isfinite(beta)) return false;
            small.measure();
            const T largest_inverse = -small.smallest();
            lambda = T(1) / largest_inverse;
            if (!(lambda > 0)) return false;
            lambda -= shift;
            if (std::abs(largest_inverse - before) <= 4 * epsilon<T> * largest_inverse) break;
            if (!(beta > epsilon<T> * largest_inverse)) break;
            if (k + 1 == most) {
                if (shift > 0) return false;
                break;
            }
            before = largest_inverse;
            small.e[k] = -beta;
            w.t = w.p / beta;
        }
        known_lambda = true;
        return true;
    }

    // Whether H is singular within its error, and g has no part in its null space beyond errors. Then p becomes the
    // shortest step, by (H + 2 level I) p = -g: the errors of H and g alone would decide any part of it in the null
    // space. H has no eigenvalue far above `level` along some direction. Without success w.l is no factor of H.
    bool shortest_step(TrustStep<T>& step) {
        const T shift = 2 * level();
        if (!(shift > 0) || !factor(shift)) return false;
        newton_direction();
        step.shift = shift;
        step.length = norm(w.p);
        step.predicted = -w.g.dot(w.p) / 2;
        if (!(radius <= 0 || step.length <= radius) || !(step.predicted > 0)) return false;
        // What (shift / (H + shift I))^4 leaves of g is its part in the null space, which the error of H turns a
        // little.
        Vector<T>& z = w.trust.z;
        z = -w.p;
        for (int i = 0; i < 3; ++i) {
            z *= shift;
            Linalg::cholesky_solve(w.l, z);
        }
        size_of_slopes(w.xn);
        w.xn += w.g.cwiseAbs();
        return shift * norm(z) <= slope_error() * norm(w.xn) + hessian_error() * norm(w.g);
    }

    // Whether the full step p lies along directions whose curvature may be an error of H, whose norm is below that of H
    // times its relative error.
    bool unsure(T length) const { return !(-w.g.dot(w.p) > 4 * hessian_error() * size * length * length); }

    // The relative error of slopes.
    T slope_error() const {
        T error = T(w.n) * epsilon<T>;
        if constexpr (requires { f.gradient_error(); }) error = std::max(error, T(f.gradient_error() / 64));
        return error;
    }

    // Whether the steps of one-sided differences of f are longer than the way to a stationary point.
    bool within_a_difference() const {
        if constexpr (requires { f.gradient_step(w.x.data(), 0); }) {
            for (int k = 0; k < w.n; ++k) {
                const T curvature = w.h.row(k).template lpNorm<1>();
                if (!(std::abs(w.g[k]) <= f.gradient_step(w.x.data(), k) * curvature)) return false;
            }
            return true;
        }
        return false;
    }

    Status trust_step() {
        if constexpr (Linalg::blocked)
            if (Linalg::blocked_order(w.n)) return shifted_step();
        T newton_length = -1;
        bool tridiagonal = known_lambda;
        bool singular = !definite;
        for (int tries = 0; tries < 200; ++tries) {
            TrustStep<T> step;
            if (definite && newton_length < 0) {
                newton_direction();
                w.t = w.p;
                newton_length = norm(w.p);
                singular = unsure(newton_length);
            }
            if (singular && shortest_step(step)) {
                if (radius <= 0) radius = std::max(first_radius(), step.length);
                full = false;
            } else if (definite && std::isfinite(newton_length) && (radius <= 0 || newton_length <= radius)) {
                w.p = w.t;
                step.length = newton_length;
                step.predicted = -w.g.dot(w.p) / 2;
                full = true;
                if (radius <= 0) radius = newton_length;
            } else {
                full = false;
                if (!tridiagonal) {
                    eigenvalue();
                    tridiagonal = true;
                }
                if (radius <= 0) radius = first_radius();
                step = trust_region_step(w.tri, lambda, level(), w.g, radius, w.trust, w.p);
            }
            if (box) bend(step.shift, step);
            if (!full && (!(step.predicted > 0) || !w.p.allFinite())) {
                radius /= 4;
                if (!(radius > std::numeric_limits<T>::min())) return conclude(Trial::stuck);
                continue;
            }
            T ratio;
            const Trial trial = attempt(step.predicted, step.length, ratio);
            adapt(ratio, step.length);
            if (trial == Trial::worse) continue;
            return conclude(trial);
        }
        return conclude(Trial::stuck);
    }

    // The same for large matrices, for which a few factorisations take less time than one reduction to tridiagonal
    // form. Each trial of lambda is one factorisation (More and Sorensen, section 3); the first is the lambda of the
    // last step.
    Status shifted_step() {
        T low = 0, high = std::numeric_limits<T>::infinity();
        T trial_shift = 0, length = -1;
        const T g_norm = norm(w.g);
        if (!definite) low = std::max(below(0), -w.h.diagonal().minCoeff());
        bool factored = definite;  // w.l is that of trial_shift, and w.p the step
        if (definite) length = solve_shifted();
        if (definite ? unsure(length) : low <= 2 * level()) {
            TrustStep<T> step;
            if (shortest_step(step)) {
                if (radius <= 0) radius = std::max(first_radius(), step.length);
                full = false;
                if (box) bend(step.shift, step);
                T ratio = -1;
                const Trial trial = step.predicted > 0 ? attempt(step.predicted, step.length, ratio) : Trial::worse;
                adapt(ratio, step.length);
                if (trial != Trial::worse) return conclude(trial);
            }
            if (definite) {
                factor(0);
                length = solve_shifted();
            }
        }
        bool begun = definite;  // trial_shift has been chosen
        for (int tries = 0; tries < 200; ++tries) {
            if (radius <= 0) radius = definite && std::isfinite(length) ? length : first_radius();
            high = std::max(low, g_norm / radius + size);
            // If lambda is large relative to the eigenvalues, lambda |p| is near |g|.
            guess = alpha * (last_length / radius) * (g_norm / last_gradient);
            if (!begun) trial_shift = between(low, high);
            begun = true;
            TrustStep<T> step;
            bool found = false;
            for (int i = 0; i < 40 && !found; ++i) {
                if (!factored) {
                    if (factor(trial_shift)) {
                        length = solve_shifted();
                        factored = true;
                    } else {
                        low = std::max({low, trial_shift, below(trial_shift)});
                        trial_shift = between(low, high);
                        continue;
                    }
                }
                const bool inside = trial_shift == 0 && length <= radius;
                found = inside || std::abs(length - radius) <= radius / 4;
                if (found) {
                    step.length = length;
                    step.predicted = (trial_shift * length * length - w.g.dot(w.p)) / 2;
                    full = trial_shift == 0;
                    break;
                }
                if (length < radius) {
                    high = std::min(high, trial_shift);
                    if (!definite && (found = lengthen(trial_shift, length, low, step))) break;
                } else {
                    low = std::max(low, trial_shift);
                }
                // Newton's iteration on 1/|p| - 1/radius.
                w.t = w.p;
                Linalg::forward(w.l.data(), w.n, w.t.data());
                const T next = trial_shift + length * (length / w.t.squaredNorm()) * ((length - radius) / radius);
                const T warm = trial_shift == 0 && guess > next && guess < high ? guess : next;
                trial_shift = warm > low && warm < high ? warm : between(low, high);
                factored = false;
            }
            if (!found || !(step.predicted > 0) || !w.p.allFinite()) {
                radius /= 4;
                if (!(radius > std::numeric_limits<T>::min())) return conclude(Trial::stuck);
                continue;
            }
            w.t = w.p;
            if (box) bend(trial_shift, step);
            if (!(step.predicted > 0)) {
                w.p = w.t;
                radius /= 4;
                if (!(radius > std::numeric_limits<T>::min())) return conclude(Trial::stuck);
                continue;
            }
            T ratio;
            const Trial trial = attempt(step.predicted, step.length, ratio);
            adapt(ratio, step.length);
            if (trial != Trial::worse) {
                alpha = trial_shift;
                last_length = step.length;
                last_gradient = g_norm;
                return conclude(trial);
            }
            // The radius is smaller, so lambda is larger; p and its length are still those of trial_shift.
            w.p = w.t;
        }
        return conclude(Trial::stuck);
    }

    // More and Sorensen, section 4: shrink below 1/4, grow above 3/4 if the radius limited the step.
    void adapt(T ratio, T length) {
        if (ratio < T(0.25)) radius = std::min(radius, length) / 4;
        const bool wider = ratio > T(0.75) && 2 * length > radius;
        doublings = wider ? doublings + 1 : 0;
        if (wider) radius = wider_radius(length, doublings);
    }

    // p = -(L L')^-1 g, and its length.
    T solve_shifted() {
        newton_direction();
        return norm(w.p);
    }

    // A bound of -lambda_min from the leading minor of H + shift I that is not positive: with its pivot -delta, v'(H +
    // shift I)v = -delta for v = (-L^-T l, 1).
    T below(T shift) {
        const int k = minor - 1;
        for (int j = 0; j < k; ++j) w.t[j] = -w.l(k, j);
        w.t[k] = 1;
        for (int j = k - 1; j >= 0; --j) {
            const T sum = w.l.col(j).segment(j + 1, k - 1 - j).dot(w.t.segment(j + 1, k - 1 - j));
            w.t[j] = (w.t[j] - sum) / w.l(j, j);
        }
        const T square = w.t.head(k + 1).squaredNorm(), delta = -w.l(k, k);
        const T bound = shift + delta / square;
        return std::isfinite(bound) ? bound : shift;
    }

    // A lambda in an interval that contains the root: from the last step, or else near its lower end, since a matrix
    // that is not positive definite fails after a part of its factorisation.
    T between(T low, T high) const {
        if (guess > low && guess < high) return guess;
        const T middle = std::max(std::sqrt(low * high), low + (high - low) / 100);
        return low > 0 ? std::min(2 * low, middle) : middle;
    }

    // The hard case: the step is short of the radius, and H + lambda I nearly singular. A multiple of the eigenvector
    // is added, as trust_region_step does; lambda_min is no longer above lambda minus its Rayleigh quotient.
    bool lengthen(T shift, T length, T& low, TrustStep<T>& step) {
        for (int i = 0; i < w.n; ++i) w.t[i] = T(1) + T(0.5) * std::sin(T(i) * T(1.7) + T(0.3));
        w.t /= norm(w.t);
        T curvature = 0;
        for (int i = 0; i < 3; ++i) {
            w.xn = w.t;
            Linalg::cholesky_solve(w.l, w.t);
            const T size_now = norm(w.t);
            if (!std::isfinite(size_now) || !(size_now > 0)) return false;
            curvature = w.xn.dot(w.t) / (size_now * size_now);  // u'(H + shift I)u
            w.t /= size_now;
        }
        low = std::max(low, shift - curvature);
        const T along = w.p.dot(w.t), rest = (radius - length) * (radius + length);
        const T root = std::sqrt(along * along + rest);
        const T tau = rest / (along + (along < 0 ? -root : root));
        const T energy = shift * radius * radius - w.g.dot(w.p);
        if (!(tau * tau * curvature <= energy / 10)) return false;
        w.p += tau * w.t;
        w.t.noalias() = w.h.template selfadjointView<Eigen::Lower>() * w.p;
        step.length = norm(w.p);
        step.predicted = -(w.g.dot(w.p) + w.p.dot(w.t) / 2);
        full = false;
        return true;
    }

    // If no other length is known: the distance to the origin, else the length of the Cauchy step.
    T first_radius() const {
        const T x_norm = norm(w.x);
        if (x_norm > 0) return x_norm;
        const T r = norm(w.g) / size;
        return r > 0 && std::isfinite(r) ? r : T(1);
    }

    // H + alpha I (equation 8.28): alpha falls to 0 while the model is right and H is positive definite.
    Status levenberg_step() {
        const T unit = size > 0 ? size : norm(w.g) / reach();
        if (alpha == 0) {
            if (definite) newton_direction();
            if (!definite || unsure(norm(w.p))) {
                TrustStep<T> step;
                if (shortest_step(step)) {
                    full = false;
                    if (box) bend(step.shift, step);
                    T ratio;
                    const Trial trial = step.predicted > 0 ? attempt(step.predicted, step.length, ratio) : Trial::worse;
                    if (trial != Trial::worse) return conclude(trial);
                }
                if (definite) factor(0);
            }
        }
        for (int tries = 0; tries < 400; ++tries) {
            if (alpha > 0 || !definite) {
                if (!definite && alpha == 0) alpha = T(1e-3) * unit;
                w.l = w.h;
                w.l.diagonal().array() += alpha;
                while (!Linalg::cholesky(w.l)) {
                    alpha = std::max(2 * alpha, epsilon<T> * unit);
                    if (!std::isfinite(alpha)) return conclude(Trial::stuck);
                    w.l = w.h;
                    w.l.diagonal().array() += alpha;
                }
            }
            newton_direction();
            full = alpha == 0;
            TrustStep<T> step;
            step.length = norm(w.p);
            // -(g'p + p'Hp/2) with Hp = -g - alpha p.
            step.predicted = (alpha * step.length * step.length - w.g.dot(w.p)) / 2;
            T ratio = -1;
            Trial trial = Trial::worse;
            if (box) bend(alpha, step);
            if (!box || step.predicted > 0) trial = attempt(step.predicted, step.length, ratio);
            if (ratio > T(0.75)) {
                alpha /= 8;
                if (definite && alpha < epsilon<T> * unit) alpha = 0;
            } else if (ratio < T(0.25)) {
                alpha = std::max(4 * alpha, T(1e-3) * unit);
            }
            if (trial == Trial::worse) continue;
            return conclude(trial);
        }
        return conclude(Trial::stuck);
    }

    // Lengths to try along a direction: the trust region's, or what the point itself suggests.
    T reach() const {
        if (radius > 0) return radius;
        const T x_norm = norm(w.x);
        return x_norm > 0 ? x_norm : T(1);
    }

    // More than the rounding of f near a point. If terms of f cancel, that is the rounding of the terms, such as x'Hx.
    T least_fall(const Vector<T>& point) const {
        const Matrix<T>& h = box ? w.whole_h : w.h;
        T terms = 0;
        for (int k = 0; k < w.n; ++k) terms += std::abs(point[k]) * h.col(k).cwiseAbs().dot(point.cwiseAbs());
        return 16 * epsilon<T> * (std::abs(value) + terms);
    }

    // Whether x + t d is lower by more than f's rounding and `least`. The lower one of both sides is taken, or with
    // `onward` a point farther on.
    Outcome try_both(const Vector<T>& d, T t, T least = 0, bool onward = false) {
        T best = value;
        T best_t = 0;
        // False to abort; sets whether the point is the lowest.
        const auto at = [&](T side, bool& lower) {
            lower = false;
            w.xn = w.x + side * d;
            if (box) box.clip(w.xn);
            if (!w.xn.allFinite() || (w.xn.array() == w.x.array()).all()) return true;
            T fn;
            ++s.nfev;
            if (!f.value(w.xn.data(), fn)) return false;
            lower = fn < best && fn < value - std::max(least, least_fall(w.xn));
            if (!lower) return true;
            best = fn;
            best_t = side;
            return true;
        };
        bool lower;
        for (const T side : {t, -t})
            if (!at(side, lower)) return Outcome::ended;
        if (best_t == 0) return Outcome::rejected;
        do {
            if (best == -std::numeric_limits<T>::infinity()) {
                w.x += best_t * d;
                if (box) box.clip(w.x);
                value = best;
                return Outcome::unbounded;
            }
            if (onward && !at(4 * best_t, lower)) return Outcome::ended;
        } while (onward && lower);
        w.xn = w.x + best_t * d;
        w.p = best_t * d;
        if (box && box.clip(w.xn)) w.p = w.xn - w.x;
        ++s.njev;
        if (!f.gradient(w.xn.data(), w.gn.data())) return Outcome::ended;
        if (!w.gn.allFinite()) return Outcome::rejected;
        move(best);
        radius = std::max(radius, std::abs(best_t));
        return Outcome::moved;
    }

    // With bounds, lambda then no longer counts variables that are at a bound without a slope, if only they make it
    // negative and no lower point is found.
    Outcome leave_saddle() {
        w.tri.eigenvector(lambda, w.trust.u);
        w.tri.from(w.trust.u);
        w.t = w.trust.u;
        // However short the reach is, first go so far that the fall |lambda| t^2 / 2 is eight times what try_both asks
        // for.
        T t = std::max(reach(), 4 * std::sqrt(least_fall(w.x) / -lambda));
        for (int i = 0; i < 60; ++i, t /= 4) {
            const Outcome outcome = try_both(w.t, t);
            if (outcome != Outcome::rejected) return outcome;
        }
        if (!box) return Outcome::rejected;
        bool any = false;
        for (int k = 0; k < w.n; ++k) {
            if (!box.on_bound(k, w.x[k]) || box.holds(k, w.x[k], w.whole_g[k])) continue;
            if (w.h.row(k).isZero(T(0)) || w.touching[k]) continue;
            w.touching[k] = true;
            set_apart(k, size > 0 ? size : T(1));
            any = true;
        }
        if (!any) return Outcome::rejected;
        eigenvalue();
        return lambda < -level() ? leave_saddle() : Outcome::rejected;
    }

    // The second derivative does not tell, so this tries points along the eigenvector and the axes. Where f falls ever
    // less, to a limit, this ends when only rounding of the first value is left to gain.
    Outcome leave_flat() {
        w.tri.eigenvector(lambda, w.trust.u);
        w.tri.from(w.trust.u);
        w.t = w.trust.u;
        for (int axis = -1; axis < w.n; ++axis) {
            if (axis >= 0) {
                if (!(std::abs(w.h(axis, axis)) <= level())) continue;
                w.t.setZero();
                w.t[axis] = 1;
            }
            for (const T share : {T(1), T(1e-1), T(1e-2), T(1e-4)}) {
                const Outcome outcome = try_both(w.t, reach() * share, 16 * epsilon<T> * std::abs(first_value), true);
                if (outcome != Outcome::rejected) return outcome;
            }
        }
        return Outcome::rejected;
    }

    Problem& f;
    const NewtonOptions<T>& o;
    NewtonWork<T>& w;
    Monitor& watch;
    const Box<T> box;
    bool parted = false;  // w.g is the part of the gradient that no bound holds
    Summary<T> s;
    T value = std::numeric_limits<T>::quiet_NaN(), radius = 0, alpha = 0, most = 0, size = 0, lambda = 0;
    T gtol = 0, first = 0, first_value = 0, path = 0;  // |g| and f of the start; the distance so far
    bool definite = false, known_lambda = false, have_hessian = false;
    T guess = 0, last_length = 0, last_gradient = 1;  // of shifted_step
    int minor = 0;                                    // of the last matrix without a factor, by shifted_step
    int doublings = 0;                                // of the radius, in a row
    bool idle = false;                                // a variable is held
    bool blocked = false;                             // f is not finite at the last trial
    bool full = false;                                // p is the step of the plain method
};

template <class T, class Linalg = InlineLinalg, class Problem, class Monitor = NoMonitor>
Summary<T> newton(Problem& problem, const NewtonOptions<T>& options, NewtonWork<T>& work, Monitor&& monitor = {}) {
    return Newton<T, Problem, std::remove_reference_t<Monitor>, Linalg>(problem, options, work, monitor).run();
}

}  // namespace adaptk::solve
