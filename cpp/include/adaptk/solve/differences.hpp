// Derivatives by differences. The steps are relative to max(|x|, typical): eps^(1/2) for one-sided differences and
// eps^(1/3) for central ones balance truncation and rounding (Dennis and Schnabel 1983, section 5.4), and become what
// x + h - x is in the arithmetic.
#pragma once

#include "adaptk/solve/result.hpp"

#include <algorithm>

namespace adaptk::solve {

enum class Difference { none, two_point, three_point, complex_step };

// `noise` is what values are exact to.
template <class T> T difference_scale(Difference method, T noise = epsilon<T>) {
    if (method == Difference::two_point) return std::sqrt(noise);
    if (method == Difference::three_point) return std::cbrt(noise);
    // No rounding: anything whose square vanishes.
    return epsilon<T> * epsilon<T>;
}

// The step of variable x, away from zero, and inside [lower, upper] for both x + h and, if `central`, x - h where the
// bounds leave room. One-sided steps turn round at a bound; `central` is withdrawn where one side has no room.
template <class T> T difference_step(T x, T relative, T typical, T lower, T upper, bool& central) {
    T h = relative * std::max(std::abs(x), typical);
    if (x < 0) h = -h;
    const auto inside = [&](T at) { return at >= lower && at <= upper; };
    if (central && !(inside(x + h) && inside(x - h))) central = false;
    if (!inside(x + h)) {
        if (inside(x - h)) {
            h = -h;
        } else {
            // Both sides are near: the larger one, all of it.
            h = upper - x >= x - lower ? upper - x : lower - x;
        }
    }
    // Volatile: the difference that is stored, not one in a wider register.
    volatile T there = x + h;
    return there - x;
}

}  // namespace adaptk::solve
