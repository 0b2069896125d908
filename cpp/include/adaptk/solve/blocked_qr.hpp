// The triangular factor of a QR factorisation of many rows, computed only from matrix products.
//
//   Y. Yamamoto, Y. Nakatsukasa, Y. Yanagisawa, T. Fukaya, Roundoff error analysis of the CholeskyQR2 algorithm,
//   Electron. Trans. Numer. Anal. 44 (2015)
//   T. Fukaya, R. Kannan, Y. Nakatsukasa, Y. Yamamoto, Y. Yanagisawa, Shifted Cholesky QR for computing the QR
//   factorization of ill-conditioned matrices, SIAM J. Sci. Comput. 42 (2020)
//
// The Cholesky factor of A'A is R', with an error that grows with the square of the condition number. The columns are
// first scaled to norms between 1/2 and 1, which is exact. If |(A'A)^-1| is then at most eps^-0.4, the error of steps
// is at most eps^0.6 times a constant. This does not slow the iteration: x converges to where A'b is zero, and A'b is
// computed from A and b themselves. Otherwise A R^-1 is formed and factored in turn, until it is orthogonal, and the
// triangles are multiplied. The result is then as exact as that of Householder reflections.
#pragma once

#include "adaptk/solve/linalg.hpp"

#include <cmath>
#include <vector>

