// Linear conjugate gradients for A x = b with symmetric positive definite A.
//
//   M. R. Hestenes, E. Stiefel, Methods of conjugate gradients for solving linear systems (1952)
//   J. Nocedal, S. J. Wright, Numerical Optimization, second edition (2006), Algorithm 5.3
//   J. L. Rigal, J. Gaches, On the compatibility of a given solution with the data of a linear system,
//   J. ACM 14 (1967): the backward error
//
// It ends with
//   gradient   |b - A x| <= max(rtol |b|, atol)
//   precision  rounding keeps the residual from falling any further, and |b - A x| <= 32 n eps (|A| |x| + |b|)
//   curvature  p'A p <= 0 for a direction p, or <= n eps |A| |p|^2 and the step leads to no lower residual: A is not
//              positive definite, or is singular within rounding
// where |A| is the largest |A p| / |p| of the run. The residual of the recurrence drifts away from b - A x, so b - A x
// itself is computed before a run ends as converged, and at its end.
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
        for (Vector<T>* v : {&x, &b, &r, &z, &p, &q, &best}) v->resize(n);
    }
    Vector<T> x, b, r, z, p, q;
    Vector<T> best;  // the point of the lowest residual, if the iteration has moved on to a higher one
};

// The system: bool product(const T* v, T* av), bool precondition(const T* r, T* z), bool preconditioned() const.
template <class T, class System, class Monitor> class Cg {
  public:
    Cg(System& system, const CgOptions<T>& options, CgWork<T>& work, Monitor& monitor)
        : a(system), o(options), w(work), watch(monitor), n(int(work.x.size())) {}

    Summary<T> run() {
        unit = unit_of(std::max(largest(w.b), largest(w.x)));
        if (unit != 1) {
            w.b /= unit;
            w.x /= unit;
        }
        b_norm = norm(w.b);
        s.status = iterate();
        if (s.status != Status::aborted && !settle()) s.status = Status::aborted;
        if (s.status == Status::precision && !backward_stable()) s.status = Status::limit;
        s.value = value() * unit * unit;
        s.gradient = norm(w.r) * unit;
        if (unit != 1) {
            w.b *= unit;
            w.x *= unit;
            w.r *= unit;
        }
        return s;
    }

  private:
    // The unit of x and b, which scale together: a power of two near them if their squares could overflow or underflow,
    // else 1.
    static T unit_of(T size) {
        constexpr int far = std::numeric_limits<T>::max_exponent / 8;
        if (!(size > 0) || !std::isfinite(size)) return 1;
        const int exponent = std::ilogb(size);
        return std::abs(exponent) > far ? std::ldexp(T(1), std::max(exponent, std::numeric_limits<T>::min_exponent))
                                        : T(1);
    }

    T value() const { return -(w.x.dot(w.b) + w.x.dot(w.r)) / 2; }

    bool true_residual() {
        ++s.nhev;
        if (!a.product(w.x.data(), w.q.data())) return false;
        w.r = w.b - w.q;
        fresh = true;
        return true;
    }

    bool backward_stable() const { return norm(w.r) <= 32 * T(n) * epsilon<T> * (a_norm * norm(w.x) + b_norm); }

    Signal report(T step) {
        const T* x = w.x.data();
        if (unit != 1) {
            w.z = w.x * unit;  // z is free here
            x = w.z.data();
        }
        return watch(Progress<T>{s.nit, value() * unit * unit, step * unit, largest(w.r) * unit, x, n});
    }

    Status iterate() {
        const T target = std::max(o.rtol * b_norm, o.atol / unit);
        if ((w.x.array() == T(0)).all()) {
            w.r = w.b;
            fresh = true;
        } else if (!true_residual()) {
            return Status::aborted;
        }
        T step = std::numeric_limits<T>::quiet_NaN(), rho = 0;
        T halved = norm(w.r), restarted = std::numeric_limits<T>::infinity();
        std::int64_t since_halved = 0;
        w.p.setZero();
        for (;; ++s.nit) {
            T length = norm(w.r);
            if (const Signal signal = report(step); signal != Signal::go) return ended(signal);
            if (!std::isfinite(length)) return Status::nonfinite;
            if (length <= target || length <= epsilon<T> * b_norm) {
                if (!fresh && !true_residual()) return Status::aborted;
                length = norm(w.r);
                if (length <= target) return Status::gradient;
                // Restart from the true residual, as long as that helps.
                if (!(length < restarted / 2)) return Status::precision;
                restarted = length;
                rho = 0;
                w.p.setZero();
            }
            since_halved = length < halved / 2 ? 0 : since_halved + 1;
            if (since_halved == 0) halved = length;
            if (since_halved > 20 * std::int64_t(n) + 100) return Status::precision;
            if (s.nit >= o.max_iterations) return Status::limit;
            if (a.preconditioned()) {
                if (!a.precondition(w.r.data(), w.z.data())) return Status::aborted;
            } else {
                w.z = w.r;
            }
            const T next = w.r.dot(w.z);
            if (!std::isfinite(next)) return Status::nonfinite;
            if (!(next > 0)) return Status::curvature;
            w.p = w.z + (rho > 0 ? next / rho : T(0)) * w.p;
            rho = next;
            ++s.nhev;
            if (!a.product(w.p.data(), w.q.data())) return Status::aborted;
            const T curvature = w.p.dot(w.q);
            if (!std::isfinite(curvature)) return Status::nonfinite;
            const T p_norm = norm(w.p);
            a_norm = std::max(a_norm, norm(w.q) / p_norm);
            if (!(curvature > 0)) return backward_stable() ? Status::precision : Status::curvature;
            const bool doubtful = curvature <= T(n) * epsilon<T> * a_norm * p_norm * p_norm;
            const T alpha = rho / curvature;
            w.r -= alpha * w.q;
            if (length < lowest && !(norm(w.r) < length)) {
                lowest = length;
                w.best = w.x;
            }
            if (doubtful) w.z = w.x;
            w.x += alpha * w.p;
            fresh = false;
            step = alpha * p_norm;
            if (doubtful) {
                // p'Ap may be only the rounding of |A| |p|; the true residual decides.
                if (!true_residual()) return Status::aborted;
                if (!(norm(w.r) < length)) {
                    w.x = w.z;
                    if (!true_residual()) return Status::aborted;
                    return backward_stable() ? Status::precision : Status::curvature;
                }
            }
        }
    }

    // Keeps the better one of x and `best`, with its true residual.
    bool settle() {
        if (!fresh && !true_residual()) return false;
        const T length = norm(w.r);
        if (length <= lowest || !std::isfinite(lowest)) return true;
        w.x.swap(w.best);
        if (!true_residual()) return false;
        if (norm(w.r) <= length || !std::isfinite(length)) return true;
        w.x.swap(w.best);
        return true_residual();
    }

    System& a;
    const CgOptions<T>& o;
    CgWork<T>& w;
    Monitor& watch;
    Summary<T> s;
    int n;
    T unit = 1, b_norm = 0, a_norm = 0;
    T lowest = std::numeric_limits<T>::infinity();  // the residual of w.best
    bool fresh = false;                             // w.r is b - A x, not the residual of the recurrence
};

// w.x holds the start and w.b the right-hand side; at the end w.x is the point of the lowest residual, and w.r that
// residual. value is x'Ax/2 - b'x, and gradient |b - A x|.
template <class T, class System, class Monitor = NoMonitor>
Summary<T> cg(System& system, const CgOptions<T>& options, CgWork<T>& work, Monitor&& monitor = {}) {
    return Cg<T, System, std::remove_reference_t<Monitor>>(system, options, work, monitor).run();
}

}  // namespace adaptk::solve
