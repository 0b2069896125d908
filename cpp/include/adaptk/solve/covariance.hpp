// The covariance of the parameters of a least-squares fit, from the workspace as levenberg_marquardt left it.
//
//   P. J. Huber, Robust Statistics (1981), section 7.6
//   H. White, Maximum likelihood estimation of misspecified models, Econometrica 50 (1982): the sandwich
//
// For squares it is sigma^2 (J'J)^-1, sigma^2 the variance of the residuals. For a robust loss, with psi = rho' r and
// psi' its derivative, it is A^-1 B A^-1, A = J' diag(psi') J and B = J' diag(psi^2) J, times m / (m - n): the spread
// of the estimate if residuals are independent, whatever their distribution.
//
// J is not squared: with diag(w) J D^-1 = Q R for positive weights w^2 near psi', both sums are taken of rows of Q,
// A = R'(I + E)R and B = R' M R. If I + E is not safely positive definite, as may happen far from the minimum with a
// redescending loss, E is left out.
#pragma once

#include "adaptk/solve/levenberg_marquardt.hpp"

#include <vector>

namespace adaptk::solve {

template <class T, class Linalg = InlineLinalg> class Covariance {
  public:
    Covariance(LevenbergMarquardtWork<T>& work, Loss loss, T loss_scale) : w(work), loss(loss), c(loss_scale) {}

    // `known`: residuals are in units of their standard deviation. cov is n x n, and deviation holds the roots of its
    // diagonal, which may be finite even if the diagonal overflows. Both are infinite if J does not have full rank, or
    // if sigma is not known and there are no degrees of freedom to estimate it.
    void compute(bool known, Matrix<T>& cov, Vector<T>& deviation) {
        const int n = w.n, freedom = w.m - n;
        const T infinity = std::numeric_limits<T>::infinity();
        const bool blocked = factor_in_blocks();
        if (!blocked && !(w.factored && full_rank())) factor();
        if (!full_rank() || (!known && freedom <= 0)) {
            cov.setConstant(infinity);
            deviation.setConstant(infinity);
            return;
        }
        T sigma = known ? T(1) : norm(w.r) / std::sqrt(T(freedom));
        const bool robust = loss != Loss::linear && freedom > 0 && norm(w.r) > 0;
        bool done = false;
        if constexpr (Linalg::blocked) {
            done = blocked && !robust;
            if (done) blocks.inverse(w.qr, w.divisor, cov);
        }
        if (done) {
            deviation = sigma * cov.diagonal().cwiseSqrt();
            cov *= sigma * sigma;
            return;
        }
        invert();
        if (robust) sigma = sandwich() * (known ? T(1) : std::sqrt(T(w.m) / T(freedom)));
        Matrix<T> product;
        if (robust) {
            product.noalias() = inverse * meat * inverse.transpose();
        } else {
            product.noalias() = inverse * inverse.transpose();
        }
        for (int i = 0; i < n; ++i) {
            const int a = w.qr.order[i];
            const T of_a = sigma / w.divisor[a];
            for (int k = i; k < n; ++k) {
                const int b = w.qr.order[k];
                cov(a, b) = cov(b, a) = (of_a * product(i, k)) * (sigma / w.divisor[b]);
            }
            deviation[a] = std::isnormal(cov(a, a)) ? std::sqrt(cov(a, a)) : of_a * std::sqrt(product(i, i));
        }
    }

  private:
    T weight_of(int i) const {
        const T q = w.r[i] / c;
        return loss == Loss::linear ? T(1) : std::sqrt(row_weight(loss_value(loss, q * q), q * q));
    }

    // Factors diag(w) J D^-1 = Q R, where D holds the norms of the columns.
    void factor() {
        w.qr.a = w.j();
        if (loss != Loss::linear)
            for (int i = 0; i < w.m; ++i) w.qr.a.row(i) *= weight_of(i);
        for (int k = 0; k < w.n; ++k) {
            const T column = norm(w.qr.a.col(k));
            w.divisor[k] = column > 0 ? column : T(1);
            w.qr.a.col(k) /= w.divisor[k];
            w.qr.norms[k] = column / w.divisor[k];
        }
        w.qt_r.setZero();
        w.qr.compute(w.qt_r);
    }

    bool factor_in_blocks() {
        if constexpr (Linalg::blocked) {
            if (!Linalg::blocked_fit(w.m, w.n)) return false;
            if (w.factored && full_rank()) return true;
            const T* rows = w.at;
            if (loss != Loss::linear) {
                w.weighted = w.j();
                for (int i = 0; i < w.m; ++i) w.weighted.row(i) *= weight_of(i);
                rows = w.weighted.data();
            }
            if (!blocks.measure(rows, w.m, w.n, w.r)) return false;
            for (int k = 0; k < w.n; ++k) w.divisor[k] = blocks.column_norm(k) > 0 ? blocks.column_norm(k) : T(1);
            w.fixed.setConstant(false);
            return blocks.compute(w.r, w.divisor, w.fixed, w.qr, w.qt_r) && full_rank();
        }
        return false;
    }

    bool full_rank() const {
        const T least = T(std::max(w.m, w.n)) * epsilon<T> * std::abs(w.qr.r(0, 0));
        bool full = w.m >= w.n;
        for (int k = 0; k < w.n && full; ++k) full = std::abs(w.qr.r(k, k)) > least;
        return full;
    }

    void invert() {
        inverse.setIdentity(w.n, w.n);
        w.qr.r.template triangularView<Eigen::Upper>().solveInPlace(inverse);
    }

    // Makes `inverse` R^-1 (I + E)^-1 and `meat` M, with psi in units of their root mean square, which is returned.
    T sandwich() {
        const int n = w.n;
        const T unit = norm(w.r) / std::sqrt(T(w.m));
        Matrix<T> curvature = Matrix<T>::Identity(n, n);
        meat.setZero(n, n);
        bool summed = false;
        if constexpr (Linalg::blocked)
            if (Linalg::blocked_fit(w.m, n)) summed = sum_in_blocks(unit, curvature);
        Vector<T> row(n);
        for (int i = 0; i < w.m && !summed; ++i) {
            const T weight = weight_of(i);
            if (!(weight > 0)) continue;
            const T q = w.r[i] / c;
            const LossValue<T> v = loss_value(loss, q * q);
            for (int k = 0; k < n; ++k) row[k] = weight * (w.j()(i, w.qr.order[k]) / w.divisor[w.qr.order[k]]);
            w.qr.r.transpose().template triangularView<Eigen::Lower>().solveInPlace(row);
            const T psi = v.first * (w.r[i] / unit) / weight;
            meat += (psi * psi) * row * row.transpose();
            const T missing = (v.first + 2 * v.second * q * q) / (weight * weight) - 1;
            if (missing != 0) curvature += missing * row * row.transpose();
        }
        constexpr T safe = T(0.1);
        const Eigen::LLT<Matrix<T>> factor(curvature);
        const bool definite =
            factor.info() == Eigen::Success && Matrix<T>(factor.matrixL()).diagonal().minCoeff() > safe;
        if (definite) inverse = factor.solve(inverse.transpose()).transpose().eval();
        return unit;
    }

    // The same sums from products of matrices. The weights are no smaller than psi', so E is minus a square.
    bool sum_in_blocks(T unit, Matrix<T>& curvature) {
        const int m = w.m, n = w.n;
        Vector<T> psi(m), missing(m);
        Matrix<T> rows(m, n), scaled(m, n), l = w.qr.r.transpose();
        std::vector<T> scratch;
        for (int i = 0; i < m; ++i) {
            const T weight = weight_of(i), q = w.r[i] / c;
            const LossValue<T> v = loss_value(loss, q * q);
            psi[i] = weight > 0 ? v.first * (w.r[i] / unit) / weight : T(0);
            const T square = weight > 0 ? T(1) - (v.first + 2 * v.second * q * q) / (weight * weight) : T(0);
            missing[i] = std::sqrt(std::max(square, T(0)));
            w.root_slope[i] = weight;
        }
        constexpr int tile = 16;  // rows whose elements are in the cache for all columns
        for (int i0 = 0; i0 < m; i0 += tile)
            for (int k = 0; k < n; ++k)
                for (int i = i0; i < std::min(m, i0 + tile); ++i)
                    rows(i, k) = w.root_slope[i] * w.j()(i, w.qr.order[k]) / w.divisor[w.qr.order[k]];
        Linalg::divide(l.data(), n, rows.data(), m);
        const auto sum = [&](const Vector<T>& scale) {
            for (int k = 0; k < n; ++k) scaled.col(k) = scale.cwiseProduct(rows.col(k));
            Linalg::gram(scaled.data(), m, n, l.data(), scratch);
            return Matrix<T>(l.template selfadjointView<Eigen::Lower>());
        };
        meat = sum(psi);
        if (!missing.isZero(T(0))) curvature -= sum(missing);
        return meat.allFinite() && curvature.allFinite();
    }

    LevenbergMarquardtWork<T>& w;
    const Loss loss;
    const T c;
    Matrix<T> inverse, meat;
    std::conditional_t<Linalg::blocked, BlockedQr<T, Linalg>, NoMonitor> blocks;
};

}  // namespace adaptk::solve
