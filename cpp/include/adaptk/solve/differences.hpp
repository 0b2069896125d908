// Derivatives by differences. The steps are relative to max(|x|, typical): eps^(1/2) for one-sided differences and
// eps^(1/3) for central ones balance truncation and rounding (Dennis and Schnabel 1983, section 5.4). The step used is
// x + h - x as computed.
#pragma once

#include "adaptk/solve/result.hpp"

#include <algorithm>

namespace adaptk::solve {

enum class Difference { none, two_point, three_point, complex_step };

// `noise` is the relative error of values.
template <class T> T difference_scale(Difference method, T noise = epsilon<T>) {
    if (method == Difference::two_point) return std::sqrt(noise);
    if (method == Difference::three_point) return std::cbrt(noise);
    // No rounding error: any step whose square vanishes.
    return epsilon<T> * epsilon<T>;
}

// The step h of variable x, away from zero. x + h and, if `central`, x - h are inside [lower, upper] if the bounds
// leave room. One-sided steps change direction at a bound; `central` is set to false if one side has no room.
template <class T> T difference_step(T x, T relative, T typical, T lower, T upper, bool& central) {
    T h = relative * std::max(std::abs(x), typical);
    if (x < 0) h = -h;
    const auto inside = [&](T at) { return at >= lower && at <= upper; };
    if (central && !(inside(x + h) && inside(x - h))) central = false;
    if (!inside(x + h)) {
        if (inside(x - h)) {
            h = -h;
        } else {
            // Both bounds are near: go all the way to the farther one.
            h = upper - x >= x - lower ? upper - x : lower - x;
        }
    }
    // Volatile, so that x + h is rounded as stored and not kept in a wider register.
    volatile T there = x + h;
    return there - x;
}

}  // namespace adaptk::solve
