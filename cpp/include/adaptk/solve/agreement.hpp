// Whether a derivative belongs to its function: asked where no step along a direction of descent goes down, which
// rounding explains, or a derivative of something else.
#pragma once

#include "adaptk/solve/linalg.hpp"

namespace adaptk::solve {

enum class Agreement { holds, fails, aborted };

// `value(t, f)` sets f to the function at x + t d and returns false to abort; f0 is the function at x, `slope` what the
// derivative says along d. Differences of f are taken by steps that shrink from `reach` until f's rounding, of relative
// size `noise`, is a tenth of what they have to show. The slope holds where two steps in a row give it, by a central
// difference or one to a side (a kink has two slopes), or the last step does. It fails where they do not, though the
// last two central differences agree with one another; `found` is what they say.
template <class T, class Value> Agreement judge_slope(T f0, T slope, T reach, T noise, Value&& value, T& found) {
    constexpr T shrink = T(1) / 16;  // so that the truncation of central differences falls by 256
    constexpr int most = 14;         // down to eps of the reach
    constexpr T tolerance = T(0.5), settled_within = T(0.1);
    T before = std::numeric_limits<T>::quiet_NaN();
    bool settled = false, agreed = false;
    T t = reach;
    for (int i = 0; i < most; ++i, t *= shrink) {
        T above, below;
        if (!value(t, above) || !value(-t, below)) return Agreement::aborted;
        if (!std::isfinite(above) || !std::isfinite(below)) continue;
        const T rounding = 8 * noise * std::max({std::abs(above), std::abs(below), std::abs(f0)}) / t;
        const T central = (above / 2 - below / 2) / t;
        const bool agreed_before = agreed;
        agreed = false;
        for (const T difference : {central, (above - f0) / t, (f0 - below) / t})
            agreed = agreed || std::abs(difference - slope) <= tolerance * std::abs(slope) + rounding;
        if (agreed && agreed_before) return Agreement::holds;
        if (rounding > std::abs(slope) / 10) break;
        settled = std::abs(central - before) <= settled_within * std::max(std::abs(central), std::abs(slope));
        before = central;
    }
    found = before;
    return settled && !agreed ? Agreement::fails : Agreement::holds;
}

// Far from zero, all that is left of a slope may be less than the rounding of f but for steps as long as x: outward
// along each axis on which that promises a part of |f|, for as long as f falls. `at` sees the points; false to abort.
template <class T, class At>
bool look_outward(const Vector<T>& x, const Vector<T>& g, T f0, Vector<T>& point, At&& at) {
    constexpr T worth = T(1e-3);
    constexpr int most_axes = 64;
    const int n = int(x.size());
    for (int k = 0; k < std::min(n, most_axes); ++k) {
        if (!(g[k] < 0 ? x[k] > 0 : x[k] < 0) || !(std::abs(g[k]) * std::abs(x[k]) > worth * std::abs(f0))) continue;
        point = x;
        T before = f0;
        for (T factor = 2; std::isfinite(point[k]); factor *= 16) {
            point[k] = factor * x[k];
            T there;
            if (!at(point, there)) return false;
            if (!(there < before)) break;
            before = there;
        }
    }
    return true;
}

// Along d, and if it fails there along each axis. `at(point, f)` is the function at a point; x, g and f0 belong
// together, and `point` and `axis` are there to write into.
template <class T, class At>
Agreement judge_gradient(const Vector<T>& x, const Vector<T>& g, const Vector<T>& d, T f0, T noise, Vector<T>& point,
                         Vector<T>& axis, Disagreement<T>& where, At&& at) {
    constexpr int most_axes = 64;  // each may take some twenty evaluations
    const int n = int(x.size());
    const T d_norm = norm(d), x_norm = norm(x);
    if (!(d_norm > 0) || !std::isfinite(d_norm)) return Agreement::holds;
    const auto along = [&](const Vector<T>& direction, T claimed, T reach, T& found) {
        return judge_slope(
            f0, claimed, reach, noise,
            [&](T t, T& f) {
                point = x + t * direction;
                return at(point, f);
            },
            found);
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
        // Where x_k is 0 as long as all of x, or 1.
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

// The same where the end is a minimum only if there is no lower point outward either.
template <class T, class At>
Agreement judge_minimum(const Vector<T>& x, const Vector<T>& g, const Vector<T>& d, T f0, T noise, Vector<T>& point,
                        Vector<T>& axis, Disagreement<T>& where, At&& at) {
    const Agreement verdict = judge_gradient(x, g, d, f0, noise, point, axis, where, at);
    if (verdict == Agreement::holds && !look_outward(x, g, f0, point, at)) return Agreement::aborted;
    return verdict;
}

// What values are exact to, relative to their size.
template <class T, class Problem> T value_error(const Problem& f) {
    if constexpr (requires { f.value_error(); }) return f.value_error();
    return epsilon<T>;
}

// A tolerance for gradients: `gtol`, but not below what those by differences can reach, if nobody has asked for it.
template <class T, class Problem> T gradient_tolerance(const Problem& f, T gtol, bool keep) {
    if constexpr (requires { f.gradient_error(); })
        if (!keep) return std::max(gtol, T(f.gradient_error()));
    return gtol;
}

// Whether a slope by differences is wrong because there is none: beside `first`, the gradient of the start, the
// function has no slope, and differences have their error.
template <class T, class Problem> bool at_rest(const Problem& f, const Disagreement<T>& d, T first) {
    if constexpr (requires { f.gradient_error(); })
        return f.gradient_error() > 0 && std::abs(d.found) <= 64 * std::sqrt(epsilon<T>) * first;
    return false;
}

// Better derivatives from here on; false where there are none.
template <class Problem> bool refine(Problem& f) {
    if constexpr (requires { f.refine(); }) return f.refine();
    return false;
}

// A gradient that is small beside the largest of the run is that of a minimum only if what is left of the way is small
// beside the way: where f falls like an exponential the gradient does too, long before the minimum.
template <class T> inline constexpr T left_of_the_way = T(1e-3);

}  // namespace adaptk::solve
