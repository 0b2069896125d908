// The dense kernels of every instruction set that this machine has: Cholesky factors multiplied out, with and without
// threads, and triangular systems.
#include "dense.hpp"

#include "check.hpp"
#include "dispatch.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

namespace adaptk::test {
namespace {

using std::size_t;

// Symmetric with a dominant diagonal, column after column.
template <class T> std::vector<T> random_definite(int n) {
    std::mt19937 random{unsigned(n)};
    std::normal_distribution<double> normal;
    std::vector<T> a(size_t(n) * size_t(n));
    for (int j = 0; j < n; ++j) {
        a[size_t(j) * n + j] = T(n + std::abs(normal(random)));
        for (int i = j + 1; i < n; ++i) a[size_t(j) * n + i] = a[size_t(i) * n + j] = T(normal(random)) / 2;
    }
    return a;
}

double norm(const std::vector<double>& v) {
    double sum = 0;
    for (const double x : v) sum += x * x;
    return std::sqrt(sum);
}

template <class T> void cholesky_and_systems(const detail::DenseKernels<T>& kernels) {
    constexpr double epsilon = std::numeric_limits<T>::epsilon();
    for (const int n : {1, 7, 32, 33, 96, 97, 128, 130, 225, 300}) {
        const auto at = [n](int i, int j) { return size_t(j) * size_t(n) + size_t(i); };
        const std::vector<T> a = random_definite<T>(n);
        std::vector<T> one = a, many = a;
        CHECK(detail::cholesky(kernels, 1, one.data(), n));
        CHECK(detail::cholesky(kernels, 3, many.data(), n));

        // L L' - A, column after column of the lower triangle.
        std::vector<double> error(a.size());
        bool same = true;
        for (int j = 0; j < n; ++j) {
            for (int k = 0; k <= j; ++k)
                for (int i = j; i < n; ++i) error[at(i, j)] += double(one[at(i, k)]) * double(one[at(j, k)]);
            for (int i = j; i < n; ++i) {
                error[at(i, j)] -= double(a[at(i, j)]);
                same = same && one[at(i, j)] == many[at(i, j)];
            }
        }
        const double size = norm({a.begin(), a.end()});
        CHECK_THAT(same, "n %d: threads differ", n);
        CHECK_THAT(norm(error) <= 100 * epsilon * size, "n %d: %g of %g", n, norm(error), size);

        std::vector<T> x(size_t(n), T(1));
        kernels.forward(one.data(), n, n, x.data());
        kernels.backward(one.data(), n, n, x.data());
        std::vector<double> residual(size_t(n), -1.0);
        for (int j = 0; j < n; ++j)
            for (int i = 0; i < n; ++i) residual[size_t(i)] += double(a[at(i, j)]) * double(x[size_t(j)]);
        CHECK_THAT(norm(residual) <= 1000 * epsilon * std::sqrt(n), "n %d: %g", n, norm(residual));

        one = a;
        one[at(n / 2, n / 2)] = -1;
        CHECK(!detail::cholesky(kernels, 1, one.data(), n));
    }
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    for (const auto& isa : adaptk::detail::built_isas()) {
        if (!isa.supported) continue;
        cholesky_and_systems(adaptk::detail::dense_table(isa.name).f32);
        cholesky_and_systems(adaptk::detail::dense_table(isa.name).f64);
    }
    return finish();
}
