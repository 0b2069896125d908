// Levenberg and Marquardt's method for nonlinear least squares: half the sum of C^2 rho(r_i^2 / C^2).
//
//   J. J. More, The Levenberg-Marquardt algorithm: implementation and theory, LNM 630 (1978)
//   D. G. Anderson, Iterative procedures for nonlinear integral equations, J. ACM 12 (1965): the last steps
//   M. K. Transtrum, J. P. Sethna, Improvements to the Levenberg-Marquardt algorithm, arXiv:1201.5885 (2012)
//   B. Triggs et al., Bundle adjustment: a modern synthesis (2000), section 4.3: robust losses
//   C. Kanzow, N. Yamashita, M. Fukushima, J. Comput. Appl. Math. 172 (2004): bounds by projection
//
// One QR factorisation with column pivoting of the scaled Jacobian J D^-1 serves every damping that is tried. D holds
// the largest norm that each column has had. The damping follows from a radius for |D p|. With y = D p and |.| the
// 2-norm it ends with
//   gradient   |J_j' r| <= gtol |J_j| |r| for every j that no bound holds
//   reduction  the actual and the predicted relative reduction of |r|^2 are <= ftol, and actual <= 2 predicted
//   step       |D p| <= xtol |D x|
//   both       reduction and step
//   precision  no step changes x, or the damping has left the range of the type
// and then polishes: Gauss-Newton steps, each from a new factorisation, for as long as |D p| at least halves and |r|
// does not grow beyond its rounding. Near the solution |D p| estimates the error of x, so this takes x to the digits
// that J and r have, whatever the tolerances were. Without bounds two of them are mixed: with residuals that are not
// small they shrink by a constant ratio, and their sum can be had from two.
#pragma once

#include "adaptk/solve/blocked_qr.hpp"

