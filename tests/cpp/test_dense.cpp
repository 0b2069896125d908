// Dense linear algebra on the kernels of every instruction set that this machine has, against plain loops in float64;
// with one thread and with three, which must not differ.
#include "dense.hpp"

#include "check.hpp"
#include "dispatch.hpp"
#include "support.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <utility>
#include <vector>

namespace adaptk::test {
namespace {

using std::size_t;

// In column-major order.
template <class T> struct Dense {
    int rows, columns;
    std::vector<T> values;

    Dense(int m, int n) : rows(m), columns(n), values(size_t(m) * size_t(n)) {}
    T& operator()(int i, int j) { return values[size_t(j) * size_t(rows) + size_t(i)]; }
    T operator()(int i, int j) const { return values[size_t(j) * size_t(rows) + size_t(i)]; }
    T* data() { return values.data(); }
    const T* data() const { return values.data(); }
};

template <class T> Dense<T> random(int m, int n) {
    std::mt19937 engine{unsigned(m + 7919 * n)};
    std::normal_distribution<double> normal;
    Dense<T> a(m, n);
    for (T& x : a.values) x = T(normal(engine));
    return a;
}

// Symmetric, with a dominant diagonal.
template <class T> Dense<T> random_definite(int n) {
    Dense<T> a = random<T>(n, n);
    for (int j = 0; j < n; ++j) {
        a(j, j) = T(n) + std::abs(a(j, j));
        for (int i = j + 1; i < n; ++i) a(i, j) = a(j, i) = a(i, j) / 2;
    }
    return a;
}

template <class T> double norm(const std::vector<T>& v) {
    double sum = 0;
    for (const T x : v) sum += double(x) * double(x);
    return std::sqrt(sum);
}

// a'b, or only its lower triangle. With pointers, because sanitized programs spend most of their time here.
template <class T> Dense<double> transposed_product(const Dense<T>& a, const Dense<T>& b, bool lower = false) {
    Dense<double> c(a.columns, b.columns);
    for (int j = 0; j < b.columns; ++j)
        for (int i = lower ? j : 0; i < a.columns; ++i) {
            const T *x = a.data() + size_t(i) * size_t(a.rows), *y = b.data() + size_t(j) * size_t(b.rows);
            double sum = 0;
            for (int k = 0; k < a.rows; ++k) sum += double(x[k]) * double(y[k]);
            c(i, j) = sum;
        }
    return c;
}

// |x - y| / |y|, optionally of the lower triangle only.
template <class T> double distance(const Dense<T>& x, const Dense<double>& y, bool lower = false) {
    std::vector<double> difference, size;
    for (int j = 0; j < y.columns; ++j) {
        for (int i = lower ? j : 0; i < y.rows; ++i) {
            difference.push_back(double(x(i, j)) - y(i, j));
            size.push_back(y(i, j));
        }
    }
    return norm(difference) / norm(size);
}

template <class T> bool same(const Dense<T>& a, const Dense<T>& b, bool lower = false) {
    for (int j = 0; j < a.columns; ++j)
        for (int i = lower ? j : 0; i < a.rows; ++i)
            if (a(i, j) != b(i, j)) return false;
    return true;
}

template <class T> void factors(const detail::DenseKernels<T>& kernels) {
    constexpr double epsilon = std::numeric_limits<T>::epsilon();
    for (const int n : {1, 7, 32, 33, 96, 97, 128, 130, 225, 300}) {
        if (quick() && n != 7 && n != 33 && n != 130) continue;
        const Dense<T> a = random_definite<T>(n);
        Dense<T> one = a, many = a;
        CHECK(detail::cholesky(kernels, 1, one.data(), n) == 0);
        CHECK(detail::cholesky(kernels, 3, many.data(), n) == 0);
        CHECK_THAT(same(one, many, true), "n %d", n);
        // L', and A from it.
        Dense<T> upper(n, n);
        for (int j = 0; j < n; ++j)
            for (int i = j; i < n; ++i) upper(j, i) = one(i, j);
        Dense<double> wanted(n, n);
        for (size_t i = 0; i < a.values.size(); ++i) wanted.values[i] = double(a.values[i]);
        const Dense<double> product = transposed_product(upper, upper);
        CHECK_THAT(distance(product, wanted) <= 10 * epsilon, "n %d: %g", n, distance(product, wanted));

        Dense<T> x(n, 1);
        for (T& value : x.values) value = 1;
        kernels.forward(one.data(), n, n, x.data());
        kernels.backward(one.data(), n, n, x.data());
        const Dense<double> ones = transposed_product(a, x);
        double most = 0;
        for (const double value : ones.values) most = std::fmax(most, std::abs(value - 1));
        CHECK_THAT(most <= 100 * epsilon, "n %d: %g", n, most);

        Dense<T> work(n, n), inverse(n, n), again(n, n);
        detail::inverse(kernels, 1, one.data(), n, work.data(), inverse.data());
        detail::inverse(kernels, 3, one.data(), n, work.data(), again.data());
        CHECK_THAT(same(inverse, again, true), "n %d", n);
        for (int j = 0; j < n; ++j)
            for (int i = 0; i < j; ++i) inverse(i, j) = inverse(j, i);
        Dense<double> identity(n, n);
        for (int j = 0; j < n; ++j) identity(j, j) = 1;
        const double off = distance(transposed_product(a, inverse), identity);
        CHECK_THAT(off <= 100 * epsilon, "n %d: %g", n, off);

        const int m = n / 2 + 3;
        const Dense<T> b = random<T>(m, n);
        Dense<T> rows = b, others = b;
        detail::divide(kernels, 1, one.data(), n, rows.data(), m);
        detail::divide(kernels, 3, one.data(), n, others.data(), m);
        CHECK_THAT(same(rows, others), "n %d", n);
        double worst = 0;  // of X L' - B
        for (int i = 0; i < m; ++i) {
            for (int j = 0; j < n; ++j) {
                double sum = -double(b(i, j));
                for (int k = 0; k <= j; ++k) sum += double(rows(i, k)) * double(one(j, k));
                worst = std::fmax(worst, std::abs(sum));
            }
        }
        CHECK_THAT(worst <= 100 * epsilon, "n %d: %g", n, worst);

        // The first leading minor that is not positive.
        one = a;
        one(n / 2, n / 2) = -1;
        CHECK(detail::cholesky(kernels, 1, one.data(), n) == n / 2 + 1);
    }
}

// Bands within and beyond the limit of banded factorization, and an element far from the band.
template <class T> void bands(const detail::DenseKernels<T>& kernels) {
    constexpr double epsilon = std::numeric_limits<T>::epsilon();
    constexpr int n = 130;
    for (const int band : {0, 1, 7, n / 16, n / 16 + 1}) {
        for (const bool far : {false, true}) {
            Dense<T> a = random_definite<T>(n);
            for (int j = 0; j < n; ++j)
                for (int i = 0; i < n; ++i) {
                    if (std::abs(i - j) > band) a(i, j) = 0;
                    if (i == j) a(i, j) = T(2 * n);
                }
            if (far) a(n - 30, 20) = a(20, n - 30) = T(1);
            Dense<T> l = a;
            CHECK(detail::cholesky(kernels, 1, l.data(), n) == 0);
            Dense<T> upper(n, n);
            for (int j = 0; j < n; ++j)
                for (int i = j; i < n; ++i) upper(j, i) = l(i, j);
            Dense<double> wanted(n, n);
            for (size_t i = 0; i < a.values.size(); ++i) wanted.values[i] = double(a.values[i]);
            const double off = distance(transposed_product(upper, upper), wanted);
            CHECK_THAT(off <= 10 * epsilon, "band %d: %g", band, off);
            for (const T bad : {T(-1), std::numeric_limits<T>::quiet_NaN()}) {
                l = a;
                l(n / 2, n / 2) = bad;
                CHECK(detail::cholesky(kernels, 1, l.data(), n) == n / 2 + 1);
            }
        }
    }
}

template <class T> void products(const detail::DenseKernels<T>& kernels) {
    constexpr double epsilon = std::numeric_limits<T>::epsilon();
    for (const int k : {1, 40, 300}) {
        for (const int n : {1, 9, 145, 150}) {
            if (quick() && (k == 1 || n == 1 || n == 150)) continue;
            const Dense<T> a = random<T>(k, n), b = random<T>(k, n / 2 + 1);
            std::vector<T> scratch;
            Dense<T> square(n, n), again(n, n);
            detail::gram(kernels, 1, a.data(), k, n, square.data(), scratch);
            detail::gram(kernels, 3, a.data(), k, n, again.data(), scratch);
            CHECK_THAT(same(square, again, true), "k %d, n %d", k, n);
            double off = distance(square, transposed_product(a, a, true), true);
            CHECK_THAT(off <= 10 * epsilon, "gram: k %d, n %d: %g", k, n, off);

            Dense<T> c(n, b.columns), d(n, b.columns);
            detail::product(kernels, 1, a.data(), b.data(), k, n, b.columns, c.data());
            detail::product(kernels, 3, a.data(), b.data(), k, n, b.columns, d.data());
            CHECK_THAT(same(c, d), "k %d, n %d", k, n);
            off = distance(c, transposed_product(a, b));
            CHECK_THAT(off <= 10 * epsilon, "product: k %d, n %d: %g", k, n, off);

            const Dense<T> x = random<T>(k, 1);
            Dense<T> y(n, 1), z(n, 1);
            detail::project(kernels, 1, a.data(), k, n, x.data(), y.data());
            detail::project(kernels, 3, a.data(), k, n, x.data(), z.data());
            CHECK_THAT(same(y, z), "k %d, n %d", k, n);
            off = distance(y, transposed_product(a, x));
            CHECK_THAT(off <= 10 * epsilon, "project: k %d, n %d: %g", k, n, off);
        }
    }
}

// Row-major matrices: tiles, parts of the rows, both and neither.
template <class T> void products_of_rows(const detail::DenseKernels<T>& kernels) {
    constexpr double epsilon = std::numeric_limits<T>::epsilon();
    for (const auto& [m, n] : {std::pair{1, 1}, {1, 9}, {131, 150}, {40, 300}, {2500, 9}, {1100, 290}}) {
        if (quick() && m == 1) continue;
        const double sum = 4 * std::sqrt(m) * epsilon;  // the error of a sum of m numbers of either sign
        const Dense<T> a = random<T>(m, n), x = random<T>(m, 1);
        Dense<T> rows(n, m);
        for (int i = 0; i < m; ++i)
            for (int j = 0; j < n; ++j) rows(j, i) = a(i, j);
        std::vector<T> scratch;
        Dense<T> square(n, n), again(n, n), along(n, 1), along_again(n, 1);
        detail::gram_rows(kernels, 1, rows.data(), m, n, x.data(), square.data(), along.data(), scratch);
        detail::gram_rows(kernels, 3, rows.data(), m, n, x.data(), again.data(), along_again.data(), scratch);
        CHECK_THAT(same(square, again, true) && same(along, along_again), "%d x %d", m, n);
        double off = distance(square, transposed_product(a, a, true), true);
        CHECK_THAT(off <= 10 * epsilon, "a'a: %d x %d: %g", m, n, off);
        off = distance(along, transposed_product(a, x));
        CHECK_THAT(off <= sum, "a'x: %d x %d: %g", m, n, off);

        detail::project_rows(kernels, 1, rows.data(), m, n, x.data(), along.data(), scratch);
        detail::project_rows(kernels, 3, rows.data(), m, n, x.data(), along_again.data(), scratch);
        CHECK_THAT(same(along, along_again), "%d x %d", m, n);
        off = distance(along, transposed_product(a, x));
        CHECK_THAT(off <= sum, "a'x alone: %d x %d: %g", m, n, off);
    }
}

template <class T> void transposes() {
    for (const auto& [rows, columns] : {std::pair{1, 1}, {5, 33}, {600, 130}}) {
        const Dense<T> a = random<T>(columns, rows);
        Dense<T> to(rows, columns);
        detail::transpose(3, a.data(), rows, columns, to.data());
        long wrong = 0;
        for (int j = 0; j < columns; ++j)
            for (int i = 0; i < rows; ++i) wrong += to(i, j) != a(j, i);
        CHECK_THAT(wrong == 0, "%d x %d: %ld", rows, columns, wrong);
    }
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    for (const auto& isa : adaptk::detail::built_isas()) {
        if (!isa.supported) continue;
        const auto& table = adaptk::detail::dense_table(isa.name);
        factors(table.f32);
        factors(table.f64);
        products(table.f32);
        products(table.f64);
        bands(table.f32);
        bands(table.f64);
        products_of_rows(table.f32);
        products_of_rows(table.f64);
    }
    transposes<float>();
    transposes<double>();
    return finish();
}
