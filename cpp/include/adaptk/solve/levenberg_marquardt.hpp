// Levenberg and Marquardt's method for nonlinear least squares: half the sum of C^2 rho(r_i^2 / C^2).
//
//   J. J. More, The Levenberg-Marquardt algorithm: implementation and theory, LNM 630 (1978)
//   D. G. Anderson, Iterative procedures for nonlinear integral equations, J. ACM 12 (1965): the last steps
//   M. K. Transtrum, J. P. Sethna, Improvements to the Levenberg-Marquardt algorithm, arXiv:1201.5885 (2012)
//   B. Triggs et al., Bundle adjustment: a modern synthesis (2000), section 4.3: robust losses
//   C. Kanzow, N. Yamashita, M. Fukushima, J. Comput. Appl. Math. 172 (2004): bounds by projection
//
// One QR factorisation with column pivoting of the scaled Jacobian J D^-1 is used for all dampings that are tried. D
// holds the largest norm so far of each column. The damping is chosen so that |D p| stays within a radius. With y = D p
// and |.| the 2-norm, it ends with
//   gradient   |J_j' r| <= gtol |J_j| |r| for every j that no bound holds
//   reduction  the actual and the predicted relative reduction of |r|^2 are <= ftol, and actual <= 2 predicted
//   step       |D p| <= xtol |D x|
//   both       reduction and step
//   precision  no step changes x, or the damping has left the range of the type
//   derivative steps shrink to nothing though J promises a reduction, and differences of the cost contradict J
// and then polishes by Gauss-Newton steps, each from a new factorisation, as long as |D p| falls by at least a tenth
// and |r| does not grow by more than its rounding. Near the solution |D p| estimates the error of x, so this gives x
// the digits that J and r have, whatever the tolerances were. Without bounds, two of these steps are mixed: if
// residuals are not small, steps shrink by a constant ratio, and the sum of all of them follows from two.
//
// Residuals and Jacobians whose squares could overflow or underflow are scaled by a power of two.
#pragma once

#include "adaptk/solve/agreement.hpp"
#include "adaptk/solve/blocked_qr.hpp"
#include "adaptk/solve/losses.hpp"