namespace adaptk::solve {

enum class Loss { linear, huber, soft_l1, cauchy, arctan, tukey };

// rho, rho', rho'' at z >= 0, all with rho(z) ~ z for small z.
template <class T> struct LossValue {
    T rho, first, second;
};
template <class T> LossValue<T> loss_value(Loss loss, T z) {
    const T u = T(1) + z;
    switch (loss) {
    case Loss::linear: break;
    case Loss::huber: {
        if (z <= 1) break;
        const T root = std::sqrt(z);
        return {2 * root - 1, 1 / root, T(-0.5) / (z * root)};
    }
    case Loss::soft_l1: {
        const T root = std::sqrt(u);
        return {2 * (z / (root + 1)), 1 / root, T(-0.5) / (u * root)};
    }
    case Loss::cauchy: return {std::log1p(z), 1 / u, -1 / u / u};
    case Loss::arctan: {
        const T w = 1 + z * z;
        return {std::atan(z), 1 / w, -2 * (z / w) / w};
    }
    case Loss::tukey: {
        if (z >= 1) return {T(1) / 3, 0, 0};
        const T v = T(1) - z;
        return {z * (T(1) - z + z * z / 3), v * v, -2 * v};
    }
    }
    return {z, 1, 0};
}

template <class T> struct LevenbergMarquardtOptions {
    T ftol = sizeof(T) == 4 ? T(1e-5) : T(1e-10);
    T xtol = sizeof(T) == 4 ? T(1e-5) : T(1e-10);
    T gtol = sizeof(T) == 4 ? T(1e-6) : T(1e-12);
    T factor = 1;  // the first radius over |D x|
    std::int64_t max_evaluations = 1000;
    Loss loss = Loss::linear;
    T loss_scale = 1;  // C
    bool bounded = false;
    bool fixed_scale = false;  // D stays what the caller put into the workspace
    int accelerate = -1;       // geodesic acceleration: 0 never, 1 always, -1 where it has paid
    T noise = epsilon<T>;      // what residuals are exact to
    bool polish = true;
    T polish_tolerance = (sizeof(T) == 4 ? 512 : 2048) * epsilon<T>;  // of |D x|, for the step that is not taken
};

template <class T> struct LevenbergMarquardtWork {
    void resize(int m_, int n_) {
        m = m_;
        n = n_;
        for (Vector<T>* v :
             {&x, &xn, &p, &y, &d, &lower, &upper, &g, &sine, &accel, &rhs, &sd, &step_before, &end_before})
            v->resize(n);
        for (Vector<T>* v : {&r, &rn, &qtr, &weight, &second, &rw}) v->resize(m);
        j.resize(m, n);
        qr.resize(m, n);
        damped.resize(n, n);
        fixed.resize(n);
        lower.setConstant(-std::numeric_limits<T>::infinity());
        upper.setConstant(std::numeric_limits<T>::infinity());
    }
    int m = 0, n = 0;
    Vector<T> x, xn, p, y, d, lower, upper, g, sine, accel, rhs, sd, step_before, end_before;
    Vector<T> r, rn, qtr, weight, second, rw;
    Matrix<T> j;
    PivotedQr<T> qr;
    Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> damped;
    Eigen::Array<bool, Eigen::Dynamic, 1> fixed;
};

// w.x holds the start (within the bounds), and at the end the best point found, with its residuals and Jacobian in w.r
// and w.j.
template <class T, class Linalg, class Problem, class Monitor> class LevenbergMarquardt {
  public:
    LevenbergMarquardt(Problem& problem, const LevenbergMarquardtOptions<T>& options, LevenbergMarquardtWork<T>& work,
                       Monitor& monitor)
        : f(problem), o(options), w(work), watch(monitor), ftol(options.ftol), xtol(options.xtol) {}

    Summary<T> run() {
        s.status = start();
        if (s.status == Status::limit) s.status = iterate();
        if (o.polish && s.status > Status::limit && length > 0 && w.n > 0) {
            // Where the Jacobian is one of differences: from here on a better one.
            Status status = Status::limit;
            T least = o.polish_tolerance;
            if constexpr (requires { f.refine(); }) {
                if (f.refine()) {
                    mixable = false;
                    status = linearise();
                    least = std::max(least, T(1e-3) * std::sqrt(epsilon<T>));
                }
            }
            if (status == Status::limit) status = polish(least);
            if (status == Status::limit && overshot && ftol > epsilon<T>) {
                // Not near enough for a full step: damped ones to closer tolerances, then once more.
                ftol *= std::sqrt(epsilon<T>);
                xtol *= std::sqrt(epsilon<T>);
                overshot = false;
                status = iterate();
                if (status > Status::limit) status = polish(least);
            }
            if (status < Status::limit) s.status = status;
        }
        s.value = half(cost);
        s.gradient = have_jacobian ? projected_gradient() : std::numeric_limits<T>::quiet_NaN();
        return s;
    }

  private:
    static constexpr T least_weight = T(0.1);

    static T half(T c) { return c / 2; }

    // The sum of C^2 rho(r^2 / C^2), and its root, which does not leave the range for the linear loss.
    bool measure(const Vector<T>& r, T& sum, T& root) const {
        if (o.loss == Loss::linear) {
            root = norm(r);
            sum = root * root;
            return std::isfinite(root);
        }
        sum = 0;
        for (int i = 0; i < w.m; ++i) {
            const T q = r[i] / o.loss_scale;
            sum += loss_value(o.loss, q * q).rho;
        }
        sum *= o.loss_scale * o.loss_scale;
        root = std::sqrt(sum);
        return std::isfinite(root);
    }

    Status start() {
        ++s.nfev;
        if (!f.residuals(w.x.data(), w.r.data())) return Status::aborted;
        cost = std::numeric_limits<T>::quiet_NaN();
        if (!w.r.allFinite() || !measure(w.r, cost, length)) return Status::nonfinite;
        if (!o.fixed_scale) w.d.setZero();
        return Status::limit;
    }

    Status iterate() {
        T mu = 0;
        T step = std::numeric_limits<T>::quiet_NaN();
        for (;; ++s.nit) {
            if (const Status status = linearise(); status != Status::limit) return status;
            if (const Signal signal =
                    watch(Progress<T>{s.nit, half(cost), step, projected_gradient(), w.x.data(), w.n});
                signal != Signal::go)
                return ended(signal);
            if (length == 0 || cosine() <= o.gtol) return Status::gradient;
            bool accepted = false;
            while (!accepted) {
                if (s.nfev >= o.max_evaluations) return Status::limit;
                if (radius <= 0) {
                    // In units of r, as |D x| is.
                    radius = o.factor * w.x.cwiseProduct(w.sd).norm();
                    if (!(radius > 0)) radius = o.factor * length;
                }
                damp(mu);
                take(w.p);
                rejected = false;
                const T y_norm = scaled_norm(w.p);
                if (s.nfev == 1) radius = std::min(radius, y_norm);
                if ((w.xn.array() == w.x.array()).all()) return Status::precision;
                const T predicted = model_reduction();
                T cost_n, length_n;
                ++s.nfev;
                if (!f.residuals(w.xn.data(), w.rn.data())) return Status::aborted;
                const bool finite = measure(w.rn, cost_n, length_n);
                bool full = mu == 0 && !o.bounded;
                if (o.accelerate != 0 && finite) {
                    bool changed = false;
                    if (!accelerate(cost_n, length_n, changed)) return Status::aborted;
                    full = full && !changed;
                }
                const T actual = finite ? fall(length_n) : T(-1);
                const T ratio = predicted > 0 ? actual / predicted : T(-1);
                const T x_norm = w.x.cwiseProduct(w.d).norm();
                accepted = actual > 0;
                // More 1978, section 4: below 1/4 shrink, by the minimiser of the parabola through |r|^2 and its slope.
                if (!(ratio > T(0.25))) {
                    T shrink = T(0.1);
                    if (finite && length_n < 10 * length) {
                        const T slope = -directional();
                        shrink = actual >= 0 ? T(0.5) : slope / (2 * slope + actual);
                        if (!(shrink > T(0.1))) shrink = T(0.1);
                        if (shrink > T(0.5)) shrink = T(0.5);
                    }
                    radius = shrink * std::min(radius, 10 * y_norm);
                    mu /= shrink;
                } else if (ratio > T(0.75) || mu == 0) {
                    radius = 2 * y_norm;
                    mu /= 2;
                }
                if (accepted) {
                    step = (w.xn - w.x).norm();
                    mixable = full;
                    if (full) {
                        w.step_before = w.p;
                        w.end_before = w.xn;
                    }
                    w.x.swap(w.xn);
                    w.r.swap(w.rn);
                    cost = cost_n;
                    length = length_n;
                    last_step = y_norm;
                }
                rejected = !accepted;
                const bool reduced = finite && std::abs(actual) <= ftol && predicted <= ftol && ratio <= 2;
                const bool small = y_norm <= xtol * x_norm;
                if (reduced || small) {
                    ++s.nit;
                    if (accepted && !refines())
                        if (const Status status = linearise(); status != Status::limit) return status;
                    return reduced && small ? Status::both : reduced ? Status::reduction : Status::step;
                }
                if (length == 0) break;
                if (!std::isfinite(mu) || !(radius > 0)) return Status::precision;
            }
        }
    }

    // Whether a better Jacobian is to be had for polishing; then this one need not be brought up to date.
    bool refines() const {
        if constexpr (requires { f.refine(); }) return o.polish && f.can_refine();
        return false;
    }

    // p'J'r / |r|^2, negative for a step that goes down.
    T directional() const { return (w.g.dot(w.p) / length) / length; }

    // The damping for which |y| is within a tenth of the radius, or 0 where the Gauss-Newton step is inside it
    // (More 1978, algorithm 5.5): Newton's iteration on 1/|y| between bounds, each trial one elimination of sqrt(mu) I.
    void damp(T& mu) {
        const int rank_now = rank();
        T low = 0, high;
        if (rank_now == std::min(w.n, w.m) && w.m >= w.n) {
            back_substitute(w.qr.r, w.qtr, rank_now, w.y);
            for (int k = 0; k < w.n; ++k) w.p[w.qr.order[k]] = -w.y[k] / w.sd[w.qr.order[k]];
            const T size = w.y.norm();
            if (size <= radius * T(1.1)) {
                mu = 0;
                undamped = true;
                return;
            }
            if (std::isfinite(size)) {
                // phi(0) / phi'(0) bounds the root from below: phi is convex.
                w.rhs = w.y / size;
                for (int i = 0; i < w.n; ++i) {
                    T sum = w.rhs[i];
                    for (int k = 0; k < i; ++k) sum -= w.qr.r(k, i) * w.rhs[k];
                    w.rhs[i] = sum / w.qr.r(i, i);
                }
                const T lower = (size - radius) / radius / w.rhs.squaredNorm();
                if (std::isfinite(lower)) low = lower;
            }
        }
        T gradient = 0;
        for (int k = 0; k < w.n; ++k)
            if (!w.fixed[k]) gradient = std::hypot(gradient, w.g[k] / w.sd[k]);
        high = gradient / radius;
        if (high == 0) high = std::numeric_limits<T>::min() / std::min(radius, T(0.1));
        mu = std::min(std::max(mu, low), high);
        if (mu == 0) mu = gradient / radius;
        for (int i = 0; i < 10; ++i) {
            if (mu == 0) mu = std::max(std::numeric_limits<T>::min(), T(1e-3) * high);
            solve_damped(mu);
            const T size = w.y.norm();
            const T over = size - radius;
            if (std::abs(over) <= radius / 10 || (low == 0 && over < 0 && i > 0 && over <= before_) || i == 9) break;
            before_ = over;
            w.rhs = w.y / size;
            if constexpr (Linalg::blocked)
                if (in_blocks) Linalg::forward(w.damped.data(), w.n, w.rhs.data());
            for (int r = 0; r < w.n && !in_blocks; ++r) {
                T sum = w.rhs[r];
                for (int k = 0; k < r; ++k) sum -= w.damped(k, r) * w.rhs[k];
                w.rhs[r] = sum / w.damped(r, r);
            }
            const T move = over / radius / w.rhs.squaredNorm();
            if (over > 0) low = std::max(low, mu);
            if (over < 0) high = std::min(high, mu);
            mu = std::max(low, mu + move);
        }
    }

    // 1 - (|rn| / |r|)^2 without cancellation beyond that of the lengths.
    T fall(T length_n) const {
        const T q = length_n / length;
        return (T(1) - q) * (T(1) + q);
    }

    // Jacobian, scales, the set of variables that bounds hold, and the factorisation. Status::limit to go on.
    Status linearise() {
        ++s.njev;
        if (!f.jacobian(w.x.data(), w.r.data(), w.j.data())) return Status::aborted;
        if (!w.j.allFinite()) return Status::nonfinite;
        have_jacobian = true;
        factor();
        return Status::limit;
    }

    void factor() {
        in_blocks = false;
        if constexpr (Linalg::blocked) in_blocks = !reflections && Linalg::blocked_fit(w.m, w.n);
        const Matrix<T>& rows = in_blocks && o.loss == Loss::linear ? w.j : w.qr.a;
        if (&rows == &w.qr.a) w.qr.a = w.j;
        w.rw = w.r;
        if (o.loss != Loss::linear) {
            // Triggs: rows times sqrt(rho' + 2 rho'' r^2 / C^2), residuals to give the gradient rho' r. Kept positive,
            // as a share of rho': with a tiny one, columns and D leap by its inverse root where a residual comes in
            // from the outliers, and the radius with them.
            for (int i = 0; i < w.m; ++i) {
                const T q = w.r[i] / o.loss_scale;
                const LossValue<T> v = loss_value(o.loss, q * q);
                const T scale = std::sqrt(std::max(v.first + 2 * v.second * q * q, least_weight * v.first));
                w.weight[i] = scale;
                w.rw[i] = scale > 0 ? w.r[i] * (v.first / scale) : T(0);
                w.second[i] = std::sqrt(v.first);
                w.qr.a.row(i) *= scale;
            }
            // The cosines are those of sqrt(rho') J and sqrt(rho') r, which have the same gradient: with Triggs's rows
            // the residual that few columns can move would be the larger, the farther out it is.
            rw_norm = norm(w.r.cwiseProduct(w.second));
            for (int k = 0; k < w.n; ++k) w.sine[k] = norm(w.j.col(k).cwiseProduct(w.second));
        } else {
            rw_norm = norm(w.rw);
        }
        if constexpr (Linalg::blocked)
            if (in_blocks && !blocks.measure(rows, w.rw)) return factor_by_reflections();
        for (int k = 0; k < w.n; ++k) {
            const T column = in_blocks ? blocks.column_norm(k) : norm(w.qr.a.col(k));
            if (!o.fixed_scale) w.d[k] = std::max(w.d[k], column);
            w.sd[k] = w.d[k] > 0 ? w.d[k] : T(1);
            w.g[k] = in_blocks ? blocks.along(k) : w.qr.a.col(k).dot(w.rw);
            if (o.loss == Loss::linear) w.sine[k] = column;
            w.fixed[k] = o.bounded && ((w.x[k] <= w.lower[k] && w.g[k] >= 0) || (w.x[k] >= w.upper[k] && w.g[k] <= 0));
            if (in_blocks) continue;
            if (w.fixed[k]) {
                w.qr.a.col(k).setZero();
            } else {
                w.qr.a.col(k) /= w.sd[k];
            }
        }
        if constexpr (Linalg::blocked)
            if (in_blocks && !blocks.compute(rows, w.rw, w.sd, w.fixed, w.qr, w.qtr)) return factor_by_reflections();
        if (in_blocks) return;
        w.qtr = w.rw;
        w.qr.compute(w.qtr);
    }
    void factor_by_reflections() {
        reflections = true;
        factor();
        reflections = false;
    }

    T cosine() const {
        T most = 0;
        for (int k = 0; k < w.n; ++k)
            if (!w.fixed[k] && w.sine[k] > 0) most = std::max(most, std::abs(w.g[k]) / w.sine[k] / rw_norm);
        return most;
    }
    T projected_gradient() const {
        T most = 0;
        for (int k = 0; k < w.n; ++k)
            if (!w.fixed[k]) most = std::max(most, std::abs(w.g[k]));
        return most;
    }
    T scaled_norm(const Vector<T>& p) const { return p.cwiseProduct(w.sd).norm(); }

    // The step p = D^-1 P y with (R'R + mu I) y = -R'Q'r, by Givens rotations of [R; sqrt(mu) I] (More 1978, section
    // 3).
    void solve_damped(T mu) {
        undamped = false;
        if constexpr (Linalg::blocked) {
            if (in_blocks && blocks.damp(mu, w.qr, w.sd, w.qtr, w.damped.data(), w.y)) {
                for (int k = 0; k < w.n; ++k) w.p[w.qr.order[k]] = -w.y[k] / w.sd[w.qr.order[k]];
                return;
            }
        }
        for (int k = 0; k < w.n; ++k) w.rhs[k] = k < w.m ? w.qtr[k] : T(0);
        solve_damped(mu, w.rhs, w.p);
    }
    void solve_damped(T mu, Vector<T>& rhs, Vector<T>& p) {
        const int n = w.n;
        const T root = std::sqrt(mu);
        w.damped = w.qr.r;
        for (int j = 0; j < n; ++j) {
            // Row j of sqrt(mu) I is rotated into the triangle, from its diagonal on; y holds the row.
            for (int k = j; k < n; ++k) w.y[k] = 0;
            w.y[j] = root;
            T b = 0;
            for (int k = j; k < n; ++k) {
                if (w.y[k] == 0) continue;
                const T hyp = std::hypot(w.damped(k, k), w.y[k]);
                const T c = w.damped(k, k) / hyp, sn = w.y[k] / hyp;
                w.damped(k, k) = hyp;
                for (int i = k + 1; i < n; ++i) {
                    const T t = w.damped(k, i);
                    w.damped(k, i) = c * t + sn * w.y[i];
                    w.y[i] = c * w.y[i] - sn * t;
                }
                const T t = rhs[k];
                rhs[k] = c * t + sn * b;
                b = c * b - sn * t;
            }
        }
        for (int i = n - 1; i >= 0; --i) {
            T sum = rhs[i];
            for (int k = i + 1; k < n; ++k) sum -= w.damped(i, k) * w.y[k];
            w.y[i] = w.damped(i, i) != 0 ? sum / w.damped(i, i) : T(0);
        }
        for (int k = 0; k < n; ++k) p[w.qr.order[k]] = -w.y[k] / w.sd[w.qr.order[k]];
    }

    // xn = x + p inside the bounds; p becomes the step that this leaves.
    void take(Vector<T>& p) {
        w.xn = w.x + p;
        if (!o.bounded) return;
        for (int k = 0; k < w.n; ++k) {
            if (w.fixed[k]) w.xn[k] = w.x[k];
            if (w.xn[k] < w.lower[k] || w.xn[k] > w.upper[k]) {
                w.xn[k] = std::min(std::max(w.xn[k], w.lower[k]), w.upper[k]);
            } else if (!w.fixed[k]) {
                continue;
            }
            p[k] = w.xn[k] - w.x[k];
        }
    }

    // (|r|^2 - |r + J p|^2) / |r|^2 from the triangle: R y + Q'r with y = P'D p.
    T model_reduction() {
        for (int k = 0; k < w.n; ++k) w.y[k] = w.p[w.qr.order[k]] * w.sd[w.qr.order[k]];
        w.rhs.setZero();
        for (int k = 0; k < w.n; ++k) w.rhs.head(k + 1) += w.y[k] * w.qr.r.col(k).head(k + 1);
        T sum = 0;
        for (int i = 0; i < std::min(w.n, w.m); ++i) {
            const T t = w.rhs[i] / length;
            sum -= t * (t + 2 * (w.qtr[i] / length));
        }
        return sum;
    }

    // Geodesic acceleration: a solves the same damped system for half the second derivative of r along p, taken by a
    // difference. The step p + a is compared with p; where it falls further it is taken and, by the score of the last
    // comparisons, tried again. w.xn, w.rn and the cost of the better one are left.
    bool accelerate(T& cost_n, T& length_n, bool& changed) {
        if (o.accelerate < 0) {
            // Where plain steps converge fast there is nothing to gain; a narrow valley shows after some iterations.
            if (s.nit < 8 || (score <= 0 && s.nit % 8 != 0)) return true;
        }
        const T h = T(0.1);
        w.accel = w.x + h * w.p;
        ++s.nfev;
        if (!f.residuals(w.accel.data(), w.second.data())) return false;
        if (!w.second.allFinite()) return true;
        w.second = (w.second - w.r) / h;
        w.second.noalias() -= w.j * w.p;
        w.second *= T(2) / h;
        if (o.loss != Loss::linear) w.second = w.second.cwiseProduct(w.weight);
        // J'r'' / 2, brought to the form R'b with the triangle: (R'R + mu I) y = -(D^-1 J'r'')/2.
        Vector<T>& b = w.rhs;
        for (int k = 0; k < w.n; ++k) {
            const int v = w.qr.order[k];
            T dot = 0;
            if (!w.fixed[v]) {
                for (int i = 0; i < w.m; ++i)
                    dot += w.j(i, v) * (o.loss != Loss::linear ? w.weight[i] : T(1)) * w.second[i];
            }
            b[k] = dot / w.sd[v] / 2;
        }
        normal_solve(b);
        T size = 0, p_size = 0;
        for (int k = 0; k < w.n; ++k) {
            const int v = w.qr.order[k];
            w.accel[v] = -b[k] / w.sd[v];
            size += b[k] * b[k];
            p_size += (w.p[v] * w.sd[v]) * (w.p[v] * w.sd[v]);
        }
        // Transtrum and Sethna, equation 15: where it is not small beside p the second-order model is no use.
        if (!(2 * std::sqrt(size) <= T(0.75) * std::sqrt(p_size))) {
            score -= 1;
            return true;
        }
        w.accel += w.p;
        w.xn.swap(w.y);  // y is free here; it keeps the plain point
        w.xn = w.x + w.accel;
        if (o.bounded)
            for (int k = 0; k < w.n; ++k) w.xn[k] = std::min(std::max(w.xn[k], w.lower[k]), w.upper[k]);
        ++s.nfev;
        if (!f.residuals(w.xn.data(), w.second.data())) return false;
        T cost_a, length_a;
        // It costs two more evaluations, so it has to fall clearly further.
        if (measure(w.second, cost_a, length_a) && length_a < length_n) {
            const T gain = fall(length_a) - std::max(fall(length_n), T(0));
            score = gain > T(0.5) * std::max(fall(length_n), T(0)) ? std::min(score + 1, 3) : score - 1;
            cost_n = cost_a;
            length_n = length_a;
            w.rn.swap(w.second);
            changed = true;
        } else {
            score -= 1;
            w.xn.swap(w.y);
        }
        score = std::max(score, 0);
        return true;
    }

    // b becomes the solution of S'S z = b with the damped triangle S of the last step.
    void normal_solve(Vector<T>& b) {
        const int n = w.n;
        if (undamped) w.damped = w.qr.r;
        undamped = false;
        for (int i = 0; i < n; ++i) {
            T sum = b[i];
            for (int k = 0; k < i; ++k) sum -= w.damped(k, i) * b[k];
            b[i] = w.damped(i, i) != 0 ? sum / w.damped(i, i) : T(0);
        }
        for (int i = n - 1; i >= 0; --i) {
            T sum = b[i];
            for (int k = i + 1; k < n; ++k) sum -= w.damped(i, k) * b[k];
            b[i] = w.damped(i, i) != 0 ? sum / w.damped(i, i) : T(0);
        }
    }

    int rank() const {
        const int most = std::min(w.m, w.n);
        int k = 0;
        const T least = T(std::max(w.m, w.n)) * epsilon<T> * (most > 0 ? std::abs(w.qr.r(0, 0)) : T(0));
        while (k < most && std::abs(w.qr.r(k, k)) > least) ++k;
        return k;
    }

    // Anderson's mixing of the last two Gauss-Newton steps, in the scaled norm: where they shrink by a constant ratio,
    // the sum of all that would follow. Returns how long the next step will be, which the last two norms do not show
    // once steps are mixed: what the mixture leaves of this step, times the ratio, and the second-order part.
    T extrapolate(T step, T before, T x_norm, T& rate) {
        T next = step * std::max(rate, step / before);
        w.rhs = w.xn;  // before it is mixed
        bool mixed = false;
        if (mixable) {
            T dp = 0, dd = 0;
            for (int k = 0; k < w.n; ++k) {
                const T d = w.sd[k] * (w.p[k] - w.step_before[k]);
                dp += d * (w.sd[k] * w.p[k]);
                dd += d * d;
            }
            const T share = dp / dd;
            mixed = std::abs(share) <= 10;
            rate = std::max(rate, std::abs(share / (share - 1)));
            next = step * std::max(rate, step / before);
            if (mixed) {
                T left = 0;
                for (int k = 0; k < w.n; ++k) {
                    const T d = w.sd[k] * (w.p[k] - share * (w.p[k] - w.step_before[k]));
                    left += d * d;
                }
                next = std::max(rate * std::sqrt(left), 16 * before * (step / x_norm));
                w.xn -= share * (w.rhs - w.end_before);
            }
        }
        w.step_before = w.p;
        if (mixed) w.p = w.xn - w.x;
        mixable = true;
        w.end_before.swap(w.rhs);
        return next;
    }

    // Near the solution the steps shrink by a nearly constant ratio, which grows with the residuals and does not depend
    // on how exact J is. It ends where the next step would be below `least` |D x|.
    Status polish(T least) {
        T before = last_step > 0 ? last_step : std::numeric_limits<T>::infinity(), rate = 0;
        for (int i = 0; i < 100; ++i) {
            back_substitute(w.qr.r, w.qtr, rank(), w.y);
            for (int k = 0; k < w.n; ++k) w.p[w.qr.order[k]] = -w.y[k] / w.sd[w.qr.order[k]];
            w.accel = w.xn;
            take(w.p);
            const T step = scaled_norm(w.p), x_norm = w.x.cwiseProduct(w.sd).norm();
            const T next = std::min(o.bounded ? step * (step / before) : extrapolate(step, before, x_norm, rate), step);
            // A trial that was rejected at this x may be the same point: rn has its residuals.
            const bool known = rejected && (w.accel.array() == w.xn.array()).all();
            rejected = false;
            if (!(i == 0 || step < T(0.9) * before) || step <= epsilon<T> * x_norm) break;
            if (step > T(1e-2) * x_norm) {
                overshot = i == 0;
                break;
            }
            T cost_n, length_n;
            if (!known) {
                ++s.nfev;
                if (!f.residuals(w.xn.data(), w.rn.data())) return Status::aborted;
            }
            // A relative change of x by eps changes r by eps |D x| at most: less is rounding.
            if (!measure(w.rn, cost_n, length_n) || !(length_n <= length + 4 * o.noise * (length + x_norm))) {
                overshot = i == 0;
                break;
            }
            before = step;
            w.x.swap(w.xn);
            w.r.swap(w.rn);
            cost = cost_n;
            length = length_n;
            ++s.nit;
            // J is then as good as new, at a distance that its digits do not show.
            const bool last = length == 0 || (next <= least * x_norm && step <= std::sqrt(epsilon<T>) * x_norm);
            if (last) {
                factor();
            } else if (const Status status = linearise(); status != Status::limit) {
                return status;
            }
            if (const Signal signal =
                    watch(Progress<T>{s.nit, half(cost), w.p.norm(), projected_gradient(), w.x.data(), w.n});
                signal != Signal::go)
                return ended(signal);
            if (last) break;
        }
        return Status::limit;
    }

    Problem& f;
    const LevenbergMarquardtOptions<T>& o;
    LevenbergMarquardtWork<T>& w;
    Monitor& watch;
    Summary<T> s;
    T cost = 0, length = 0, rw_norm = 0, radius = 0, before_ = 0, last_step = 0, ftol, xtol;
    std::conditional_t<Linalg::blocked, BlockedQr<T, Linalg>, NoMonitor> blocks;
    bool in_blocks = false;    // the factorisation comes from `blocks`
    bool reflections = false;  // it must not
    bool undamped = false;     // damped should be R
    bool overshot = false;
    bool rejected = false;  // the last trial: xn and rn
    int score = 0;
    bool have_jacobian = false;
    bool mixable = false;  // step_before and end_before hold the last Gauss-Newton step and where it led
};

template <class T, class Linalg = InlineLinalg, class Problem, class Monitor = NoMonitor>
Summary<T> levenberg_marquardt(Problem& problem, const LevenbergMarquardtOptions<T>& options,
                               LevenbergMarquardtWork<T>& work, Monitor&& monitor = {}) {
    return LevenbergMarquardt<T, Linalg, Problem, std::remove_reference_t<Monitor>>(problem, options, work, monitor)
        .run();
}

template <class T> bool full_rank(const LevenbergMarquardtWork<T>& w) {
    const T least = T(std::max(w.m, w.n)) * epsilon<T> * std::abs(w.qr.r(0, 0));
    bool full = w.m >= w.n;
    for (int k = 0; k < w.n && full; ++k) full = std::abs(w.qr.r(k, k)) > least;
    return full;
}

// (J'J)^-1 from the factorisation of J D^-1, n x n; infinite variances where J has not full rank. w.j and w.r as the
// solver left them. w.d may be anything: the columns are scaled to norm 1 here.
template <class T, class Linalg = InlineLinalg>
void covariance(LevenbergMarquardtWork<T>& w, const Vector<T>& weight, Matrix<T>& cov) {
    const int n = w.n;
    if constexpr (Linalg::blocked) {
        if (Linalg::blocked_fit(w.m, n)) {
            if (weight.size() > 0) {
                w.qr.a = w.j;
                w.qr.a.array().colwise() *= weight.array();
            }
            const Matrix<T>& rows = weight.size() > 0 ? w.qr.a : w.j;
            BlockedQr<T, Linalg> blocks;
            if (blocks.measure(rows, w.r)) {
                for (int k = 0; k < n; ++k) w.sd[k] = blocks.column_norm(k) > 0 ? blocks.column_norm(k) : T(1);
                w.fixed.setConstant(false);
                if (blocks.compute(rows, w.r, w.sd, w.fixed, w.qr, w.qtr) && full_rank(w) &&
                    blocks.inverse(w.qr, w.sd, cov))
                    return;
            }
        }
    }
    w.qr.a = w.j;
    if (weight.size() > 0) w.qr.a.array().colwise() *= weight.array();
    for (int k = 0; k < n; ++k) {
        const T column = norm(w.qr.a.col(k));
        w.sd[k] = column > 0 ? column : T(1);
        w.qr.a.col(k) /= w.sd[k];
    }
    w.qtr.setZero();
    w.qr.compute(w.qtr);
    if (!full_rank(w)) {
        cov.setConstant(std::numeric_limits<T>::infinity());
        return;
    }
    // Column i of R^-1, then R^-1 R^-T.
    w.damped.setZero();
    for (int i = 0; i < n; ++i) {
        w.damped(i, i) = T(1) / w.qr.r(i, i);
        for (int k = i - 1; k >= 0; --k) {
            T sum = 0;
            for (int l = k + 1; l <= i; ++l) sum += w.qr.r(k, l) * w.damped(l, i);
            w.damped(k, i) = -sum / w.qr.r(k, k);
        }
    }
    for (int i = 0; i < n; ++i) {
        for (int k = i; k < n; ++k) {
            T sum = 0;
            for (int l = k; l < n; ++l) sum += w.damped(i, l) * w.damped(k, l);
            const int a = w.qr.order[i], b = w.qr.order[k];
            cov(a, b) = cov(b, a) = sum / w.sd[a] / w.sd[b];
        }
    }
}

}  // namespace adaptk::solve
