// The step of a trust-region method: p minimises the model g'p + p'Hp/2 subject to |p| <= radius.
//
//   J. J. More, D. C. Sorensen, Computing a trust region step, SIAM J. Sci. Stat. Comput. 4 (1983)
//   T. Steihaug, The conjugate gradient method and trust regions in large scale optimization,
//   SIAM J. Numer. Anal. 20 (1983)
#pragma once

#include "adaptk/solve/linalg.hpp"

namespace adaptk::solve {

template <class T> struct TrustStep {
    T predicted = 0;  // by how much the model falls
    T length = 0;     // |p|
    T shift = 0;      // lambda of (H + lambda I) p = -g
    bool at_boundary = false;
    bool ok = true;
};

// A radius after a step of this length that the model predicted well. After three doublings in a row it has been far
// too short, as where f falls for ever, and grows by 4, 8, 16 and so on.
template <class T> T wider_radius(T length, int doublings) {
    return std::min(std::ldexp(length, std::max(1, doublings - 2)), std::numeric_limits<T>::max() / 4);
}

template <class T> struct TrustWork {
    void resize(int n) {
        g.resize(n);
        y.resize(n);
        z.resize(n);
        u.resize(n);
    }
    Vector<T> g, y, z, u;
};

// In the basis where H is the tridiagonal T: g becomes Q'g, p comes back as Q y. Each trial of lambda costs O(n).
//
// lambda is a root of 1/|p| - 1/radius, which is nearly linear in lambda: Newton's iteration, kept inside an interval
// that is known to hold the root. The step is accepted within a tenth of the radius. In the hard case, g (nearly)
// orthogonal to the eigenvectors of lambda_min < 0, |p| stays below the radius for every lambda > -lambda_min; then a
// multiple tau of the eigenvector u is added so that |p + tau u| = radius, which is near enough to optimal if tau^2
// (lambda + lambda_min) <= (p'(H + lambda I)p + lambda radius^2) / 10 (More and Sorensen, Lemma 3.4).
// If |lambda_min| <= level, which is zero up to the error of H, and g is orthogonal to the null space, so that the step
// along it is no better than without it, the step is the shortest minimiser of the model, if that is within the radius.
template <class T>
TrustStep<T> trust_region_step(Tridiagonal<T>& h, T lambda_min, T level, const Vector<T>& g, T radius, TrustWork<T>& w,
                               Vector<T>& p) {
    TrustStep<T> step;
    w.g = g;
    h.to(w.g);
    const T g_norm = norm(w.g);
    const T floor = std::max(T(0), -lambda_min);
    const T tiny = epsilon<T> * std::max(h.bound(), std::numeric_limits<T>::min() / epsilon<T>);
    T low = floor, high = g_norm / radius + h.bound() + floor;
    T lambda = lambda_min > 0 ? T(0) : floor + std::max(4 * tiny, g_norm / radius * T(1e-3));
    bool have_u = false;
    bool found = false;
    if (std::abs(lambda_min) <= level && level > 0 && h.solve(4 * level, w.g, w.y)) {
        h.eigenvector(lambda_min, w.u);
        have_u = true;
        w.y -= w.y.dot(w.u) * w.u;
        found = norm(w.y) <= radius && 4 * level * norm(w.y) <= g_norm * T(1e-3) &&
                std::abs(w.g.dot(w.u)) <= 16 * epsilon<T> * g_norm;
        step.shift = 0;
    }
    for (int i = 0; i < 200 && !found; ++i) {
        step.shift = lambda;
        if (!h.solve(lambda, w.g, w.y)) {
            low = std::max(low, lambda);
            lambda = std::max(lambda + 4 * tiny, low + (std::min(high, low + 64 * (lambda - floor) + tiny) - low) / 2);
            continue;
        }
        const T length = norm(w.y);
        if (length <= radius && lambda == 0) {
            found = true;
            break;
        }
        if (std::abs(length - radius) <= radius / 10) {
            found = true;
            step.at_boundary = true;
            break;
        }
        if (length < radius) {
            high = std::min(high, lambda);
            if (lambda_min <= 0) {
                if (!have_u) h.eigenvector(lambda_min, w.u);
                have_u = true;
                const T along = w.y.dot(w.u);
                const T rest = (radius - length) * (radius + length);
                const T root = std::sqrt(along * along + rest);
                const T tau = rest / (along + (along < 0 ? -root : root));
                const T energy = w.y.dot(w.g) + lambda * (radius * radius - length * length);
                if (tau * tau * (lambda + lambda_min) <= energy / 10 || high - low <= 8 * tiny) {
                    // y is minus the step here.
                    w.y += tau * w.u;
                    found = true;
                    step.at_boundary = true;
                    break;
                }
            }
        } else {
            low = std::max(low, lambda);
        }
        if (!h.solve(lambda, w.y, w.z)) break;
        const T next = lambda + length * length / w.y.dot(w.z) * ((length - radius) / radius);
        // sqrt(low high) as in More and Sorensen, section 3, where Newton's iteration leaves the interval.
        lambda = next > low && next < high ? next : std::max(std::sqrt(low * high), low + (high - low) / 100);
    }
    step.ok = found;
    p = -w.y;
    step.length = norm(p);
    T model = 0;
    const int n = int(p.size());
    for (int i = 0; i < n; ++i) {
        const T tp = h.d[i] * p[i] + (i > 0 ? h.e[i - 1] * p[i - 1] : T(0)) + (i + 1 < n ? h.e[i] * p[i + 1] : T(0));
        model += p[i] * (w.g[i] + tp / 2);
    }
    step.predicted = -model;
    h.from(p);
    return step;
}

}  // namespace adaptk::solve
