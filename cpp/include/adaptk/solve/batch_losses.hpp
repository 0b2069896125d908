// Losses that batches can minimise instead of squares: robust losses (see losses.hpp), and the Poisson deviance, twice
// the sum of model - data + data log(data / model), whose minimiser is the maximum-likelihood model of counts.
//
//   B. Triggs et al., Bundle adjustment: a modern synthesis (2000), section 4.3: rows of robust losses
//   T. A. Laurence, B. A. Chromy, Efficient maximum likelihood estimator fitting of histograms, Nature Methods 7 (2010)
//
// Both compute rows and residuals with the gradient of the loss, and the term of the loss for each point.
#pragma once

#include "adaptk/solve/lanes.hpp"
#include "adaptk/solve/losses.hpp"

namespace adaptk::solve {
inline namespace ADAPTK_TARGET {

// Members of a template over Rows for the reason that batch.hpp gives.
template <class Rows, class V> struct BatchLosses {
    using T = Element<V>;

    struct Value {
        V rho, first, second;
    };
    ADAPTK_KERNEL_TOO static Value loss_at(Loss loss, V z) {
        const V one = lane<V>(1), u = z + T(1);
        switch (loss) {
        case Loss::linear: break;
        case Loss::huber: {
            const auto inside = z <= T(1);
            const V root = sqrt(z);
            return {inside ? z : T(2) * root - T(1), inside ? one : T(1) / root, inside ? V{} : T(-0.5) / (z * root)};
        }
        case Loss::soft_l1: {
            const V root = sqrt(u);
            return {T(2) * (z / (root + T(1))), T(1) / root, T(-0.5) / (u * root)};
        }
        case Loss::cauchy: {
            const V inverse = T(1) / u;
            return {log1p(z), inverse, -inverse * inverse};
        }
        case Loss::arctan: {
            const V inverse = T(1) / (z * z + T(1));
            return {atan(z), inverse, T(-2) * (z * inverse) * inverse};
        }
        case Loss::tukey: {
            const auto inside = z < T(1);
            const V v = T(1) - z;
            return {inside ? z * (T(1) - z + z * z * (T(1) / T(3))) : lane<V>(T(1) / T(3)), inside ? v * v : V{},
                    inside ? T(-2) * v : V{}};
        }
        }
        return {z, one, V{}};
    }

    // `count` rows of n derivatives and a residual; `scale` is C. `missing`, unless null, receives by how much the
    // loss's curvature differs from a row's weight, as a share of that weight: at most 0.
    ADAPTK_KERNEL_TOO static void robust_rows(Loss loss, V scale, int n, int count, V* row, V* terms,
                                              V* missing = nullptr) {
        for (int i = 0; i < count; ++i, row += n + 1) {
            const V r = row[n], q = r / scale, z = q * q;
            const Value v = loss_at(loss, z);
            const V curved = v.first + T(2) * v.second * z, least = least_curvature<T> * v.first;
            const V root = sqrt(greater_of(curved, least));
            ADAPTK_KERNEL_UNROLL
            for (int j = 0; j < n; ++j) row[j] *= root;
            row[n] = root > T(0) ? r * (v.first / root) : V{};
            if (missing != nullptr) missing[i] = curved < least ? curved / least - T(1) : V{};
            // An infinite residual is rejected, even if its loss is finite.
            terms[i] = absolute(r) < infinity<T> ? scale * scale * v.rho : r - r;
        }
    }

    // The same for counts, which are the first of the `stride` lanes of each point.
    template <class Points>
    ADAPTK_KERNEL_TOO static void poisson_rows(Points points, int stride, int n, int count, V* row, V* terms) {
        for (int i = 0; i < count; ++i, row += n + 1, points += stride) {
            const V y = points[0], off = row[n];
            const V inverse = T(1) / sqrt(off + y);
            // y log(model / y), as exact as model - y.
            const auto some = y > T(0);
            const V along = some ? y * log1p(off / (some ? y : lane<V>(1))) : V{};
            terms[i] = T(2) * (off - along);
            ADAPTK_KERNEL_UNROLL
            for (int j = 0; j <= n; ++j) row[j] *= inverse;
        }
    }

    // meat = G meat G' with G = a curvature^-1, or G = a if the curvature is not safely positive definite. `a` is n x
    // n, upper triangular, and its rows `stride` apart; g and half are n x n.
    ADAPTK_KERNEL_TOO static bool join(int n, const T* a, int stride, T* curvature, T* meat, T* g, T* half) {
        constexpr T safe = T(0.1);  // as in covariance.hpp
        for (int i = 0; i < n; ++i)
            for (int k = 0; k < n; ++k) g[i * n + k] = k < i ? T(0) : a[i * stride + k];
        // Cholesky's factor, in place.
        T* const c = curvature;
        bool definite = true;
        for (int j = 0; j < n && definite; ++j) {
            for (int k = 0; k <= j; ++k) {
                T sum = c[j * n + k];
                for (int i = 0; i < k; ++i) sum -= c[j * n + i] * c[k * n + i];
                definite = definite && (k < j || sum > safe * safe);
                c[j * n + k] = k < j ? sum / c[k * n + k] : sqrt<T>(sum);
            }
        }
        for (int i = 0; i < n && definite; ++i) {
            T* const row = g + i * n;
            for (int j = 0; j < n; ++j) {
                for (int k = 0; k < j; ++k) row[j] -= row[k] * c[j * n + k];
                row[j] /= c[j * n + j];
            }
            for (int j = n - 1; j >= 0; --j) {
                for (int k = j + 1; k < n; ++k) row[j] -= row[k] * c[k * n + j];
                row[j] /= c[j * n + j];
            }
        }
        bool finite = true;
        for (int i = 0; i < n; ++i)
            for (int k = 0; k < n; ++k) {
                half[i * n + k] = 0;
                for (int j = 0; j < n; ++j) half[i * n + k] += g[i * n + j] * meat[j * n + k];
            }
        for (int i = 0; i < n; ++i)
            for (int k = 0; k < n; ++k) {
                meat[i * n + k] = 0;
                for (int j = 0; j < n; ++j) meat[i * n + k] += half[i * n + j] * g[k * n + j];
                finite = finite && absolute<T>(meat[i * n + k]) < infinity<T>;
            }
        return finite;
    }
};

}  // namespace ADAPTK_TARGET
}  // namespace adaptk::solve