namespace adaptk::solve {

template <class T> struct LevenbergMarquardtOptions {
    T ftol = sizeof(T) == 4 ? T(1e-5) : T(1e-10);
    T xtol = sizeof(T) == 4 ? T(1e-5) : T(1e-10);
    T gtol = sizeof(T) == 4 ? T(1e-6) : T(1e-12);
    // Whether to keep these tolerances if residuals have fewer exact digits than T; otherwise they are raised to
    // float32's.
    bool keep_ftol = false, keep_xtol = false, keep_gtol = false;
    T factor = 1;  // the first radius, relative to |D x|
    std::int64_t max_evaluations = 1000;
    Loss loss = Loss::linear;
    T loss_scale = 1;  // C
    bool bounded = false;
    bool fixed_scale = false;  // D stays what the caller put into the workspace
    int accelerate = -1;       // geodesic acceleration: 0 never, 1 always, -1 if it has paid off
    T noise = epsilon<T>;      // the relative error of residuals
    bool polish = true;
};

template <class T> struct LevenbergMarquardtWork {
    void resize(int m_, int n_) {
        m = m_;
        n = n_;
        for (Vector<T>* v : {&x, &trial, &step, &y, &row, &d, &divisor, &lower, &upper, &g, &column_norm, &correction,
                             &plain_trial, &right_side, &step_before, &end_before})
            v->resize(n);
        for (Vector<T>* v : {&r, &trial_r, &probe_r, &weighted_r, &qt_r, &weight, &root_slope}) v->resize(m);
        at = nullptr;
        qr.resize(m, n);
        damped.resize(n, n);
        fixed.setConstant(n, false);
        factored = false;
        lower.setConstant(-std::numeric_limits<T>::infinity());
        upper.setConstant(std::numeric_limits<T>::infinity());
    }
    int m = 0, n = 0;
    bool factored = false;  // at the end, qr.r is R of J D^-1, and D the divisors
    // The best point: x, its residuals and gradient, and the address of its Jacobian, in `own` or in memory of the
    // problem.
    Vector<T> x, r, g;
    T* at = nullptr;
    Rows<T> own;
    Eigen::Map<Rows<T>> j() const { return {at, m, n}; }
    Vector<T> lower, upper;
    // The point that is tried: x + step, and its residuals.
    Vector<T> trial, step, trial_r;
    // D, D with 1 for 0, and the columns' norms for the cosines.
    Vector<T> d, divisor, column_norm;
    // The factorisation of J D^-1, Q'r, the triangle with the damping eliminated, and the step in its order: y = P'D p.
    PivotedQr<T> qr;
    Vector<T> qt_r, y, right_side, row;
    Rows<T> damped;
    // For robust losses: the rows' weights, the residuals that go with them, and sqrt(rho'); the weighted rows of large
    // problems.
    Vector<T> weight, weighted_r, root_slope;
    Rows<T> weighted;
    // For geodesic acceleration: the second-order part of the step, and the trial point without it. For both and for
    // probes: residuals at some other point.
    Vector<T> correction, plain_trial, probe_r;
    // The last Gauss-Newton step and where it led.
    Vector<T> step_before, end_before;
    Eigen::Array<bool, Eigen::Dynamic, 1> fixed;  // by a bound
};

// w.x holds the start (within the bounds), and at the end the best point found, with its residuals in w.r and its
// Jacobian in w.j().
template <class T, class Linalg, class Problem, class Monitor> class LevenbergMarquardt {
  public:
    LevenbergMarquardt(Problem& problem, const LevenbergMarquardtOptions<T>& options, LevenbergMarquardtWork<T>& work,
                       Monitor& monitor)
        : f(problem), o(options), w(work), watch(monitor), ftol(options.ftol), xtol(options.xtol), gtol(options.gtol),
          loss_scale(options.loss_scale) {
        expect_noise(options.noise);
    }

    Summary<T> run() {
        s.status = start();
        if (s.status == Status::limit) s.status = iterate();
        if (o.polish && s.status > Status::limit && length > 0 && w.n > 0) finish();
        if (w.factored && w.at != nullptr && outdated && !refresh()) s.status = Status::nonfinite;
        s.value = half(cost) / unit / unit;
        s.gradient = have_jacobian ? reported_gradient() : std::numeric_limits<T>::quiet_NaN();
        if (unit != 1) {
            w.r /= unit;
            if (w.at != nullptr) w.j() /= unit;
            w.g = w.g / unit / unit;
        }
        return s;
    }

  private:
    // More 1978, section 7, with the numbers of MINPACK's lmder: a ratio of actual to predicted reduction below
    // poor_ratio shrinks the radius, above good_ratio lets it grow. The damping is accepted if |D p| is within
    // radius_tolerance of the radius.
    static constexpr T poor_ratio = T(0.25), good_ratio = T(0.75);
    static constexpr T least_shrink = T(0.1), most_shrink = T(0.5), growth = T(2);
    static constexpr T radius_tolerance = T(0.1);
    static constexpr int most_dampings = 10;
    // Transtrum and Sethna 2012, section 5: the step of the second derivative along p, and equation 15: the largest
    // 2 |a| / |p|.
    static constexpr T geodesic_probe = T(0.1), geodesic_limit = T(0.75);
    // Measured on NIST's and More, Garbow and Hillstrom's problems: there is nothing to gain if plain steps converge
    // fast, a narrow valley shows only after some iterations, and the two extra evaluations must gain half a step's
    // fall.
    static constexpr int geodesic_patience = 8, geodesic_confidence = 3;
    static constexpr T geodesic_gain = T(0.5);
    // For polishing: the ratio below which a step must shrink, the longest step that counts as near the solution, and
    // the largest share of mixing. How short a step may be left out depends on how exact J is.
    static constexpr int most_polishing = 100;
    static constexpr T polishing_shrink = T(0.9), polishing_reach = T(1e-2), most_mixing = T(10);
    static constexpr T last_step_of_differences = T(1e-3);
    // A large factorisation is used at the next point too if the Gauss-Newton step was this short relative to |D x| and
    // to the step before, and the reduction this near to the predicted one. J'r is computed from the new J, so only the
    // rate of convergence can suffer, by the change of J'J. If steps do not continue to shrink this fast, the new J is
    // factored at once.
    static constexpr T near_step = T(1e-3), near_shrink = T(0.25), near_ratio = T(0.25);
    // If J predicts a larger relative reduction of |r|^2 than this, but no step achieves it however short, J may be
    // wrong.
    static constexpr T broken_promise = T(1e-6);
    // Tolerances for residuals with few exact digits.
    static constexpr T coarse_tolerance = T(1e-5), coarse_gtol = T(1e-6);

    static constexpr bool in_place = requires(Problem& p, const T* x) { p.jacobian_in_place(x, x); };

    struct Trial {
        T scaled_length = 0;  // |D p|
        T predicted = 0, actual = -1, ratio = -1;
        T cost = 0, length = 0;
        bool finite = false;
        bool full = false;  // the Gauss-Newton step, undamped
    };

    static T half(T c) { return c / 2; }

    void expect_noise(T error) {
        noise = error;
        polish_tolerance = (sizeof(T) == 4 || noise > epsilon<T> ? 512 : 2048) * noise;
        if (!(noise > epsilon<T>)) return;
        if (!o.keep_ftol) ftol = std::max(ftol, coarse_tolerance);
        if (!o.keep_xtol) xtol = std::max(xtol, coarse_tolerance);
        if (!o.keep_gtol) gtol = std::max(gtol, coarse_gtol);
    }

    // r = residuals at x, in the run's units; false to abort.
    bool evaluate(const Vector<T>& x, Vector<T>& r) {
        ++s.nfev;
        if (!f.residuals(x.data(), r.data())) return false;
        if (unit != 1) r *= unit;
        return true;
    }

    // The sum of C^2 rho(r^2 / C^2), and its root, which does not overflow or underflow for the linear loss.
    bool measure(const Vector<T>& r, T& sum, T& root) const {
        if (o.loss == Loss::linear) {
            root = norm(r);
            sum = root * root;
            return std::isfinite(root);
        }
        sum = 0;
        for (int i = 0; i < w.m; ++i) {
            const T q = r[i] / loss_scale;
            sum += loss_value(o.loss, q * q).rho;
        }
        sum *= loss_scale * loss_scale;
        root = std::sqrt(sum);
        return std::isfinite(root);
    }

    Status start() {
        if constexpr (!in_place) w.own.resize(w.m, w.n);
        if (!evaluate(w.x, w.r)) return Status::aborted;
        cost = std::numeric_limits<T>::quiet_NaN();
        const T size = norm(w.r);
        if (!std::isfinite(size) && !w.r.allFinite()) return Status::nonfinite;
        unit = unit_of(std::isfinite(size) ? size : largest(w.r));
        if (unit != 1) {
            w.r *= unit;
            loss_scale *= unit;
        }
        if (!measure(w.r, cost, length)) return Status::nonfinite;
        if (!o.fixed_scale) {
            w.d.setZero();
        } else if (unit != 1) {
            w.d *= unit;
        }
        return Status::limit;
    }

    // A power of two that brings numbers far from 1 near 1, else 1.
    static T unit_of(T size) {
        constexpr int far = std::numeric_limits<T>::max_exponent / 8;
        if (!(size > 0) || std::abs(std::ilogb(size)) <= far) return 1;
        return std::ldexp(T(1), std::min(-std::ilogb(size), std::numeric_limits<T>::max_exponent - 1));
    }

    Status iterate() {
        damping = 0;
        T step_norm = std::numeric_limits<T>::quiet_NaN();
        bool near = false;
        for (;; ++s.nit) {
            if (const Status status = linearise(near); status != Status::limit) return status;
            if (const Signal signal = report(step_norm); signal != Signal::go) return ended(signal);
            if (length == 0 || cosine() <= gtol) return Status::gradient;
            promised = 0;
            for (bool accepted = false; !accepted;) {
                if (s.nfev >= o.max_evaluations) return Status::limit;
                if (radius <= 0) radius = first_radius();
                choose_damping();
                take(w.step);
                rejected = false;
                Trial t;
                t.scaled_length = scaled_norm(w.step);
                if (s.nfev == 1) radius = std::min(radius, t.scaled_length);
                if ((w.trial.array() == w.x.array()).all()) return unless_wrong(Status::precision);
                if (!attempt(t)) return Status::aborted;
                accepted = t.actual > 0;
                if (!accepted && outdated) {
                    if (!refresh()) return Status::nonfinite;
                    promised = 0;
                    continue;
                }
                const T x_norm = norm(w.x.cwiseProduct(w.d));
                resize_radius(t);
                if (accepted) {
                    step_norm = norm(w.trial - w.x);
                    const bool as_predicted = t.full && std::abs(t.ratio - 1) <= near_ratio;
                    near = as_predicted && stays_near(t.scaled_length, last_step, x_norm);
                    accept(t);
                }
                rejected = !accepted;
                const bool reduced = t.finite && std::abs(t.actual) <= ftol && t.predicted <= ftol && t.ratio <= 2;
                const bool small = t.scaled_length <= xtol * x_norm;
                if (reduced || small) {
                    ++s.nit;
                    const Status end = reduced && small ? Status::both : reduced ? Status::reduction : Status::step;
                    if (rejected) return unless_wrong(end);
                    if (!refines())
                        if (const Status status = linearise(near); status != Status::limit) return status;
                    return end;
                }
                if (length == 0) break;
                if (!std::isfinite(damping) || !(radius > 0)) return unless_wrong(Status::precision);
            }
        }
    }

    Signal report(T step_norm) {
        return watch(Progress<T>{s.nit, half(cost) / unit / unit, step_norm, reported_gradient(), w.x.data(), w.n});
    }

    // In units of r, as |D x| is.
    T first_radius() const {
        const T size = o.factor * norm(w.x.cwiseProduct(w.divisor));
        return size > 0 ? size : o.factor * length;
    }

    // Evaluates x + p, with the second-order correction if that pays off; false to abort.
    bool attempt(Trial& t) {
        t.predicted = model_reduction();
        promised = std::max(promised, t.predicted);
        if (!evaluate(w.trial, w.trial_r)) return false;
        t.finite = measure(w.trial_r, t.cost, t.length);
        t.full = damping == 0 && !o.bounded;
        if (o.accelerate != 0 && t.finite && !accelerate(t)) return false;
        if (t.finite) t.actual = fall(t.length);
        if (t.predicted > 0) t.ratio = t.actual / t.predicted;
        return true;
    }

    void accept(const Trial& t) {
        mixable = t.full;
        if (t.full) {
            w.step_before = w.step;
            w.end_before = w.trial;
        }
        w.x.swap(w.trial);
        w.r.swap(w.trial_r);
        cost = t.cost;
        length = t.length;
        last_step = t.scaled_length;
    }

    // Shrinks by the minimiser of the parabola through |r|^2, its slope and |r|^2 at the trial point.
    void resize_radius(const Trial& t) {
        if (!(t.ratio > poor_ratio)) {
            T shrink = least_shrink;
            if (t.finite && t.length < 10 * length) {
                const T slope = -directional();
                shrink = t.actual >= 0 ? most_shrink : slope / (2 * slope + t.actual);
                if (!(shrink > least_shrink)) shrink = least_shrink;
                if (shrink > most_shrink) shrink = most_shrink;
            }
            radius = shrink * std::min(radius, 10 * t.scaled_length);
            damping /= shrink;
        } else if (t.ratio > good_ratio || damping == 0) {
            radius = growth * t.scaled_length;
            damping /= growth;
        }
    }

    // Called when steps have shrunk to nothing. `status`, or Status::derivative if the reason is that J is not the
    // Jacobian of the residuals.
    Status unless_wrong(Status status) {
        if (refines() || !(promised > broken_promise)) return status;
        mixable = rejected = false;
        Vector<T>& lowest = w.end_before;  // with its residuals in trial_r
        T lowest_cost = cost, lowest_length = length;
        const auto at = [&](const Vector<T>& point, T& value) {
            value = std::numeric_limits<T>::quiet_NaN();
            if (o.bounded && (point.array() < w.lower.array() || point.array() > w.upper.array()).any()) return true;
            if (!evaluate(point, w.probe_r)) return false;
            T sum, root;
            if (!measure(w.probe_r, sum, root)) return true;
            value = half(sum);
            if (root < lowest_length) {
                lowest = point;
                w.trial_r = w.probe_r;
                lowest_cost = sum;
                lowest_length = root;
            }
            return true;
        };
        const Agreement agreement =
            judge_gradient(w.x, w.g, w.step, half(cost), noise, w.trial, w.correction, s.disagreement, at);
        if (agreement == Agreement::aborted) return Status::aborted;
        if (agreement == Agreement::fails) {
            status = Status::derivative;
            s.disagreement.claimed = s.disagreement.claimed / unit / unit;
            s.disagreement.found = s.disagreement.found / unit / unit;
        }
        if (lowest_length < length) {
            w.x.swap(lowest);
            w.r.swap(w.trial_r);
            cost = lowest_cost;
            length = lowest_length;
            if (const Status at_lowest = linearise(); at_lowest != Status::limit) return at_lowest;
        }
        return status;
    }

    // Whether a better Jacobian is available for polishing; then this one need not be updated.
    bool refines() const {
        if constexpr (requires { f.refine(); }) return o.polish && f.can_refine();
        return false;
    }

    void finish() {
        // If the Jacobian is computed by differences, switch to a better one.
        Status status = Status::limit;
        T least = polish_tolerance;
        if constexpr (requires { f.refine(); }) {
            if (f.refine()) {
                mixable = false;
                status = linearise();
                least = std::max(polish_tolerance, last_step_of_differences * std::sqrt(epsilon<T>));
            }
        }
        if (status == Status::limit) status = polish(least);
        if (status == Status::limit && overshot && ftol > epsilon<T>) {
            // x is not near enough for a full step, or the better Jacobian disagrees with the last one: take damped
            // steps to tighter tolerances, then polish once more.
            const T enough = std::sqrt(ftol);
            ftol *= std::sqrt(epsilon<T>);
            xtol *= std::sqrt(epsilon<T>);
            overshot = false;
            radius = std::max(radius, std::min(polishing_reach * norm(w.x.cwiseProduct(w.divisor)), first_radius()));
            status = iterate();
            if (status > Status::limit) {
                status = polish(least);
            } else if (status == Status::limit && promised > enough) {
                s.status = Status::limit;
            }
        }
        if (status < Status::limit) s.status = status;
    }

    // p'J'r / |r|^2, negative for a step that goes down.
    T directional() const { return (w.g.dot(w.step) / length) / length; }

    // y and p of the Gauss-Newton step.
    void full_step(int rank_now) {
        back_substitute(w.qr.r, w.qt_r, rank_now, w.y);
        unscale(w.y, w.step);
    }

    // p = -D^-1 P y.
    void unscale(const Vector<T>& y, Vector<T>& p) const {
        for (int k = 0; k < w.n; ++k) p[w.qr.order[k]] = -y[k] / w.divisor[w.qr.order[k]];
    }

    // |S'^-1 y / |y||^2 for a triangle S: minus the derivative of |y| by the damping, over |y|.
    template <class Triangle> T steepness(const Triangle& triangle, T size) {
        w.right_side = w.y / size;
        if constexpr (Linalg::blocked && std::is_same_v<Triangle, decltype(w.damped)>) {
            if (in_blocks) {
                // Row after row, the triangle is its transpose column after column.
                Linalg::forward(triangle.data(), w.n, w.right_side.data());
                return w.right_side.squaredNorm();
            }
        }
        transposed_solve(triangle, w.right_side);
        return w.right_side.squaredNorm();
    }

    // b becomes S'^-1 b; zeros of the diagonal give zeros; a damped triangle has none.
    template <class Triangle> void transposed_solve(const Triangle& triangle, Vector<T>& b) const {
        for (int i = 0; i < w.n; ++i) {
            T sum = b[i];
            for (int k = 0; k < i; ++k) sum -= triangle(k, i) * b[k];
            b[i] = triangle(i, i) != 0 ? sum / triangle(i, i) : T(0);
        }
    }

    // The damping for which |y| is within a tenth of the radius, or 0 if the Gauss-Newton step is inside it (More 1978,
    // algorithm 5.5): Newton's iteration on 1/|y| between bounds, each trial one elimination of sqrt(mu) I.
    void choose_damping() {
        const int rank_now = rank();
        T low = 0;
        if (rank_now == std::min(w.n, w.m) && w.m >= w.n) {
            full_step(rank_now);
            const T size = w.y.norm();
            if (size <= radius * (1 + radius_tolerance)) {
                damping = 0;
                undamped = true;
                return;
            }
            if (std::isfinite(size)) {
                // phi(0) / phi'(0) bounds the root from below: phi is convex.
                const T bound = (size - radius) / radius / steepness(w.qr.r, size);
                if (std::isfinite(bound)) low = bound;
            }
        }
        T gradient = 0;
        for (int k = 0; k < w.n; ++k)
            if (!w.fixed[k]) gradient = std::hypot(gradient, w.g[k] / w.divisor[k]);
        T high = gradient / radius;
        if (high == 0) high = std::numeric_limits<T>::min() / std::min(radius, T(0.1));
        damping = std::min(std::max(damping, low), high);
        if (damping == 0) damping = gradient / radius;
        T over_before = 0;
        for (int i = 0; i < most_dampings; ++i) {
            if (damping == 0) damping = std::max(std::numeric_limits<T>::min(), T(1e-3) * high);
            solve_damped();
            const T size = w.y.norm();
            const T over = size - radius;
            const bool stalls = low == 0 && over <= over_before && over_before < 0;
            if (std::abs(over) <= radius_tolerance * radius || stalls || i + 1 == most_dampings) break;
            over_before = over;
            const T move = over / radius / steepness(w.damped, size);
            if (over > 0) low = std::max(low, damping);
            if (over < 0) high = std::min(high, damping);
            damping = std::max(low, damping + move);
        }
    }

    // 1 - (|rn| / |r|)^2 without cancellation beyond that of the lengths.
    T fall(T trial_length) const {
        const T q = trial_length / length;
        return (T(1) - q) * (T(1) + q);
    }

    // Whether the last factorisation can be used again after a step of this |D p|.
    bool stays_near(T step, T before, T x_norm) const {
        if constexpr (Linalg::blocked)
            return in_blocks && blocks.squared() && o.loss == Loss::linear && !o.bounded && std::isfinite(before) &&
                   step <= near_step * x_norm && step <= near_shrink * before;
        return false;
    }
    // Factors the current Jacobian. False if it is not finite.
    bool refresh() {
        mixable = rejected = false;
        have_jacobian = factor();
        return have_jacobian;
    }

    // Updates the Jacobian, the scales, the set of variables that bounds hold, and the factorisation; if the step was
    // `near`, keeps the last factorisation. Returns Status::limit to continue.
    Status linearise(bool near = false) {
        ++s.njev;
        const T* raw = w.r.data();
        if (unit != 1) {
            w.probe_r = w.r / unit;
            raw = w.probe_r.data();
        }
        w.at = nullptr;
        if constexpr (in_place) {
            w.at = f.jacobian_in_place(w.x.data(), raw);
        } else {
            if (f.jacobian(w.x.data(), raw, w.own.data())) w.at = w.own.data();
        }
        if (w.at == nullptr) return Status::aborted;
        if (unit != 1) w.j() *= unit;
        if constexpr (requires { f.value_error(); })
            if (f.value_error() > noise) expect_noise(f.value_error());
        have_jacobian = factor(near);
        if (!have_jacobian) return Status::nonfinite;
        outdated = outdated || near;
        return Status::limit;
    }

    // Whether factorisations use blocked_qr.hpp.
    bool large() const {
        if constexpr (Linalg::blocked) return Linalg::blocked_fit(w.m, w.n);
        return false;
    }

    // False if J is not finite. `same_jacobian`: J is that of the last call, or near enough.
    bool factor(bool same_jacobian = false) {
        if (!same_jacobian) outdated = false;
        same_jacobian = same_jacobian && o.loss == Loss::linear && (in_blocks || (w.factored && !o.bounded));
        if (same_jacobian && !in_blocks) {
            project();
            return true;
        }
        const bool robust = o.loss != Loss::linear;
        // The residuals that belong to the rows: J'r is their product.
        const Vector<T>& residuals = robust ? w.weighted_r : w.r;
        w.factored = false;
        in_blocks = !reflections && large();
        if (!in_blocks) {
            w.qr.take(w.at);
        } else if (robust) {
            w.weighted = w.j();
        }
        if (robust) {
            if (!in_blocks && !w.j().allFinite()) return false;
            weigh();
        } else {
            cosine_length = length;
        }
        if constexpr (Linalg::blocked) {
            const T* const rows = robust ? w.weighted.data() : w.at;
            if (in_blocks && !blocks.measure(rows, w.m, w.n, residuals, same_jacobian))
                return w.j().allFinite() && factor_by_reflections();
        }
        bool again = same_jacobian;
        for (int k = 0; k < w.n; ++k) {
            T column = 0;
            if constexpr (Linalg::blocked) {
                if (in_blocks) {
                    column = blocks.column_norm(k);
                    w.g[k] = blocks.along(k);
                }
            }
            if (!in_blocks) {
                column = norm(w.qr.a.col(k));
                // A column that is not finite has no finite norm, but the norm of large elements may overflow too.
                if (!std::isfinite(column) && !w.qr.a.col(k).allFinite()) return false;
                w.g[k] = w.qr.a.col(k).dot(residuals);
            }
            if (!o.fixed_scale) w.d[k] = std::max(w.d[k], column);
            w.divisor[k] = w.d[k] > 0 ? w.d[k] : T(1);
            if (o.loss == Loss::linear) w.column_norm[k] = column;
            const bool was_fixed = w.fixed[k];
            w.fixed[k] = o.bounded && ((w.x[k] <= w.lower[k] && w.g[k] >= 0) || (w.x[k] >= w.upper[k] && w.g[k] <= 0));
            again = again && w.fixed[k] == was_fixed;
            if (in_blocks) continue;
            if (w.fixed[k]) {
                w.qr.a.col(k).setZero();
                w.qr.norms[k] = 0;
            } else {
                divide(w.qr.a.col(k), w.divisor[k]);
                w.qr.norms[k] = std::isfinite(column) ? column / w.divisor[k] : T(0);
            }
        }
        if constexpr (Linalg::blocked)
            if (in_blocks && !blocks.compute(residuals, w.divisor, w.fixed, w.qr, w.qt_r, again))
                return factor_by_reflections();
        if (!in_blocks) {
            w.qt_r = residuals;
            w.qr.compute(w.qt_r);
        }
        w.factored = unit == 1 && !robust && !w.fixed.any();
        return true;
    }
    // After factor_by_reflections(), if only the residuals are new: updates what depends on them.
    void project() {
        cosine_length = length;
        times_rows(w.r, w.j(), w.g);
        w.qt_r = w.r;
        w.qr.apply(w.qt_r);
    }
    bool factor_by_reflections() {
        reflections = true;
        const bool done = factor();
        reflections = false;
        return done;
    }

    // Triggs: rows times sqrt(rho' + 2 rho'' r^2 / C^2), kept positive, and residuals that give the gradient rho' r.
    void weigh() {
        for (int i = 0; i < w.m; ++i) {
            const T q = w.r[i] / loss_scale, z = q * q;
            const LossValue<T> v = loss_value(o.loss, z);
            const T scale = std::sqrt(row_weight(v, z));
            w.weight[i] = scale;
            w.weighted_r[i] = scale > 0 ? w.r[i] * (v.first / scale) : T(0);
            w.root_slope[i] = std::sqrt(v.first);
            if (in_blocks) {
                w.weighted.row(i) *= scale;
            } else {
                w.qr.a.row(i) *= scale;
            }
        }
        // The cosines are those of sqrt(rho') J and sqrt(rho') r, which have the same gradient: with Triggs's rows, a
        // residual that few columns can move would count more the farther out it is.
        cosine_length = norm(w.r.cwiseProduct(w.root_slope));
        w.column_norm.setZero();
        for (int i = 0; i < w.m; ++i) w.column_norm += (w.root_slope[i] * w.j().row(i).transpose()).cwiseAbs2();
        for (int k = 0; k < w.n; ++k) {
            const T squares = w.column_norm[k];
            const bool in_range = squares > std::numeric_limits<T>::min() / epsilon<T> && std::isfinite(squares);
            w.column_norm[k] = in_range ? std::sqrt(squares) : norm(w.j().col(k).cwiseProduct(w.root_slope));
        }
    }

    T cosine() const {
        T most = 0;
        for (int k = 0; k < w.n; ++k)
            if (!w.fixed[k] && w.column_norm[k] > 0)
                most = std::max(most, std::abs(w.g[k]) / w.column_norm[k] / cosine_length);
        return most;
    }
    // The largest element of the gradient that no bound holds, in the caller's units.
    T reported_gradient() const {
        T most = 0;
        for (int k = 0; k < w.n; ++k)
            if (!w.fixed[k]) most = std::max(most, std::abs(w.g[k]));
        return most / unit / unit;
    }
    T scaled_norm(const Vector<T>& p) const { return norm(p.cwiseProduct(w.divisor)); }

    // The step p = D^-1 P y with (R'R + mu I) y = -R'Q'r, by Givens rotations of [R; sqrt(mu) I] (More 1978, section
    // 3).
    void solve_damped() {
        undamped = false;
        if constexpr (Linalg::blocked) {
            if (in_blocks && blocks.damp(damping, w.qr, w.divisor, w.qt_r, w.damped.data(), w.y)) {
                unscale(w.y, w.step);
                return;
            }
        }
        const int n = w.n;
        const T root = std::sqrt(damping);
        Vector<T>& rhs = w.right_side;
        for (int k = 0; k < n; ++k) rhs[k] = k < w.m ? w.qt_r[k] : T(0);
        w.damped = w.qr.r;
        for (int j = 0; j < n; ++j) {
            // Row j of sqrt(mu) I is rotated into the triangle, from its diagonal on.
            for (int k = j; k < n; ++k) w.row[k] = 0;
            w.row[j] = root;
            T b = 0;
            for (int k = j; k < n; ++k) {
                if (w.row[k] == 0) continue;
                const T hyp = std::hypot(w.damped(k, k), w.row[k]);
                const T c = w.damped(k, k) / hyp, sn = w.row[k] / hyp;
                w.damped(k, k) = hyp;
                for (int i = k + 1; i < n; ++i) {
                    const T t = w.damped(k, i);
                    w.damped(k, i) = c * t + sn * w.row[i];
                    w.row[i] = c * w.row[i] - sn * t;
                }
                const T t = rhs[k];
                rhs[k] = c * t + sn * b;
                b = c * b - sn * t;
            }
        }
        damped_solve(rhs);
        w.y = rhs;
        unscale(w.y, w.step);
    }

    // b becomes S^-1 b with the damped triangle.
    void damped_solve(Vector<T>& b) const {
        for (int i = w.n - 1; i >= 0; --i) {
            T sum = b[i];
            for (int k = i + 1; k < w.n; ++k) sum -= w.damped(i, k) * b[k];
            b[i] = w.damped(i, i) != 0 ? sum / w.damped(i, i) : T(0);
        }
    }

    // trial = x + p inside the bounds; p becomes the step that remains.
    void take(Vector<T>& p) {
        w.trial = w.x + p;
        if (!o.bounded) return;
        for (int k = 0; k < w.n; ++k) {
            if (w.fixed[k]) w.trial[k] = w.x[k];
            if (w.trial[k] < w.lower[k] || w.trial[k] > w.upper[k]) {
                w.trial[k] = std::min(std::max(w.trial[k], w.lower[k]), w.upper[k]);
            } else if (!w.fixed[k]) {
                continue;
            }
            p[k] = w.trial[k] - w.x[k];
        }
    }

    // (|r|^2 - |r + J p|^2) / |r|^2 from the triangle: R y + Q'r with y = P'D p.
    T model_reduction() {
        for (int k = 0; k < w.n; ++k) w.y[k] = w.step[w.qr.order[k]] * w.divisor[w.qr.order[k]];
        Vector<T>& along = w.right_side;  // R y
        along.setZero();
        for (int k = 0; k < w.n; ++k) along.head(k + 1) += w.y[k] * w.qr.r.col(k).head(k + 1);
        T sum = 0;
        for (int i = 0; i < std::min(w.n, w.m); ++i) {
            const T t = along[i] / length;
            sum -= t * (t + 2 * (w.qt_r[i] / length));
        }
        return sum;
    }

    // Geodesic acceleration: a solves the same damped system for half the second derivative of r along p, taken by a
    // difference. The step p + a is compared with p. If it falls further it is taken and, depending on the score of the
    // last comparisons, tried again. The trial point, its residuals and its cost are those of the better one.
    bool accelerate(Trial& t) {
        const bool tries = s.nit >= geodesic_patience && (score > 0 || s.nit % geodesic_patience == 0);
        if (o.accelerate < 0 && !tries) return true;
        w.plain_trial = w.x + geodesic_probe * w.step;
        if (!evaluate(w.plain_trial, w.probe_r)) return false;
        if (!w.probe_r.allFinite()) return true;
        Vector<T>& second = w.probe_r;  // the second derivative along p, in its place
        second = (second - w.r) / geodesic_probe;
        for (int i = 0; i < w.m; ++i) second[i] -= w.j().row(i).dot(w.step);
        second *= T(2) / geodesic_probe;
        if (o.loss != Loss::linear) second = second.cwiseProduct(w.weight).cwiseProduct(w.weight);
        // J'r'' / 2, brought to the form R'b with the triangle: (R'R + mu I) y = -(D^-1 J'r'')/2.
        Vector<T>& b = w.right_side;
        times_rows(second, w.j(), w.correction);
        for (int k = 0; k < w.n; ++k) {
            const int v = w.qr.order[k];
            b[k] = w.fixed[v] ? T(0) : w.correction[v] / w.divisor[v] / 2;
        }
        if (undamped) w.damped = w.qr.r;
        undamped = false;
        transposed_solve(w.damped, b);
        damped_solve(b);
        unscale(b, w.correction);
        // If a is not small relative to p, the second-order model is of no use.
        if (!(2 * norm(b) <= geodesic_limit * scaled_norm(w.step))) {
            score -= 1;
            return true;
        }
        w.plain_trial.swap(w.trial);
        w.trial = w.x + (w.correction + w.step);
        if (o.bounded)
            for (int k = 0; k < w.n; ++k) w.trial[k] = std::min(std::max(w.trial[k], w.lower[k]), w.upper[k]);
        if (!evaluate(w.trial, w.probe_r)) return false;
        T cost_a, length_a;
        if (measure(w.probe_r, cost_a, length_a) && length_a < t.length) {
            const T plain = std::max(fall(t.length), T(0));
            const bool pays = fall(length_a) - plain > geodesic_gain * plain;
            score = pays ? std::min(score + 1, geodesic_confidence) : score - 1;
            t.cost = cost_a;
            t.length = length_a;
            t.full = false;
            w.trial_r.swap(w.probe_r);
        } else {
            score -= 1;
            w.trial.swap(w.plain_trial);
        }
        score = std::max(score, 0);
        return true;
    }

    int rank() const {
        const int most = std::min(w.m, w.n);
        int k = 0;
        const T least = T(std::max(w.m, w.n)) * epsilon<T> * (most > 0 ? std::abs(w.qr.r(0, 0)) : T(0));
        while (k < most && std::abs(w.qr.r(k, k)) > least) ++k;
        return k;
    }

    // Anderson's mixing of the last two Gauss-Newton steps, in the scaled norm: if they shrink by a constant ratio, it
    // gives the sum of all steps that would follow. Returns an estimate of the next step's length, which the last two
    // norms do not show once steps are mixed: what mixing leaves of this step times the ratio, or the second-order part
    // if that is larger.
    T extrapolate(T step, T before, T x_norm, T& rate) {
        T next = step * std::max(rate, step / before);
        Vector<T>& unmixed = w.right_side;
        unmixed = w.trial;
        bool mixed = false;
        if (mixable) {
            T dp = 0, dd = 0;
            for (int k = 0; k < w.n; ++k) {
                const T d = w.divisor[k] * (w.step[k] - w.step_before[k]);
                dp += d * (w.divisor[k] * w.step[k]);
                dd += d * d;
            }
            const T share = dp / dd;
            mixed = std::abs(share) <= most_mixing;
            rate = std::max(rate, std::abs(share / (share - 1)));
            next = step * std::max(rate, step / before);
            if (mixed) {
                T left = 0;
                for (int k = 0; k < w.n; ++k) {
                    const T d = w.divisor[k] * (w.step[k] - share * (w.step[k] - w.step_before[k]));
                    left += d * d;
                }
                next = std::max(rate * std::sqrt(left), 16 * before * (step / x_norm));
                w.trial -= share * (unmixed - w.end_before);
            }
        }
        w.step_before = w.step;
        if (mixed) w.step = w.trial - w.x;
        mixable = true;
        w.end_before.swap(unmixed);
        return next;
    }

    // Near the solution the steps shrink by a nearly constant ratio, which grows with the residuals and does not depend
    // on how exact J is. It ends when the next step would be below `least` |D x|.
    Status polish(T least) {
        T before = last_step > 0 ? last_step : std::numeric_limits<T>::infinity(), rate = 0;
        for (int i = 0; i < most_polishing; ++i) {
            full_step(rank());
            if (outdated && !(scaled_norm(w.step) <= near_shrink * before)) {
                if (!refresh()) return Status::nonfinite;
                full_step(rank());
            }
            w.plain_trial = w.trial;
            take(w.step);
            const T step = scaled_norm(w.step), x_norm = norm(w.x.cwiseProduct(w.divisor));
            const T next = std::min(o.bounded ? step * (step / before) : extrapolate(step, before, x_norm, rate), step);
            // A trial that was rejected at this x may be the same point; its residuals are then known.
            const bool known = rejected && (w.plain_trial.array() == w.trial.array()).all();
            rejected = false;
            if (!(i == 0 || step < polishing_shrink * before) || step <= epsilon<T> * x_norm) break;
            if (step > polishing_reach * x_norm) {
                overshot = i == 0;
                break;
            }
            if (!known && !evaluate(w.trial, w.trial_r)) return Status::aborted;
            // A relative change of x by eps changes r by at most eps |D x|, so a smaller change is rounding.
            T cost_n, length_n;
            if (!measure(w.trial_r, cost_n, length_n) || !(length_n <= length + 4 * noise * (length + x_norm))) {
                if (outdated && i + 1 < most_polishing) {
                    if (!refresh()) return Status::nonfinite;
                    continue;
                }
                overshot = i == 0;
                break;
            }
            const bool near = stays_near(step, before, x_norm);
            before = step;
            w.x.swap(w.trial);
            w.r.swap(w.trial_r);
            cost = cost_n;
            length = length_n;
            ++s.nit;
            // After so short a step J has not changed in its exact digits, so it is not computed again.
            const bool last = length == 0 || (next <= least * x_norm && step <= std::sqrt(epsilon<T>) * x_norm);
            if (last) {
                factor(true);
            } else if (const Status status = linearise(near); status != Status::limit) {
                return status;
            }
            if (const Signal signal = report(norm(w.step)); signal != Signal::go) return ended(signal);
            if (last) break;
        }
        return Status::limit;
    }

    Problem& f;
    const LevenbergMarquardtOptions<T>& o;
    LevenbergMarquardtWork<T>& w;
    Monitor& watch;
    Summary<T> s;
    T ftol, xtol, gtol, loss_scale;
    T noise = epsilon<T>,
      polish_tolerance = 0;                     // error of residuals; of |D x|, for a step that may be left out
    T unit = 1;                                 // residuals are the caller's times this
    T cost = 0, length = 0, cosine_length = 0;  // length: the root of the cost
    T radius = 0, damping = 0, last_step = 0;
    bool outdated = false;  // the factorisation is of an earlier Jacobian
    std::conditional_t<Linalg::blocked, BlockedQr<T, Linalg>, NoMonitor> blocks;
    bool in_blocks = false;    // the factorisation comes from `blocks`
    bool reflections = false;  // it must not come from `blocks`
    bool undamped = false;     // w.damped should be R
    T promised = 0;            // the largest relative reduction that the current J has predicted
    bool overshot = false;     // polishing found that x is not near the solution
    bool rejected = false;     // the last trial: w.trial and w.trial_r
    int score = 0;             // of geodesic acceleration
    bool have_jacobian = false;
    bool mixable = false;  // step_before and end_before hold the last Gauss-Newton step and where it led
};

template <class T, class Linalg = InlineLinalg, class Problem, class Monitor = NoMonitor>
Summary<T> levenberg_marquardt(Problem& problem, const LevenbergMarquardtOptions<T>& options,
                               LevenbergMarquardtWork<T>& work, Monitor&& monitor = {}) {
    return LevenbergMarquardt<T, Linalg, Problem, std::remove_reference_t<Monitor>>(problem, options, work, monitor)
        .run();
}

}  // namespace adaptk::solve
