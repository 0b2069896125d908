// Searches along x + alpha d, for conjugate_gradient and steepest_descent.
//
//   W. W. Hager, H. Zhang, A new conjugate gradient method with guaranteed descent and an efficient line search,
//   SIAM J. Optim. 16 (2005); Algorithm 851: CG_DESCENT, ACM TOMS 32 (2006)
//   J. Nocedal, S. J. Wright, Numerical Optimization, second edition (2006), Algorithms 3.5 and 3.6
//
// With phi(alpha) = f(x + alpha d) they end with
//   strong Wolfe       phi(a) <= phi(0) + c1 a phi'(0)  and  |phi'(a)| <= c2 |phi'(0)|
//   Wolfe              phi(a) <= phi(0) + c1 a phi'(0)  and  phi'(a) >= c2 phi'(0)
//   approximate Wolfe  (2 c1 - 1) phi'(0) >= phi'(a) >= c2 phi'(0)  and  phi(a) <= phi(0) + 100 eps |phi(0)|
// The approximate conditions can hold even if the others are lost in the rounding of phi.
//
// With bounds the point is the nearest one within them, so that the path is bent: each variable stops at its own bound.
// Then g(x)'(x(alpha) - x) stands for alpha phi'(0), and phi' is the slope of those that still move (D. P. Bertsekas,
// On the Goldstein-Levitin-Polyak gradient projection method, IEEE Trans. Automat. Control 21, 1976). A search that
// ends on a bent path needs the Wolfe conditions alone: phi' may jump over every value that is nearly zero.
#pragma once

#include "adaptk/solve/agreement.hpp"

