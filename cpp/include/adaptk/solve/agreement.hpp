// Whether a derivative belongs to its function. Solvers ask this when no step along a descent direction lowers the
// function: either because of rounding, or because the derivative is wrong.
#pragma once

#include "adaptk/solve/box.hpp"

namespace adaptk::solve {

enum class Agreement { holds, fails, aborted };

// `value(t, f)` sets f to the function at x + t d and returns false to abort; f0 is the function at x, and `slope` is
// what the derivative gives along d. Differences of f are taken with steps that shrink from `reach` until the rounding
// of f, of relative size `noise`, is a tenth of the expected slope. The slope holds if differences agree with it for
// two steps in a row or for the last step; a difference may be central or to one side (a kink has two slopes). It fails
// if they do not, although the last two central differences agree with each other; `found` is then their value. Bounds
// may leave less room for t than this: above and below zero.
template <class T, class Value>
Agreement judge_slope(T f0, T slope, T reach, T noise, Value&& value, T& found,
                      T room_above = std::numeric_limits<T>::infinity(),
                      T room_below = std::numeric_limits<T>::infinity()) {
    constexpr T shrink = T(1) / 16;  // so that the truncation error of central differences falls by 256
    constexpr int most = 14;         // down to eps of the reach
    constexpr T tolerance = T(0.5), settled_within = T(0.1);
    T before = std::numeric_limits<T>::quiet_NaN();
    bool settled = false, agreed = false;
    T t = reach;
    for (int i = 0; i < most; ++i, t *= shrink) {
        const T up = std::min(t, room_above), down = std::min(t, room_below), half = up / 2 + down / 2;
        if (!(half > 0)) return Agreement::holds;
        T above = f0, below = f0;
        if (up > 0 && !value(up, above)) return Agreement::aborted;
        if (down > 0 && !value(-down, below)) return Agreement::aborted;
        if (!std::isfinite(above) || !std::isfinite(below)) continue;
        const T rounding = 8 * noise * std::max({std::abs(above), std::abs(below), std::abs(f0)}) / half;
        const T central = (above / 2 - below / 2) / half;
        const bool agreed_before = agreed;
        agreed = false;
        for (const T difference :
             {central, up > 0 ? (above - f0) / up : central, down > 0 ? (f0 - below) / down : central})
            agreed = agreed || std::abs(difference - slope) <= tolerance * std::abs(slope) + rounding;
        if (agreed && agreed_before) return Agreement::holds;
        if (rounding > std::abs(slope) / 10) break;
        settled = std::abs(central - before) <= settled_within * std::max(std::abs(central), std::abs(slope));
        before = central;
    }
    found = before;
    return settled && !agreed ? Agreement::fails : Agreement::holds;
}

// Far from zero, a slope may change f by more than its rounding only over steps as long as x. So this tries points
// farther outward along each axis on which such a step promises a fraction of |f|, as long as f falls. `at` evaluates
// the points, and returns false to abort.
template <class T, class At>
bool look_outward(const Vector<T>& x, const Vector<T>& g, T f0, Vector<T>& point, At&& at, const Box<T>& box) {
    constexpr T worth = T(1e-3);
    constexpr int most_axes = 64;
    const int n = int(x.size());
    for (int k = 0; k < std::min(n, most_axes); ++k) {
        if (!(g[k] < 0 ? x[k] > 0 : x[k] < 0) || !(std::abs(g[k]) * std::abs(x[k]) > worth * std::abs(f0))) continue;
        point = x;
        T before = f0;
        for (T factor = 2;; factor *= 16) {
            const T last = point[k];
            point[k] = box ? box.inside(k, factor * x[k]) : factor * x[k];
            if (point[k] == last || !std::isfinite(point[k])) break;
            T there;
            if (!at(point, there)) return false;
            if (!(there < before)) break;
            before = there;
        }
    }
    return true;
}

// Judges the slope along d, and if it fails, along each axis. `at(point, f)` sets f to the function at a point; x, g
// and f0 belong together, and `point` and `axis` are work space. No point outside the bounds is asked for.
template <class T, class At>
Agreement judge_gradient(const Vector<T>& x, const Vector<T>& g, const Vector<T>& d, T f0, T noise, Vector<T>& point,
                         Vector<T>& axis, Disagreement<T>& where, At&& at, const Box<T>& box = {}) {
    constexpr int most_axes = 64;  // each may take some twenty evaluations
    const int n = int(x.size());
    const T d_norm = norm(d), x_norm = norm(x);
    if (!(d_norm > 0) || !std::isfinite(d_norm)) return Agreement::holds;
    const auto along = [&](const Vector<T>& direction, T claimed, T reach, T& found) {
        return judge_slope(
            f0, claimed, reach, noise,
            [&](T t, T& f) {
                point = x + t * direction;
                if (box) box.clip(point);
                return at(point, f);
            },
            found, box.room(x, direction, T(1)), box.room(x, direction, T(-1)));
    };
    const T claimed = g.dot(d);
    T found;
    const T reach = x_norm > 0 ? x_norm / d_norm : T(1);
    const Agreement verdict = along(d, claimed, reach, found);
    if (verdict != Agreement::fails) return verdict;
    where = {-1, claimed / d_norm, found / d_norm};
    if (n > most_axes) return verdict;
    T worst = 0;
    for (int k = 0; k < n; ++k) {
        axis.setZero();
        axis[k] = 1;
        // If x_k is 0, the length of x, or 1.
        const T size = x[k] != 0 ? std::abs(x[k]) : x_norm > 0 ? x_norm : T(1);
        const Agreement one = along(axis, g[k], size, found);
        if (one == Agreement::aborted) return one;
        const T error = std::abs(found - g[k]);
        if (one != Agreement::fails || !(error > worst)) continue;
        worst = error;
        where = {k, g[k], found};
    }
    return verdict;
}

// The same, and if the slope holds, also looks outward for a lower point.
template <class T, class At>
Agreement judge_minimum(const Vector<T>& x, const Vector<T>& g, const Vector<T>& d, T f0, T noise, Vector<T>& point,
                        Vector<T>& axis, Disagreement<T>& where, At&& at, const Box<T>& box = {}) {
    const Agreement verdict = judge_gradient(x, g, d, f0, noise, point, axis, where, at, box);
    if (verdict == Agreement::holds && !look_outward(x, g, f0, point, at, box)) return Agreement::aborted;
    return verdict;
}

// The relative error of values.
template <class T, class Problem> T value_error(const Problem& f) {
    if constexpr (requires { f.value_error(); }) return f.value_error();
    return epsilon<T>;
}

// The tolerance for gradients: `gtol`, but unless `keep`, not below what gradients by differences can reach.
template <class T, class Problem> T gradient_tolerance(const Problem& f, T gtol, bool keep) {
    if constexpr (requires { f.gradient_error(); })
        if (!keep) return std::max(gtol, T(f.gradient_error()));
    return gtol;
}

// Whether a slope by differences only seems wrong because it is near zero: relative to `first`, the gradient at the
// start, the function has no slope, and differences show their error.
template <class T, class Problem> bool at_rest(const Problem& f, const Disagreement<T>& d, T first) {
    if constexpr (requires { f.gradient_error(); })
        return f.gradient_error() > 0 && std::abs(d.found) <= 64 * std::sqrt(epsilon<T>) * first;
    return false;
}

// Switches to better derivatives; false if there are none.
template <class Problem> bool refine(Problem& f) {
    if constexpr (requires { f.refine(); }) return f.refine();
    return false;
}

// Whether squares of x overflow. If f has fallen all the way to such a point from one that is not so large, it falls
// for ever.
template <class T> bool far_out(const Vector<T>& x) { return !(largest(x) < std::sqrt(std::numeric_limits<T>::max())); }

// A gradient that is small relative to the largest of the run is that of a minimum only if the remaining distance is
// small relative to the distance so far: if f falls exponentially, so does the gradient, long before the minimum.
template <class T> inline constexpr T left_of_the_way = T(1e-3);

}  // namespace adaptk::solve
