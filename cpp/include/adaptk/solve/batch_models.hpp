// The models that levenberg_marquardt_batch knows by name. A model has
//     static constexpr int size;      parameters
//     static constexpr int inputs;    coordinates of a point
//     template <class V> void operator()(const V* p, const V* x, V& value, V* slope) const;
// with V one of the types of lanes.hpp: the value at the point x, and its derivatives by the parameters. The compiler
// moves what depends only on the parameters out of the loop over points.
#pragma once

#include "adaptk/solve/lanes.hpp"

namespace adaptk::solve {
inline namespace ADAPTK_TARGET {

// a exp(-(x - c)^2 / (2 s^2)) + o;  p = a, c, s, o
struct Gaussian {
    static constexpr int size = 4, inputs = 1;
    template <class V> ADAPTK_HD void operator()(const V* p, const V* x, V& value, V* slope) const {
        using T = Element<V>;
        const V inverse = T(1) / p[2];
        const V u = (x[0] - p[1]) * inverse;
        const V e = exp(u * u * T(-0.5)), ae = p[0] * e;
        value = ae + p[3];
        slope[0] = e;
        slope[1] = ae * u * inverse;
        slope[2] = slope[1] * u;
        slope[3] = lane<V>(1);
    }
};

// a exp(-((x - cx)^2 + (y - cy)^2) / (2 s^2)) + o;  p = a, cx, cy, s, o
struct Gaussian2d {
    static constexpr int size = 5, inputs = 2;
    template <class V> ADAPTK_HD void operator()(const V* p, const V* x, V& value, V* slope) const {
        using T = Element<V>;
        const V inverse = T(1) / p[3];
        const V u = (x[0] - p[1]) * inverse, v = (x[1] - p[2]) * inverse;
        const V square = u * u + v * v;
        const V e = exp(square * T(-0.5)), ae = p[0] * e, scaled = ae * inverse;
        value = ae + p[4];
        slope[0] = e;
        slope[1] = scaled * u;
        slope[2] = scaled * v;
        slope[3] = scaled * square;
        slope[4] = lane<V>(1);
    }
};

// a exp(-(x - cx)^2 / (2 sx^2) - (y - cy)^2 / (2 sy^2)) + o;  p = a, cx, cy, sx, sy, o
struct Gaussian2dElliptic {
    static constexpr int size = 6, inputs = 2;
    template <class V> ADAPTK_HD void operator()(const V* p, const V* x, V& value, V* slope) const {
        using T = Element<V>;
        const V across = T(1) / p[3], along = T(1) / p[4];
        const V u = (x[0] - p[1]) * across, v = (x[1] - p[2]) * along;
        const V e = exp((u * u + v * v) * T(-0.5)), ae = p[0] * e;
        value = ae + p[5];
        slope[0] = e;
        slope[1] = ae * u * across;
        slope[2] = ae * v * along;
        slope[3] = slope[1] * u;
        slope[4] = slope[2] * v;
        slope[5] = lane<V>(1);
    }
};

// The same in axes rotated by the angle t: u = ((x - cx) cos t + (y - cy) sin t) / su,
// v = ((y - cy) cos t - (x - cx) sin t) / sv, a exp(-(u^2 + v^2) / 2) + o;  p = a, cx, cy, su, sv, o, t
struct Gaussian2dRotated {
    static constexpr int size = 7, inputs = 2;
    template <class V> ADAPTK_HD void operator()(const V* p, const V* x, V& value, V* slope) const {
        using T = Element<V>;
        V sine, cosine;
        sine_cosine(p[6], sine, cosine);
        const V across = T(1) / p[3], along = T(1) / p[4];
        const V dx = x[0] - p[1], dy = x[1] - p[2];
        const V first = dx * cosine + dy * sine, second = dy * cosine - dx * sine;
        const V u = first * across, v = second * along;
        const V e = exp((u * u + v * v) * T(-0.5)), ae = p[0] * e;
        const V by_first = ae * u * across, by_second = ae * v * along;  // of -value
        value = ae + p[5];
        slope[0] = e;
        slope[1] = by_first * cosine - by_second * sine;
        slope[2] = by_first * sine + by_second * cosine;
        slope[3] = by_first * u;
        slope[4] = by_second * v;
        slope[5] = lane<V>(1);
        slope[6] = by_second * first - by_first * second;
    }
};

// a / (1 + ((x - c) / w)^2) + o, where w is half the width at half the height; p = a, c, w, o
struct Lorentz {
    static constexpr int size = 4, inputs = 1;
    template <class V> ADAPTK_HD void operator()(const V* p, const V* x, V& value, V* slope) const {
        using T = Element<V>;
        const V inverse = T(1) / p[2];
        const V u = (x[0] - p[1]) * inverse;
        const V e = T(1) / (T(1) + u * u), ae = p[0] * e;
        value = ae + p[3];
        slope[0] = e;
        slope[1] = T(2) * ae * e * u * inverse;
        slope[2] = slope[1] * u;
        slope[3] = lane<V>(1);
    }
};

// a_1 exp(-b_1 x) + ... + o;  p = a_1, b_1, ..., o
template <int terms> struct Exponentials {
    static constexpr int size = 2 * terms + 1, inputs = 1;
    template <class V> ADAPTK_HD void operator()(const V* p, const V* x, V& value, V* slope) const {
        value = p[2 * terms];
        ADAPTK_KERNEL_UNROLL
        for (int i = 0; i < terms; ++i) {
            const V e = exp(-p[2 * i + 1] * x[0]), ae = p[2 * i] * e;
            value += ae;
            slope[2 * i] = e;
            slope[2 * i + 1] = -x[0] * ae;
        }
        slope[2 * terms] = lane<V>(1);
    }
};

// p_0 + p_1 x + p_2 x^2 + ...
template <int parameters> struct Polynomial {
    static constexpr int size = parameters, inputs = 1;
    template <class V> ADAPTK_HD void operator()(const V* p, const V* x, V& value, V* slope) const {
        value = p[size - 1];
        for (int i = size - 2; i >= 0; --i) value = value * x[0] + p[i];
        slope[0] = lane<V>(1);
        for (int i = 1; i < size; ++i) slope[i] = slope[i - 1] * x[0];
    }
};

// (p_0 + p_1 x + ... + p_d x^d) / (1 + p_{d+1} x + p_{d+2} x^2 + ...), where d is the degree of the numerator
template <int parameters> struct Rational {
    static_assert(parameters >= 2);
    static constexpr int size = parameters, inputs = 1;
    int degree = size - 1;
    template <class V> ADAPTK_HD void operator()(const V* p, const V* x, V& value, V* slope) const {
        using T = Element<V>;
        V above = p[degree], below = lane<V>(0);
        for (int i = degree - 1; i >= 0; --i) above = above * x[0] + p[i];
        for (int i = size - 1; i > degree; --i) below = (below + p[i]) * x[0];
        const V inverse = T(1) / (T(1) + below);
        value = above * inverse;
        slope[0] = inverse;
        for (int i = 1; i <= degree && i < size; ++i) slope[i] = slope[i - 1] * x[0];
        V power = -value * inverse;
        for (int i = degree + 1; i < size; ++i) slope[i] = power = power * x[0];
    }
};

}  // namespace ADAPTK_TARGET
}  // namespace adaptk::solve
