// Linear conjugate gradients for A x = b with symmetric positive definite A.
//
//   M. R. Hestenes, E. Stiefel, Methods of conjugate gradients for solving linear systems (1952)
//   J. Nocedal, S. J. Wright, Numerical Optimization, second edition (2006), Algorithm 5.3
//
// It ends with
//   gradient   |b - A x| <= max(rtol |b|, atol)
//   precision  rounding keeps the residual from falling any further
//   curvature  p'A p <= 0 for a direction p: A is not positive definite
#pragma once

#include "adaptk/solve/linalg.hpp"

namespace adaptk::solve {

template <class T> struct CgOptions {
    T rtol = sizeof(T) == 4 ? T(1e-4) : T(1e-8);
    T atol = 0;
    std::int64_t max_iterations = 1000;
};

template <class T> struct CgWork {
    void resize(int n) {
        for (Vector<T>* v : {&x, &b, &r, &z, &p, &q}) v->resize(n);
    }
    Vector<T> x, b, r, z, p, q;
};

// The system: bool product(const T* v, T* av), bool precondition(const T* r, T* z), bool preconditioned() const.
// w.x holds the start and w.b the right-hand side; w.r is the residual at the end. value is x'Ax/2 - b'x.
template <class T, class System, class Monitor = NoMonitor>
Summary<T> cg(System& system, const CgOptions<T>& o, CgWork<T>& w, Monitor&& watch = {}) {
    Summary<T> s;
    const int n = int(w.x.size());
    const auto residual = [&] {
        ++s.nhev;
        if (!system.product(w.x.data(), w.q.data())) return false;
        w.r = w.b - w.q;
        return true;
    };
    const auto run = [&] {
        const T target = std::max(o.rtol * norm(w.b), o.atol);
        if ((w.x.array() == T(0)).all()) {
            w.r = w.b;
        } else if (!residual()) {
            return Status::aborted;
        }
        T step = std::numeric_limits<T>::quiet_NaN(), rho = 0;
        T lowest = norm(w.r);
        std::int64_t since = 0;
        w.p.setZero();
        bool fresh = true;
        for (;; ++s.nit) {
            const T length = norm(w.r);
            const T value = -(w.x.dot(w.b) + w.x.dot(w.r)) / 2;
            if (const Signal signal = watch(Progress<T>{s.nit, value, step, largest(w.r), w.x.data(), n});
                signal != Signal::go)
                return ended(signal);
            if (!std::isfinite(length)) return Status::nonfinite;
            if (length <= target) {
                // The residual that is carried along drifts from the true one.
                if (fresh) return Status::gradient;
                if (!residual()) return Status::aborted;
                fresh = true;
                if (norm(w.r) <= target) return Status::gradient;
                rho = 0;
                w.p.setZero();
                if (since >= 2 * n + 20) return Status::precision;
            }
            since = length < lowest / 2 ? 0 : since + 1;
            if (length < lowest / 2) lowest = length;
            if (since > 20L * n + 100) return Status::precision;
            if (s.nit >= o.max_iterations) return Status::limit;
            if (system.preconditioned()) {
                if (!system.precondition(w.r.data(), w.z.data())) return Status::aborted;
            } else {
                w.z = w.r;
            }
            const T next = w.r.dot(w.z);
            if (!std::isfinite(next)) return Status::nonfinite;
            if (!(next > 0)) return Status::curvature;
            w.p = w.z + (rho > 0 ? next / rho : T(0)) * w.p;
            rho = next;
            ++s.nhev;
            if (!system.product(w.p.data(), w.q.data())) return Status::aborted;
            const T curvature = w.p.dot(w.q);
            if (!std::isfinite(curvature)) return Status::nonfinite;
            if (!(curvature > 0)) return Status::curvature;
            const T alpha = rho / curvature;
            w.x += alpha * w.p;
            w.r -= alpha * w.q;
            fresh = false;
            step = alpha * norm(w.p);
        }
    };
    s.status = run();
    s.value = -(w.x.dot(w.b) + w.x.dot(w.r)) / 2;
    s.gradient = norm(w.r);
    return s;
}

}  // namespace adaptk::solve