namespace adaptk::solve {

template <class T> struct LineWork {
    void resize(int n) {
        for (Vector<T>* v : {&x, &g, &d, &xn, &gn, &best, &p, &r, &u, &hu}) v->resize(n);
    }
    Vector<T> x, g, d;  // the point that a search starts from, its gradient, the direction
    Vector<T> xn, gn;   // the point last evaluated
    Vector<T> best;     // the lowest point of the run
    // Of confirm(): the estimated way to the minimum, H p + g, a conjugate direction and its product with H.
    Vector<T> p, r, u, hu;
    Vector<T> lower, upper;  // bounds; without elements: none
    // With bounds, g is the gradient of the free variables, which no bound holds, and 0 for the others. This is all of
    // it, and at the end of the run g is too.
    Vector<T> whole;
    Eigen::Array<bool, Eigen::Dynamic, 1> held;
};

enum class Search { found, failed, aborted, unbounded };
enum class Arrival { minimum, farther, moved, aborted };

template <class T, class Problem> class Line {
  public:
    Line(Problem& problem, LineWork<T>& work, Summary<T>& summary)
        : f(problem), w(work), s(summary), box(work.lower, work.upper) {
        if (!box) return;
        w.whole.setConstant(w.x.size(), std::numeric_limits<T>::quiet_NaN());
        w.held.setConstant(w.x.size(), false);
        box.clip(w.x);
    }

    // The first point of the run.
    bool start() {
        ++s.nfev;
        if (!f.value(w.x.data(), value)) return false;
        w.best = w.x;
        began_far_out = far_out(w.x);
        lowest = first_value = value;
        if (!std::isfinite(value)) return true;
        return gradient();
    }
    // w.g at x; false to abort.
    bool gradient() {
        ++s.njev;
        if (!f.gradient(w.x.data(), w.g.data())) return false;
        if (box) hold();
        return true;
    }

    // phi(alpha), infinite if it is not a number; false to abort.
    bool phi(T a) {
        alpha = a;
        w.xn = w.x + a * w.d;
        if (box) bent = box.clip(w.xn);
        if (!w.xn.allFinite()) {
            // The search has gone as far as numbers reach, or was too bold.
            fn = std::numeric_limits<T>::infinity();
            if (far_out(w.best) && !began_far_out) fn = -fn;
            still = false;
            return true;
        }
        ++s.nfev;
        if (!f.value(w.xn.data(), fn)) return false;
        if (std::isnan(fn)) fn = std::numeric_limits<T>::infinity();
        still = (w.xn.array() == w.x.array()).all();
        if (!still) blocked = !std::isfinite(fn);
        if (fn < lowest) {
            lowest = fn;
            w.best = w.xn;
        }
        slope = std::numeric_limits<T>::quiet_NaN();
        return true;
    }
    // phi'(alpha) at the point last evaluated; if it is not finite, phi counts as infinite.
    bool derivative() {
        ++s.njev;
        if (!f.gradient(w.xn.data(), w.gn.data())) return false;
        slope = w.gn.dot(w.d);
        if (bent)
            for (int i = 0; i < int(w.x.size()); ++i)
                if (box.leads_out(i, w.xn[i], w.d[i])) slope -= w.gn[i] * w.d[i];
        if (!w.gn.allFinite() || !std::isfinite(slope)) {
            fn = std::numeric_limits<T>::infinity();
            blocked = true;
        }
        return true;
    }
    // c1 alpha phi'(0), at the point last evaluated.
    T promised(T c1) const { return bent ? c1 * std::min(T(0), w.g.dot(w.xn - w.x)) : c1 * alpha * slope0; }
    // Moves to the point last evaluated; w.gn becomes the gradient before.
    void accept() {
        step = bent ? norm(w.xn - w.x) : alpha * norm(w.d);
        // |g| over the curvature along d: the remaining distance, if f is as curved in other directions.
        const T curvature =
            bent ? (w.gn - w.whole).dot(w.xn - w.x) / (step * step) : (slope - slope0) / alpha / w.d.squaredNorm();
        w.x.swap(w.xn);
        w.g.swap(w.gn);
        value = fn;
        turned = bent;
        if (box) turned = hold() || bent;
        const T left = std::max(step, curvature > 0 ? norm(w.g) / curvature : std::numeric_limits<T>::infinity());
        path += step;
        ahead = std::max(left_before, left);
        left_before = left;
    }
    // Directions do not lead out of the bounds.
    void trim() {
        if (!box) return;
        for (int i = 0; i < int(w.x.size()); ++i)
            if (w.held[i] || box.leads_out(i, w.x[i], w.d[i])) w.d[i] = 0;
    }
    // Whether a small gradient is that of a minimum.
    // Whether f has fallen as far as squares of x are finite.
    bool endless() const { return !began_far_out && far_out(w.x); }
    bool near() const { return w.g.isZero(T(0)) || ahead <= left_of_the_way<T> * path; }
    // The same by the curvature in more directions than those of the steps, which in a valley lead across it: a few
    // steps of linear conjugate gradients on H p = -g, with H from differences of gradients. Their |p| grows, and is a
    // thousandth of the path at most. A direction of negative curvature leads away from a saddle. `most` is the largest
    // |g|_inf of the run. While the minimum is farther away, this is not worth its gradients in each iteration.
    Arrival confirm(T most_slope) {
        constexpr int most_directions = 10;
        // A corner that steps have jumped to past a lower point, as Barzilai and Borwein's may.
        if (box && lower()) return go_to_lowest() ? Arrival::moved : Arrival::aborted;
        if (w.g.isZero(T(0))) return Arrival::minimum;
        if (s.nit < not_before) return Arrival::farther;
        T noise = value_error<T>(f);
        if constexpr (requires { f.gradient_error(); }) noise = std::max(noise, T(f.gradient_error() / 8));
        const T allowed = left_of_the_way<T> * path, h = std::min(allowed, std::cbrt(noise) * path);
        const T g_norm = norm(w.g), unknown = 4 * noise * most_slope / h;
        if (!(h > 0) || !std::isfinite(unknown)) return Arrival::minimum;
        w.p.setZero();
        w.r = -w.g / g_norm;
        T square = 1;
        // Of a variable that has room on one side only, no curvature is known.
        const auto leave_out = [&](Vector<T>& v) {
            for (int i = 0; i < int(v.size()); ++i)
                if (box.on_bound(i, w.x[i])) v[i] = 0;
        };
        if (box) {
            leave_out(w.r);
            square = w.r.squaredNorm();
            if (!(square > 0)) return Arrival::minimum;
        }
        w.u = w.r;
        for (int k = 0; k < std::min(int(w.x.size()), most_directions); ++k) {
            T t = h / norm(w.u), uncertain = unknown;
            if (box) {
                const T room = std::min(box.room(w.x, w.u, T(1)), box.room(w.x, w.u, T(-1)));
                if (!(room > 0)) return Arrival::minimum;
                uncertain *= std::max(T(1), t / room);
                t = std::min(t, room);
            }
            for (const T side : {T(1), T(-1)}) {
                w.xn = w.x + side * t * w.u;
                if (box) box.clip(w.xn);
                ++s.njev;
                if (!f.gradient(w.xn.data(), w.gn.data())) return Arrival::aborted;
                if (side > 0) w.hu = w.gn;
            }
            w.hu = (w.hu - w.gn) / (2 * t);
            if (box) leave_out(w.hu);
            const T bend = w.u.dot(w.hu), u_square = w.u.squaredNorm();
            if (!(std::abs(bend) > uncertain * u_square)) return Arrival::minimum;
            if (bend < 0) return leave();
            const T a = square / bend;
            w.p += a * w.u;
            if (!(g_norm * norm(w.p) <= allowed)) {
                not_before = s.nit + most_directions + s.nit / 8;
                return Arrival::farther;
            }
            w.r -= a * w.hu;
            const T before = square;
            square = w.r.squaredNorm();
            // Of few variables no direction is left out: the slope along one may only be small.
            if (!(square > T(w.x.size() > most_directions ? 0.01 : 0))) break;
            w.u = square / before * w.u + w.r;
        }
        return Arrival::minimum;
    }
    // Replaces the last point by the lowest one of the run.
    bool finish() {
        if (!(lowest < value)) return true;
        w.x = w.best;
        value = lowest;
        return gradient();
    }
    // The end of a run.
    void end(Status status) {
        s.status = status;
        if (s.status != Status::aborted && std::isfinite(value) && !finish()) s.status = Status::aborted;
        s.value = s.status == Status::unbounded ? lowest : value;
        s.gradient = largest(w.g);
        if (box) w.g = w.whole;
    }

    // The status after a search along d = -g that failed: no step lowers f, f is not finite however short the step, or
    // g is not its gradient. Status::limit: a better gradient is available, so continue. `first` is |g|_inf at the
    // start.
    Status failure(T first) {
        if (blocked) return Status::nonfinite;
        if (largest(w.g) <= std::sqrt(epsilon<T>) * first) return Status::precision;
        const auto at = [&](const Vector<T>& point, T& f_there) { return probe(point, f_there); };
        const Agreement agreement =
            judge_minimum(w.x, box ? w.whole : w.g, w.d, value, value_error<T>(f), w.xn, w.gn, s.disagreement, at, box);
        if (agreement == Agreement::aborted || !look_ahead()) return Status::aborted;
        if (lowest == -std::numeric_limits<T>::infinity()) return Status::unbounded;
        if (agreement == Agreement::fails && at_rest(f, s.disagreement, first)) return Status::precision;
        // A probe that is clearly lower shows that the search was wrong, not that there are no steps.
        const bool useful = lower();
        const bool refined = (agreement == Agreement::fails || useful) && refine(f);
        if (!refined && !(agreement == Agreement::holds && useful))
            return agreement == Agreement::holds ? Status::precision : Status::derivative;
        return go_to_lowest() ? Status::limit : Status::aborted;
    }

    Search strong_wolfe(T first, T c1, T c2);
    Search hager_zhang(T first, T c1, T c2);

    Problem& f;
    LineWork<T>& w;
    Summary<T>& s;
    const Box<T> box;
    T value = 0, lowest = 0;         // at x
    T alpha = 0, fn = 0, slope = 0;  // at xn
    T slope0 = 0;                    // phi'(0)
    T first_value = 0;               // at the start
    T path = 0, step = 0;            // the distance so far, and the last part of it
    std::int64_t not_before = 0;     // the iteration from which confirm() is worth its gradients again
    // The remaining distance, estimated from the last step and from the last two.
    T left_before = std::numeric_limits<T>::infinity(), ahead = std::numeric_limits<T>::infinity();
    bool still = false;    // xn is x, in the arithmetic
    bool blocked = false;  // f or its gradient is not finite at the last xn that is not x
    bool bent = false;     // a bound lies between x and xn
    bool began_far_out = false;
    bool turned = false;  // the last step met a bound, or other variables are held than before it

  private:
    struct Point {
        T a, f, d;
    };
    bool evaluate(T a) {
        if (!phi(a)) return false;
        return std::isfinite(fn) ? derivative() : true;
    }
    bool finite() const { return std::isfinite(fn); }
    // Parts w.g from w.whole; true if other variables are held than before. One that f now pulls off its bound is
    // released if its slope matters beside the others': until then, the directions stay conjugate (as in W. W. Hager,
    // H. Zhang, A new active set algorithm for box constrained optimization, SIAM J. Optim. 17, 2006).
    bool hold() {
        constexpr T matters = T(0.1);
        const int n = int(w.x.size());
        w.whole = w.g;
        bool other = false;
        T most_slope = 0;
        for (int i = 0; i < n; ++i) {
            const bool out = box.holds(i, w.x[i], w.g[i]);
            if (out) {
                other = other || !w.held[i];
                w.held[i] = true;
            } else if (!w.held[i]) {
                most_slope = std::max(most_slope, std::abs(w.g[i]));
            }
        }
        for (int i = 0; i < n; ++i) {
            if (!w.held[i]) continue;
            if (!box.holds(i, w.x[i], w.g[i]) && !(std::abs(w.g[i]) <= matters * most_slope)) {
                w.held[i] = false;
                other = true;
            } else {
                w.g[i] = 0;
            }
        }
        return other;
    }
    // The value at a point that may become the lowest one.
    bool probe(const Vector<T>& point, T& f_there) {
        ++s.nfev;
        if (!f.value(point.data(), f_there)) return false;
        if (f_there < lowest) {
            lowest = f_there;
            w.best = point;
        }
        return true;
    }
    // Near a maximum at zero, rounding hides the fall of f over steps that are short relative to x. If it hides the
    // gradient too, which is by differences, points at up to the typical distance of 1 along d decide. False to abort.
    bool look_ahead() {
        if constexpr (requires { f.gradient_error(); }) {
            if (!(f.gradient_error() > 0)) return true;
            const T d_norm = norm(w.d);
            T there = value;
            for (T t = norm(w.x); t < 1 && t > 0 && there <= value && !lower(); t *= 16) {
                w.xn = w.x + (t / d_norm) * w.d;
                if (box) box.clip(w.xn);
                if (!probe(w.xn, there)) return false;
            }
        }
        return true;
    }
    // Whether the lowest point is lower than x by more than rounding.
    bool lower() const { return value - lowest > 16 * epsilon<T> * std::max(std::abs(value), std::abs(first_value)); }
    // Begins anew at the lowest point.
    bool go_to_lowest() {
        if (lowest < value) {
            w.x = w.best;
            value = lowest;
        }
        path = 0;
        ahead = left_before = std::numeric_limits<T>::infinity();
        return gradient();
    }
    // From a saddle along u or -u, at most as far as the path so far. If no point is lower, the negative curvature was
    // only rounding.
    Arrival leave() {
        T t = path / norm(w.u), there;
        for (int i = 0; i < most; ++i, t /= 4) {
            for (const T side : {t, -t}) {
                w.xn = w.x + side * w.u;
                if (box) box.clip(w.xn);
                if (!probe(w.xn, there)) return Arrival::aborted;
            }
            if (lower()) return go_to_lowest() ? Arrival::moved : Arrival::aborted;
        }
        return Arrival::minimum;
    }
    static constexpr int most = 60;
};

// The minimiser of the cubic through two points with slopes (Nocedal and Wright, equation 3.59), kept off the ends.
template <class P> auto cubic_minimiser(const P& p, const P& q) {
    using T = decltype(p.a);
    const T d1 = p.d + q.d - 3 * ((p.f - q.f) / (p.a - q.a));
    const T under = d1 * d1 - p.d * q.d;
    const T width = q.a - p.a;
    T a = p.a + width / 2;
    if (under >= 0) {
        const T d2 = width < 0 ? -std::sqrt(under) : std::sqrt(under);
        const T c = q.a - width * ((q.d + d2 - d1) / (q.d - p.d + 2 * d2));
        if (std::isfinite(c)) a = c;
    }
    const T low = std::min(p.a, q.a), high = std::max(p.a, q.a), guard = (high - low) / 10;
    return std::min(std::max(a, T(low + guard)), T(high - guard));
}

template <class T, class Problem> Search Line<T, Problem>::strong_wolfe(T first, T c1, T c2) {
    Point low{0, value, slope0}, high{0, 0, 0};
    bool bracketed = false;
    T limit = std::numeric_limits<T>::infinity();  // beyond it the function is not finite
    T a = first;
    for (int i = 0; i < most; ++i) {
        if (!phi(a)) return Search::aborted;
        if (fn == -std::numeric_limits<T>::infinity()) return Search::unbounded;
        if (still) break;
        if (finite() && !derivative()) return Search::aborted;
        // If rounding hides the expected fall of f, a slope that does not get flatter shows that f is still falling.
        const bool hidden = fn <= value && -a * slope0 <= epsilon<T> * std::abs(value) && slope <= T(0.9) * low.d;
        const bool high_enough = !hidden && (fn > value + promised(c1) || (low.a > 0 && fn >= low.f));
        if (!finite()) {
            // Shorten: towards the best point that is known.
            if (bracketed) {
                high = {a, std::numeric_limits<T>::infinity(), 0};
            } else {
                limit = a;
            }
            a = low.a + (a - low.a) / 10;
            if (a == low.a) return Search::failed;
            continue;
        }
        if (high_enough) {
            high = {a, fn, slope};
            bracketed = true;
        } else {
            if (std::abs(slope) <= -c2 * slope0 || (bent && slope >= c2 * slope0)) return Search::found;
            const Point here{a, fn, slope};
            if (!bracketed) {
                if (slope >= 0) {
                    high = low;
                    bracketed = true;
                } else {
                    // Go on, by the cubic through the last two points, two to ten times as far.
                    const T reach = std::min(T(10) * a, std::isinf(limit) ? T(10) * a : a + (limit - a) / 2);
                    low = here;
                    if (!(reach > a)) return Search::failed;
                    a = std::max(std::min(T(4) * a, reach), a);
                    continue;
                }
            } else if (slope * (high.a - here.a) >= 0) {
                high = low;
            }
            low = here;
        }
        if (std::isfinite(high.f) && std::isfinite(high.d)) {
            a = cubic_minimiser(low, high);
        } else {
            a = low.a + (high.a - low.a) / 2;
        }
        if (a == low.a || a == high.a) break;
    }
    // No point meets both conditions: one that meets the first will do.
    if (low.a > 0 && low.f < value) {
        if (!evaluate(low.a)) return Search::aborted;
        return finite() ? Search::found : Search::failed;
    }
    return Search::failed;
}

template <class T, class Problem> Search Line<T, Problem>::hager_zhang(T first, T c1, T c2) {
    const T near = value + 100 * epsilon<T> * std::abs(value);
    const auto done = [&] {
        if (!finite() || slope < c2 * slope0) return false;
        return fn - value <= promised(c1) || (fn <= near && slope <= (2 * c1 - 1) * slope0);
    };
    int evaluations = 0;
    bool aborted = false;
    const auto at = [&](T a) {
        ++evaluations;
        aborted = aborted || !evaluate(a);
        return !aborted;
    };
    Point a{0, value, slope0}, b{0, 0, 0};
    const auto here = [&] { return Point{alpha, fn, slope}; };
    // U3: halve [low, high], where phi(low) <= near and phi(high) > near, until the right slope is positive.
    const auto narrow = [&](Point low, Point high) {
        while (evaluations < most) {
            const T c = low.a + (high.a - low.a) / 2;
            if (c == low.a || c == high.a) break;
            if (!at(c) || done()) break;
            if (finite() && slope >= 0) {
                high = here();
                break;
            }
            if (finite() && fn <= near) {
                low = here();
            } else {
                high = here();
            }
        }
        a = low;
        b = high;
    };
    // B0 to B3: bracket the minimum, growing fivefold.
    T c = first;
    bool bracket = false;
    T limit = std::numeric_limits<T>::infinity();
    while (evaluations < most && !bracket) {
        if (!at(c)) return Search::aborted;
        if (fn == -std::numeric_limits<T>::infinity()) return Search::unbounded;
        if (still) break;
        if (!finite()) {
            limit = c;
            c = a.a + (c - a.a) / 10;
            if (c == a.a) break;
            continue;
        }
        if (done()) return Search::found;
        if (slope >= 0) {
            b = here();
            bracket = true;
        } else if (fn > near) {
            narrow(Point{0, value, slope0}, here());
            if (aborted) return Search::aborted;
            if (done()) return Search::found;
            bracket = true;
        } else {
            a = here();
            const T next = std::isinf(limit) ? 5 * c : std::min(5 * c, c + (limit - c) / 2);
            if (!(next > c) || !std::isfinite(next)) break;
            c = next;
        }
    }
    // The interval update U0 to U3. True where the search is over.
    const auto update = [&](T c_) {
        if (!(c_ > a.a && c_ < b.a)) return false;
        if (!at(c_)) return true;
        if (done()) return true;
        if (!finite() || (slope < 0 && fn > near)) {
            narrow(a, here());
            return aborted || done();
        }
        (slope >= 0 ? b : a) = here();
        return false;
    };
    const auto secant = [](const Point& p, const Point& q) { return (p.a * q.d - q.a * p.d) / (q.d - p.d); };
    while (bracket && evaluations < most && b.a - a.a > epsilon<T> * b.a) {
        const T width = b.a - a.a;
        const Point a0 = a, b0 = b;
        const T s1 = secant(a, b);
        if (std::isfinite(s1) && update(s1)) return aborted ? Search::aborted : Search::found;
        if (std::isfinite(s1) && (s1 == a.a || s1 == b.a)) {
            const T s2 = s1 == b.a ? secant(b0, b) : secant(a0, a);
            if (std::isfinite(s2) && update(s2)) return aborted ? Search::aborted : Search::found;
        }
        if (b.a - a.a > T(0.66) * width && update(a.a + (b.a - a.a) / 2))
            return aborted ? Search::aborted : Search::found;
    }
    if (a.a > 0 && a.f < value) {
        if (!evaluate(a.a)) return Search::aborted;
        return finite() ? Search::found : Search::failed;
    }
    return Search::failed;
}

}  // namespace adaptk::solve