namespace adaptk::solve {

template <class T, class Linalg> class BlockedQr {
  public:
    // Computes a'a and a'b for a row-major m x n matrix, which must stay valid for compute(). False if squares overflow
    // or underflow, or a is not finite. `keep`: use a'a of the last call for this a too.
    bool measure(const T* a, int m, int n, const Vector<T>& b, bool keep = false) {
        a_ = a;
        m_ = m;
        n_ = n;
        gram_.resize(n, n);
        along_.resize(n);
        if (keep) {
            Linalg::project_rows(a, m, n, b.data(), along_.data(), scratch_);
            return along_.allFinite();
        }
        Linalg::gram_rows(a, m, n, b.data(), gram_.data(), along_.data(), scratch_);
        constexpr T least = std::numeric_limits<T>::min() / (epsilon<T> * epsilon<T>);
        constexpr T most = std::numeric_limits<T>::max() * epsilon<T>;
        for (int k = 0; k < n; ++k) {
            const T square = gram_(k, k);
            if (square > least && square < most) continue;
            if (square != 0) return false;
            for (int i = 0; i < m; ++i)
                if (a[std::ptrdiff_t(i) * n + k] != 0) return false;
        }
        return along_.allFinite();
    }
    T column_norm(int k) const { return std::sqrt(gram_(k, k)); }
    T along(int k) const { return along_[k]; }
    // Whether R is the factor of a'a itself.
    bool squared() const { return squared_; }

    // After measure(a, b): A D^-1 = Q R for the columns that are not fixed, with the results where qr.compute() would
    // put them. If A must be made orthogonal, that is done in qr.a. False if that fails. `again`: a'a, D and the fixed
    // columns are those of the last call, whose results are in qr.
    template <class Fixed>
    bool compute(const Vector<T>& b, const Vector<T>& d, const Fixed& fixed, PivotedQr<T>& qr, Vector<T>& qtb,
                 bool again = false) {
        if (again && squared_) {
            for (int k = 0; k < active_; ++k) y_[k] = along_[qr.order[k]] * scale_[k];
            forward(l_, y_);
            qtb.head(active_) = y_;
            return true;
        }
        active_ = 0;
        for (int k = 0; k < n_; ++k)
            if (!fixed[k] && gram_(k, k) > 0) qr.order[active_++] = k;
        for (int k = 0, last = active_; k < n_; ++k)
            if (fixed[k] || !(gram_(k, k) > 0)) qr.order[last++] = k;
        scale_.resize(n_);
        for (int k = 0; k < active_; ++k) {
            int power;
            std::frexp(std::sqrt(gram_(qr.order[k], qr.order[k])), &power);
            scale_[k] = std::ldexp(T(1), -power);
        }
        l_.resize(active_, active_);
        t_.resize(active_, active_);
        scale_gram(qr.order, l_);
        y_.resize(active_);
        squared_ = Linalg::cholesky(l_.data(), active_) == 0 && inverse_norm() <= std::pow(epsilon<T>, T(-0.4));
        if (squared_) {
            for (int k = 0; k < active_; ++k) y_[k] = along_[qr.order[k]] * scale_[k];
            forward(l_, y_);
        } else {
            s_.resize(active_, active_);
            scale_gram(qr.order, s_);
            T* const q = qr.a.data();
            constexpr int tile = 16;
            for (int i0 = 0; i0 < m_; i0 += tile)
                for (int k = 0; k < active_; ++k)
                    for (int i = i0; i < std::min(m_, i0 + tile); ++i)
                        q[std::ptrdiff_t(k) * m_ + i] = a_[std::ptrdiff_t(i) * n_ + qr.order[k]] * scale_[k];
            if (!orthogonal(q, m_, b.data())) return false;
        }
        // Of A D^-1.
        T lowest = std::numeric_limits<T>::infinity(), highest = 0;
        right_.resize(active_);
        for (int k = 0; k < active_; ++k) {
            right_[k] = T(1) / scale_[k] / d[qr.order[k]];
            const T element = (squared_ ? l_(k, k) : t_(k, k)) * right_[k];
            lowest = std::min(lowest, element);
            highest = std::max(highest, element);
        }
        if (!squared_)
            for (int k = 0; k < active_; ++k) t_.col(k).head(k + 1) *= right_[k];
        qr.r.setZero();
        // The diagonal shows the rank only in pivoted order.
        const T small = 1024 * T(m_) * epsilon<T>;
        if (!(lowest > small * highest) || !(squared_ || inverse_of_triangle() < T(1) / small)) {
            pivoted_.resize(active_, active_);
            pivoted_.a.setZero();
            if (squared_) {
                upper_from_lower(l_, right_, pivoted_.a);
            } else {
                pivoted_.a.template triangularView<Eigen::Upper>() = t_;
            }
            for (int k = 0; k < active_; ++k) pivoted_.norms[k] = norm(pivoted_.a.col(k));
            pivoted_.compute(y_);
            order_ = qr.order.head(active_);
            for (int k = 0; k < active_; ++k) qr.order[k] = order_[pivoted_.order[k]];
            t_ = pivoted_.r;
            squared_ = false;
        }
        if (squared_) {
            upper_from_lower(l_, right_, qr.r);
        } else {
            qr.r.topLeftCorner(active_, active_).template triangularView<Eigen::Upper>() = t_;
        }
        qtb.head(n_).setZero();
        qtb.head(active_) = y_;
        have_square_ = false;
        return true;
    }

    // y = (R'R + mu I)^-1 R'Q'b, and the factor L of R'R + mu I, n x n. False if that fails.
    bool damp(T mu, const PivotedQr<T>& qr, const Vector<T>& d, const Vector<T>& qtb, T* l, Vector<T>& y) {
        const std::ptrdiff_t n = n_;
        if (!have_square_) {
            square_.resize(n, n);
            square_.setZero();
            if (squared_) {
                for (int k = 0; k < active_; ++k)
                    for (int i = k; i < active_; ++i)
                        square_(i, k) = gram_(qr.order[i], qr.order[k]) / d[qr.order[i]] / d[qr.order[k]];
            } else {
                Linalg::gram(qr.r.data(), n_, n_, square_.data(), scratch_);
            }
            have_square_ = true;
        }
        if (squared_ || mu >= std::pow(epsilon<T>, T(0.4)) * square_.diagonal().maxCoeff()) {
            std::copy_n(square_.data(), n * n, l);
            for (std::ptrdiff_t k = 0; k < n; ++k) l[k * (n + 1)] += mu;
            if (Linalg::cholesky(l, n_) != 0) return false;
            y.noalias() = qr.r.template triangularView<Eigen::Upper>().transpose() * qtb.head(n_);
            Linalg::cholesky_solve(l, n_, y.data());
            return true;
        }
        // [R; sqrt(mu) I], orthogonal to all digits.
        rows_.resize(2 * n, n);
        rows_.setZero();
        rows_.topRows(n) = qr.r;
        for (std::ptrdiff_t k = 0; k < n; ++k) rows_(n + k, k) = std::sqrt(mu);
        right_.setZero(2 * n);
        right_.head(n) = qtb.head(n_);
        const int active = active_;
        active_ = n_;
        s_ = square_;
        s_.diagonal().array() += mu;
        l_.resize(n, n);
        t_.resize(n, n);
        y_.resize(n);
        const bool done = orthogonal(rows_.data(), 2 * n_, right_.data());
        active_ = active;
        if (!done) return false;
        y = y_;
        back_substitute(t_, y_, n_, y);
        Eigen::Map<Matrix<T>>(l, n, n).template triangularView<Eigen::Lower>() = t_.transpose();
        return true;
    }

    // (R'R)^-1 of A itself, in the order of its variables; R must have full rank.
    void inverse(const PivotedQr<T>& qr, const Vector<T>& d, Matrix<T>& out) {
        n_ = int(qr.r.cols());
        l_.resize(n_, n_);
        l_.template triangularView<Eigen::Lower>() = qr.r.transpose();
        for (int k = 0; k < n_; ++k)
            if (l_(k, k) < 0) l_.col(k) *= T(-1);
        s_.resize(n_, n_);
        t_.resize(n_, n_);
        Linalg::inverse(l_.data(), n_, t_.data(), s_.data());
        for (int k = 0; k < n_; ++k)
            for (int i = k; i < n_; ++i) {
                const int a = qr.order[i], b = qr.order[k];
                out(a, b) = out(b, a) = s_(i, k) / d[a] / d[b];
            }
    }

  private:
    // The lower triangle of a'a, with the columns in this order and scaled.
    void scale_gram(const Eigen::VectorXi& order, Matrix<T>& out) const {
        for (int k = 0; k < active_; ++k)
            for (int i = k; i < active_; ++i) out(i, k) = gram_(order[i], order[k]) * (scale_[i] * scale_[k]);
    }

    // u = L' diag(factors), in square blocks, so that whole cache lines are used.
    static void upper_from_lower(const Matrix<T>& l, const Vector<T>& factors, Matrix<T>& u) {
        constexpr int tile = 16;
        const int n = int(l.cols());
        for (int k0 = 0; k0 < n; k0 += tile)
            for (int i0 = 0; i0 <= k0; i0 += tile)
                for (int k = k0; k < std::min(n, k0 + tile); ++k)
                    for (int i = i0; i < std::min(k + 1, i0 + tile); ++i) u(i, k) = l(k, i) * factors[k];
    }

    // q = Q R for m x active_ in place; s_ holds q'q. R goes to t_ and Q'b to y_.
    bool orthogonal(T* q, int m, const T* b) {
        T shift = 4 * T(active_) * epsilon<T> * s_.diagonal().maxCoeff();
        for (int pass = 0; pass < 6; ++pass) {
            T off = 0;
            for (int k = 0; k < active_; ++k) {
                off += (s_(k, k) - T(1)) * (s_(k, k) - T(1));
                for (int i = k + 1; i < active_; ++i) off += 2 * s_(i, k) * s_(i, k);
            }
            l_ = s_;
            for (int tries = 0; Linalg::cholesky(l_.data(), active_) != 0; ++tries) {
                if (tries == 4 || !std::isfinite(off)) return false;
                l_ = s_;
                l_.diagonal().array() += shift;
                shift *= 16;
            }
            shift = 4 * T(active_) * epsilon<T>;
            if (pass == 0) {
                t_.template triangularView<Eigen::Upper>() = l_.transpose();
                t_.template triangularView<Eigen::StrictlyLower>().setZero();
            } else {
                l_.template triangularView<Eigen::StrictlyUpper>().setZero();
                product_.resize(active_, active_);
                Linalg::product(l_.data(), t_.data(), active_, active_, active_, product_.data());
                t_.swap(product_);
            }
            if (pass > 0 && off <= T(0.25)) {
                Linalg::project(q, m, active_, b, y_.data());
                forward(l_, y_);
                return true;
            }
            Linalg::divide(l_.data(), active_, q, m);
            Linalg::gram(q, m, active_, s_.data(), scratch_);
        }
        return false;
    }

    // b = L^-1 b.
    static void forward(const Matrix<T>& l, Vector<T>& b) { Linalg::forward(l.data(), int(l.rows()), b.data()); }

    // |(L L')^-1|, from below, by a few steps of the power method.
    T inverse_norm() {
        for (int k = 0; k < active_; ++k) y_[k] = T(1) + T(0.5) * std::sin(T(k) * T(1.7) + T(0.3));
        T length = norm(y_);
        for (int i = 0; i < 4 && length > 0 && std::isfinite(length); ++i) {
            y_ /= length;
            Linalg::cholesky_solve(l_.data(), active_, y_.data());
            length = norm(y_);
        }
        return std::isnan(length) ? std::numeric_limits<T>::infinity() : length;
    }
    // |R^-1| for R in t_. Leaves t_ and y_ unchanged.
    T inverse_of_triangle() {
        l_.template triangularView<Eigen::Lower>() = t_.transpose();
        keep_ = y_;
        const T square = inverse_norm();
        y_.swap(keep_);
        return std::sqrt(square);
    }

    const T* a_ = nullptr;
    int m_ = 0, n_ = 0, active_ = 0;
    bool squared_ = false;
    bool have_square_ = false;
    Matrix<T> gram_, s_, l_, t_, product_, square_, rows_;
    Vector<T> along_, scale_, y_, keep_, right_;
    Eigen::VectorXi order_;
    PivotedQr<T> pivoted_;
    std::vector<T> scratch_;
};

}  // namespace adaptk::solve
