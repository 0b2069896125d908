// The peer of bench/solve_batch.py: Levenberg and Marquardt's method as one writes it down, one problem at a time, with
// std::exp, the normal equations and their Cholesky factor. Scaling, damping and tests of the end are those of
// adaptk/solve/batch.hpp, so that both take the same trial points.
#include <algorithm>
#include <cmath>
#include <limits>

namespace {

constexpr int n = 5;

template <class T> struct Sums {
    T h[n][n], g[n], cost;
};

// 5 x 5 pixels or any other square; p = amplitude, x, y, sigma, offset
template <class T> void evaluate(const T* data, int side, const T* p, Sums<T>& s) {
    s = {};
    const T inverse = 1 / p[3];
    for (int row = 0; row < side; ++row) {
        for (int column = 0; column < side; ++column) {
            const T u = (T(column) - p[1]) * inverse, v = (T(row) - p[2]) * inverse, square = u * u + v * v;
            const T e = std::exp(T(-0.5) * square), ae = p[0] * e;
            const T j[n] = {e, ae * u * inverse, ae * v * inverse, ae * square * inverse, 1};
            const T r = ae + p[4] - data[row * side + column];
            s.cost += r * r;
            for (int a = 0; a < n; ++a) {
                s.g[a] += j[a] * r;
                for (int b = 0; b <= a; ++b) s.h[a][b] += j[a] * j[b];
            }
        }
    }
}

// (D^-1 h D^-1 + mu) y = -D^-1 g; false where rounding has left the matrix without a factor.
template <class T> bool solve(const Sums<T>& s, const T* d, T mu, T* p) {
    T l[n][n], y[n];
    for (int i = 0; i < n; ++i) {
        for (int k = 0; k <= i; ++k) {
            T sum = s.h[i][k] / (d[i] * d[k]) + (i == k ? mu : T(0));
            for (int q = 0; q < k; ++q) sum -= l[i][q] * l[k][q];
            if (i > k) {
                l[i][k] = sum / l[k][k];
            } else if (sum > 0) {
                l[i][i] = std::sqrt(sum);
            } else {
                return false;
            }
        }
        T sum = -s.g[i] / d[i];
        for (int q = 0; q < i; ++q) sum -= l[i][q] * y[q];
        y[i] = sum / l[i][i];
    }
    for (int i = n - 1; i >= 0; --i) {
        T sum = y[i];
        for (int q = i + 1; q < n; ++q) sum -= l[q][i] * y[q];
        y[i] = sum / l[i][i];
    }
    for (int i = 0; i < n; ++i) p[i] = y[i] / d[i];
    return true;
}

template <class T> int fit(const T* data, int side, T* x, T ftol, T xtol, T gtol, int max_iterations, int& trials) {
    Sums<T> now, next;
    T d[n], p[n], trial[n], mu = T(1e-3), nu = 2;
    trials = 0;
    evaluate(data, side, x, now);
    if (!std::isfinite(now.cost)) return -3;
    for (int i = 0; i < n; ++i) d[i] = std::sqrt(now.h[i][i]);
    for (;;) {
        bool stationary = true;
        for (int i = 0; i < n; ++i)
            stationary = stationary && std::abs(now.g[i]) <= gtol * std::sqrt(now.h[i][i]) * std::sqrt(now.cost);
        if (stationary) return 1;
        if (trials >= max_iterations) return 0;
        T scale[n];
        for (int i = 0; i < n; ++i) scale[i] = d[i] > 0 ? d[i] : T(1);
        while (!solve(now, scale, mu, p)) mu = std::max(mu * 10, std::numeric_limits<T>::epsilon());
        T step = 0, size = 0, gain = 0;
        bool same = true;
        for (int i = 0; i < n; ++i) {
            trial[i] = x[i] + p[i];
            same = same && trial[i] == x[i];
            step += (scale[i] * p[i]) * (scale[i] * p[i]);
            size += (scale[i] * x[i]) * (scale[i] * x[i]);
        }
        // The step solves (h + mu D^2) p = -g: p'h p + 2 mu |D p|^2 is what the model predicts.
        for (int i = 0; i < n; ++i) gain -= p[i] * now.g[i];
        const T predicted = (gain + mu * step) / now.cost;
        if (same) return 5;
        evaluate(data, side, trial, next);
        ++trials;
        const bool finite = std::isfinite(next.cost);
        const T actual = (now.cost - next.cost) / now.cost, ratio = actual / predicted;
        const bool taken = finite && next.cost < now.cost;
        if (taken) {
            for (int i = 0; i < n; ++i) {
                x[i] = trial[i];
                d[i] = std::max(d[i], std::sqrt(next.h[i][i]));
            }
            now = next;
            const T w = 2 * ratio - 1;
            mu *= std::max(T(0.03), 1 - w * w * w);
            nu = 2;
        } else {
            mu *= nu;
            nu *= 2;
        }
        const bool reduced = finite && std::abs(actual) <= ftol && std::abs(predicted) <= ftol && ratio <= 2;
        const bool small = std::sqrt(step) <= xtol * std::sqrt(size);
        if (reduced) return small ? 4 : 2;
        if (small) return 3;
    }
}

template <class T>
void fit_all(long count, int side, const T* data, const T* start, T* x, T* tolerances, int max_iterations, int* status,
             int* trials) {
    for (long k = 0; k < count; ++k) {
        std::copy(start, start + n, x + k * n);
        status[k] = fit(data + k * side * side, side, x + k * n, tolerances[0], tolerances[1], tolerances[2],
                        max_iterations, trials[k]);
    }
}

}  // namespace

extern "C" {
void fit_float(long count, int side, const float* data, const float* start, float* x, float* tolerances,
               int max_iterations, int* status, int* trials) {
    fit_all(count, side, data, start, x, tolerances, max_iterations, status, trials);
}
void fit_double(long count, int side, const double* data, const double* start, double* x, double* tolerances,
                int max_iterations, int* status, int* trials) {
    fit_all(count, side, data, start, x, tolerances, max_iterations, status, trials);
}
}
