// Linear algebra that the solvers share, on Eigen, without allocations once the objects have their sizes.
#pragma once

#include "adaptk/solve/result.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <algorithm>
#include <utility>

namespace adaptk::solve {

template <class T> using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;
template <class T> using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
// Row-major.
template <class T> using Rows = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// The 2-norm by the largest element, for squares that would overflow or underflow. Element by element: Eigen's
// stableNorm() has loops and alignments that take long to compile for each expression.
template <class V> [[gnu::noinline]] auto scaled_norm(const V& v) {
    using T = typename V::Scalar;
    T most = 0, sum = 0;
    for (Eigen::Index i = 0; i < v.size(); ++i) {
        const T a = std::abs(T(v.coeff(i)));
        if (std::isnan(a)) return a;
        most = std::max(most, a);
    }
    if (most == 0 || std::isinf(most)) return most;
    for (Eigen::Index i = 0; i < v.size(); ++i) {
        const T a = T(v.coeff(i)) / most;
        sum += a * a;
    }
    return most * std::sqrt(sum);
}

// The 2-norm. Scales elements only if their squares would overflow or underflow, which takes several times as long.
template <class V> auto norm(const V& v) {
    using T = typename V::Scalar;
    const T squares = v.squaredNorm();
    if (squares > std::numeric_limits<T>::min() / epsilon<T> && squares < std::numeric_limits<T>::max())
        return std::sqrt(squares);
    return scaled_norm(v);
}

// x / d by one division where 1 / d is in the range.
template <class V, class T> void divide(V&& x, T d) {
    const T inverse = T(1) / d;
    if (std::isnormal(inverse)) {
        x *= inverse;
    } else {
        x /= d;
    }
}

// y = A'x.
template <class T, class A> void times_rows(const Vector<T>& x, const A& a, Vector<T>& y) {
    y.setZero();
    for (Eigen::Index i = 0; i < a.rows(); ++i)
        for (Eigen::Index k = 0; k < a.cols(); ++k) y[k] += x[i] * a(i, k);
}

template <class V> auto largest(const V& v) {
    using T = typename V::Scalar;
    T most = 0;
    for (Eigen::Index i = 0; i < v.size(); ++i) {
        const T a = std::abs(v[i]);
        if (!(a <= most)) most = a;
        if (std::isnan(most)) return most;
    }
    return most;
}

// Where factorisations run. The extension's policy hands large matrices to kernels that are compiled for each
// instruction set; it says so with `blocked`, and has the functions that blocked_qr.hpp and newton.hpp then use.
struct InlineLinalg {
    static constexpr bool blocked = false;
    // The lower triangle of a becomes its Cholesky factor; false if it has none.
    template <class T> static bool cholesky(Matrix<T>& a) {
        Eigen::Ref<Matrix<T>> view(a);
        // Eigen accepts NaN.
        return Eigen::LLT<Eigen::Ref<Matrix<T>>>(view).info() == Eigen::Success && a.diagonal().allFinite();
    }
    // b becomes (L L')^-1 b.
    template <class T> static void cholesky_solve(const Matrix<T>& l, Vector<T>& b) {
        l.template triangularView<Eigen::Lower>().solveInPlace(b);
        l.transpose().template triangularView<Eigen::Upper>().solveInPlace(b);
    }
};

// Householder QR with column pivoting (Businger and Golub 1965; norms are updated as in LAPACK Working Note 176, Drmac
// and Bujanovic 2008). R is a separate n x n matrix, with rows of zeros if m < n.
template <class T> class PivotedQr {
  public:
    void resize(int m, int n) {
        a.resize(m, n);
        r.resize(n, n);
        norms.resize(n);
        exact_.resize(n);
        order.resize(n);
    }

    // Copies `a` from row-major memory.
    void take(const T* rows) {
        const int m = int(a.rows()), n = int(a.cols());
        if (n >= 16) {
            a = Eigen::Map<const Rows<T>>(rows, m, n);
            return;
        }
        for (int k = 0; k < n; ++k) {
            T* const column = a.data() + std::ptrdiff_t(k) * m;
            const T* from = rows + k;
            for (int i = 0; i < m; ++i, from += n) column[i] = *from;
        }
    }

    // Factors `a`, whose columns have these `norms`, and overwrites both. The leading elements of b, one for each
    // column of R, become those of Q'b.
    void compute(Vector<T>& b) {
        const int m = int(a.rows()), n = int(a.cols());
        for (int j = 0; j < n; ++j) order[j] = j;
        exact_ = norms;
        r.setZero();
        const int steps = std::min(m, n);
        for (int k = 0; k < steps; ++k) {
            int pivot = k;
            for (int j = k + 1; j < n; ++j)
                if (norms[j] > norms[pivot]) pivot = j;
            if (pivot != k) {
                a.col(k).swap(a.col(pivot));
                r.col(k).head(k).swap(r.col(pivot).head(k));
                std::swap(order[k], order[pivot]);
                std::swap(norms[k], norms[pivot]);
                std::swap(exact_[k], exact_[pivot]);
            }
            reflect(k, m, n, b);
        }
    }

    // The same to another b, after compute().
    void apply(Vector<T>& b) const {
        const int m = int(a.rows()), steps = std::min(m, int(a.cols()));
        for (int k = 0; k < steps; ++k) {
            if (r(k, k) == 0) continue;
            const auto v = a.col(k).tail(m - k);
            turn(b, k, v, v[0]);
        }
    }

    Matrix<T> a, r;
    Vector<T> norms;
    Eigen::VectorXi order;  // column k of R belongs to variable order[k]

  private:
    void reflect(int k, int m, int n, Vector<T>& b) {
        auto v = a.col(k).tail(m - k);
        // A norm that no update has changed is that of this column from row k on.
        const T length = norms[k] == exact_[k] ? exact_[k] : norm(v);
        if (!(length > 0)) return;
        // v becomes the reflector with first element 1 + |a_k| / length, between 1 and 2: no cancellation.
        const T signed_length = v[0] < 0 ? -length : length;
        divide(v, signed_length);
        v[0] += T(1);
        const T pivot = v[0];
        r(k, k) = -signed_length;
        for (int j = k + 1; j < n; ++j) {
            auto c = a.col(j).tail(m - k);
            c -= (v.dot(c) / pivot) * v;
            r(k, j) = c[0];
            if (norms[j] > 0) {
                const T t = std::abs(c[0]) / norms[j];
                const T left = std::max(T(0), (T(1) - t) * (T(1) + t));
                const T ratio = norms[j] / exact_[j];
                if (left * ratio * ratio <= std::sqrt(epsilon<T>)) {
                    norms[j] = exact_[j] = norm(c.tail(m - k - 1));
                } else {
                    norms[j] *= std::sqrt(left);
                }
            }
        }
        turn(b, k, v, pivot);
    }

    template <class V> void turn(Vector<T>& b, int k, const V& v, T pivot) const {
        auto c = b.segment(k, v.size());
        const T share = v.dot(c) / pivot;
        if (k + 1 < a.cols()) {
            c -= share * v;
        } else {
            c[0] -= share * v[0];  // the others are not needed
        }
    }

    Vector<T> exact_;
};

// y with R y = b for the leading `rank` rows and columns, zeros after them.
template <class T, class B> void back_substitute(const Matrix<T>& r, const B& b, int rank, Vector<T>& y) {
    const int n = int(r.cols());
    for (int i = rank; i < n; ++i) y[i] = 0;
    if (rank >= 32) {
        // By columns: along a row, each element would be in another cache line.
        for (int i = 0; i < rank; ++i) y[i] = b[i];
        for (int i = rank - 1; i >= 0; --i) {
            y[i] /= r(i, i);
            y.head(i) -= y[i] * r.col(i).head(i);
        }
        return;
    }
    for (int i = rank - 1; i >= 0; --i) {
        T sum = b[i];
        for (int k = i + 1; k < rank; ++k) sum -= r(i, k) * y[k];
        y[i] = sum / r(i, i);
    }
}

// A symmetric matrix as Q T Q' with tridiagonal T, by Householder reflections (Golub and Van Loan, section 8.3.1), and
// what is cheap on T: shifted solves, the smallest eigenvalue and its eigenvector.
template <class T> class Tridiagonal {
  public:
    void resize(int n) {
        q.resize(n, n);
        d.resize(n);
        e.resize(n);
        beta_.resize(n);
        p_.resize(n);
        pivots_.resize(n);
    }

    // From the lower triangle of q, which then holds the reflectors.
    void compute() {
        const int n = int(d.size());
        for (int k = 0; k + 1 < n; ++k) {
            d[k] = q(k, k);
            auto v = q.col(k).tail(n - k - 1);
            const T length = norm(v);
            beta_[k] = 0;
            e[k] = 0;
            if (!(length > 0)) continue;
            const T signed_length = v[0] < 0 ? -length : length;
            v /= signed_length;
            v[0] += T(1);
            e[k] = -signed_length;
            beta_[k] = T(1) / v[0];
            auto rest = q.bottomRightCorner(n - k - 1, n - k - 1);
            auto p = p_.head(n - k - 1);
            p.noalias() = beta_[k] * (rest.template selfadjointView<Eigen::Lower>() * v);
            p -= (T(0.5) * beta_[k] * p.dot(v)) * v;
            rest.template selfadjointView<Eigen::Lower>().rankUpdate(v, p, T(-1));
        }
        if (n > 0) d[n - 1] = q(n - 1, n - 1);
        measure();
    }

    // After d and e have been set by other means.
    void measure() {
        const int n = int(d.size());
        bound_ = 0;
        for (int i = 0; i < n; ++i)
            bound_ = std::max(bound_, std::abs(d[i]) + (i > 0 ? std::abs(e[i - 1]) : T(0)) +
                                          (i + 1 < n ? std::abs(e[i]) : T(0)));
    }

    // b becomes Q'b, or Q b.
    void to(Vector<T>& b) const {
        for (int k = 0; k + 1 < int(d.size()); ++k) reflect(k, b);
    }
    void from(Vector<T>& b) const {
        for (int k = int(d.size()) - 2; k >= 0; --k) reflect(k, b);
    }

    // y = (T + shift I)^-1 b by LDL'; false if the shifted matrix is not positive definite.
    bool solve(T shift, const Vector<T>& b, Vector<T>& y) {
        const int n = int(d.size());
        T before = 0;
        for (int i = 0; i < n; ++i) {
            pivots_[i] = d[i] + shift - (i > 0 ? e[i - 1] * (e[i - 1] / before) : T(0));
            if (!(pivots_[i] > 0)) return false;
            before = pivots_[i];
            y[i] = b[i] - (i > 0 ? e[i - 1] / pivots_[i - 1] * y[i - 1] : T(0));
        }
        for (int i = n - 1; i >= 0; --i) y[i] = y[i] / pivots_[i] - (i + 1 < n ? e[i] / pivots_[i] * y[i + 1] : T(0));
        return true;
    }

    // By bisection on the number of negative pivots (Sturm; Parlett, The Symmetric Eigenvalue Problem, section 3.3).
    T smallest() const {
        if (d.size() == 1) return d[0];
        T low = -bound_, high = bound_;
        for (int i = 0; i < int(d.size()); ++i) high = std::min(high, d[i]);
        for (int i = 0; i < 2 * std::numeric_limits<T>::digits + 16 && high - low > epsilon<T> * bound_ / 4; ++i) {
            const T middle = low + (high - low) / 2;
            if (middle <= low || middle >= high) break;
            (negative(middle) ? high : low) = middle;
        }
        return low;
    }

    // The eigenvector of the smallest eigenvalue, of norm 1, by inverse iteration from below it.
    void eigenvector(T lambda, Vector<T>& u) {
        const int n = int(d.size());
        for (int i = 0; i < n; ++i) u[i] = i % 2 == 0 ? T(1) : T(0.75);
        u /= norm(u);
        T shift = -lambda + 4 * epsilon<T> * bound_;
        for (int tries = 0; tries < 8; ++tries) {
            bool solved = bound_ > 0;
            for (int i = 0; i < 3 && solved; ++i) {
                solved = solve(shift, u, u);
                const T length = norm(u);
                solved = solved && std::isfinite(length) && length > 0;
                if (solved) u /= length;
            }
            if (solved) {
                // What is left of other eigenvectors is rounding, which a long step would make into a large change.
                for (int i = 0; i < n; ++i)
                    if (std::abs(u[i]) <= epsilon<T>) u[i] = 0;
                return;
            }
            shift += (shift + lambda) * 3;
            for (int i = 0; i < n; ++i) u[i] = i % 2 == 0 ? T(1) : T(0.75);
            u /= norm(u);
        }
    }

    T bound() const { return bound_; }  // of |T|, by Gershgorin's circles

    Matrix<T> q;
    Vector<T> d, e;

  private:
    void reflect(int k, Vector<T>& b) const {
        const int n = int(d.size());
        if (beta_[k] == 0) return;
        const auto v = q.col(k).tail(n - k - 1);
        auto c = b.tail(n - k - 1);
        c -= (beta_[k] * v.dot(c)) * v;
    }
    bool negative(T shift) const {
        T pivot = 1;
        for (int i = 0; i < int(d.size()); ++i) {
            pivot = d[i] - shift - (i > 0 ? e[i - 1] * (e[i - 1] / pivot) : T(0));
            if (pivot < 0) return true;
            if (pivot == 0) pivot = epsilon<T> * epsilon<T> * bound_;
        }
        return false;
    }

    Vector<T> beta_, p_, pivots_;
    T bound_ = 0;
};

}  // namespace adaptk::solve
