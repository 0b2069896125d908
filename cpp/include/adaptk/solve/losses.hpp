// Robust losses of least squares: half the sum of C^2 rho(r_i^2 / C^2) is minimised.
#pragma once

#include <cmath>

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

// The weight of a residual's row is its curvature rho' + 2 rho'' z, but at least this share of rho'. From a tiny
// weight, columns would jump by its inverse root when an outlier comes closer, and the radius with them.
template <class T> inline constexpr T least_curvature = T(0.1);

template <class T> T row_weight(const LossValue<T>& v, T z) {
    return std::fmax(v.first + 2 * v.second * z, least_curvature<T> * v.first);
}

}  // namespace adaptk::solve
