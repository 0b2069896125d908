// Powers for the coefficients of a step: correctly rounded, and correct on underflow and overflow.
#include "adaptk/power.hpp"
#include "check.hpp"

#include <initializer_list>
#include <limits>

namespace adaptk::test {
namespace {

struct PowerInteger {
    double base;
    std::int64_t exponent;
    double value;
};
struct PowerReal {
    double base, exponent, value;
};

#include "power_table.inc"

constexpr std::int64_t last_step = std::numeric_limits<std::int64_t>::max();
constexpr double infinity = std::numeric_limits<double>::infinity();

void test_tables() {
    for (const auto& [base, exponent, value] : integer_powers) {
        const double got = power(base, exponent);
        CHECK_THAT(got == value, "%a to the %lld: %a, expected %a", base, (long long)(exponent), got, value);
    }
    for (const auto& [base, exponent, value] : real_powers) {
        const double got = power(base, exponent);
        CHECK_THAT(got == value, "%a to the %a: %a, expected %a", base, exponent, got, value);
    }
}

void test_edges() {
    for (const double base : {0.0, 0x1p-1074, 0.5, 0.9, 1.0, 2.0, 1e300}) CHECK(power(base, std::int64_t{0}) == 1.0);
    for (const std::int64_t n : {std::int64_t{1}, std::int64_t{2}, std::int64_t{1000}, last_step}) {
        CHECK(power(0.0, n) == 0.0);
        CHECK(power(1.0, n) == 1.0);
    }
    for (const double base : {0x1p-1074, 1e-310, 1e-200, 0.1, 0.9, 1.0, 1e200})
        CHECK_THAT(power(base, std::int64_t{1}) == base, "%a", base);
    for (const double base : {0x1p-1074, 0.5, 1.0, 3.0, 1e300}) CHECK(power(base, 0.0) == 1.0);
    for (const double y : {0.0, 1.0, -1.0, 1e300, 0.3}) CHECK(power(1.0, y) == 1.0);
    CHECK(power(HUGE_VAL, 0.3) == HUGE_VAL);
    CHECK(power(HUGE_VAL, -0.3) == 0.0);
    // Powers of two are exact in both.
    for (int n = 1; n <= 960; ++n) {
        CHECK(power(0.5, std::int64_t{n}) == std::ldexp(1.0, -n));
        CHECK(power(0.5, double(n)) == std::ldexp(1.0, -n));
        CHECK(power(2.0, double(n)) == std::ldexp(1.0, n));
    }
    for (int n = 1; n <= 960; ++n) {
        const double base = 0.5 + n / 2000.0;
        CHECK_THAT(power(base, std::int64_t{n}) == power(base, double(n)), "%a to the %d", base, n);
    }
}

// If the power is too small to be accurate, it is still negligible relative to 1.
void test_underflow() {
    for (const std::int64_t n : {std::int64_t{3000}, std::int64_t{100000}, std::int64_t{1} << 40, last_step}) {
        for (const double base : {0x1p-1074, 1e-300, 1e-150, 0.5, 0.75}) {
            const double p = power(base, n);
            CHECK_THAT(p >= 0.0 && p < 1e-290, "%a to the %lld: %a", base, (long long)(n), p);
        }
    }
    for (const double y : {1e4, 1e17, 1e300}) {
        for (const double base : {1e-300, 0.5, 0.9}) {
            const double p = power(base, y);
            CHECK_THAT(p >= 0.0 && p < 1e-290, "%a to the %a: %a", base, y, p);
        }
    }
    for (const double y : {970.0, 1000.5, 1040.0, 1073.9}) {
        const double p = power(0.5, y);
        CHECK_THAT(p >= 0.0 && p < 1e-290, "0.5 to the %a: %a", y, p);
    }
}

void test_overflow() {
    CHECK(power(2.0, 1024.0) == infinity);
    CHECK(power(10.0, 400.0) == infinity);
    CHECK(power(1e300, 1e300) == infinity);
    const double p = power(1e10, std::numeric_limits<double>::max());
    CHECK_THAT(p == infinity, "1e10 to the largest float64: %a", p);
    const double q = power(1e-10, std::numeric_limits<double>::max());
    CHECK_THAT(q == 0.0, "1e-10 to the largest float64: %a", q);
}

void test_monotonic() {
    for (const double base : {0.5, 0.9, 0.99, 0.999, 0.9999, 1 - 0x1p-20}) {
        double last = 1.0;
        for (std::int64_t n = 1; n < 20000; ++n) {
            const double p = power(base, n);
            CHECK_THAT((p < last || p < 1e-290) && p >= 0.0, "%a to the %lld: %a, after %a", base, (long long)(n), p,
                       last);
            last = p;
        }
    }
    double last = 1.0;
    for (int i = 1; i < 20000; ++i) {
        const double p = power(0.96, i * 4e-3);
        CHECK(p < last && p > 0.0);
        last = p;
    }
    last = 0.0;
    for (int i = 1; i < 5000; ++i) {
        const double p = power(1.0 + i * 1e-3, 0.75);
        CHECK(p > last);
        last = p;
    }
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    test_tables();
    test_edges();
    test_underflow();
    test_overflow();
    test_monotonic();
    return finish();
}
