// The kernels' conversions of 16-bit storage, in every instruction set, against the formats' definition.
#include "check.hpp"
#include "support.hpp"

#include <span>

namespace adaptk::test {
namespace {

using detail::FormatKernels;
using detail::KernelTable;

const FormatKernels& kernels_of(const KernelTable& k, Format format) { return k.format[std::size_t(format)]; }

constexpr std::size_t all_halves = 65536;

std::uint32_t bits_of(float x) {
    std::uint32_t u = 0;
    std::memcpy(&u, &x, sizeof u);
    return u;
}

float float_of(std::uint32_t u) {
    float x = 0.0f;
    std::memcpy(&x, &u, sizeof x);
    return x;
}

bool is_nan(std::uint16_t h, const SmallFloat& f) { return (h & 0x7fffu) > f.infinity(); }

// Runs f over [0, n) in one piece, and then in pieces of 7, which leave no room for whole vectors.
template <class F> void in_pieces(std::size_t n, const F& f) {
    f(std::size_t{0}, n);
    for (std::size_t i = 0; i < n; i += 7) f(i, std::min<std::size_t>(7, n - i));
}

void test_widening(const KernelTable& k, const char* isa, Format type) {
    const SmallFloat& format = format_of(type);
    const auto decode = kernels_of(k, type).decode;
    std::vector<std::uint16_t> halves(all_halves);
    for (std::size_t i = 0; i < all_halves; ++i) halves[i] = std::uint16_t(i);
    std::vector<float> wide(all_halves);
    in_pieces(all_halves, [&](std::size_t first, std::size_t n) {
        std::fill_n(wide.begin() + std::ptrdiff_t(first), n, -123.0f);
        decode[0](halves.data() + first, nullptr, std::int64_t(first), wide.data() + first, n);
        for (std::size_t i = first; i < first + n; ++i) {
            const auto wanted = float(widened(std::uint16_t(i), format));
            const bool same = std::isnan(wanted) ? std::isnan(wide[i]) : bits_of(wide[i]) == bits_of(wanted);
            CHECK_THAT(same, "%s %s: %04zx widened to %a, expected %a", isa, name_of(type), i, double(wide[i]),
                       double(wanted));
        }
    });
    float none = 5.0f;
    decode[0](halves.data(), nullptr, 0, &none, 0);
    CHECK(none == 5.0f);
    // The same to double.
    std::vector<double> doubles(all_halves);
    in_pieces(all_halves, [&](std::size_t first, std::size_t n) {
        std::fill_n(doubles.begin() + std::ptrdiff_t(first), n, -123.0);
        decode[1](halves.data() + first, nullptr, std::int64_t(first), doubles.data() + first, n);
        for (std::size_t i = first; i < first + n; ++i)
            CHECK(std::isnan(wide[i]) ? std::isnan(doubles[i]) : doubles[i] == double(wide[i]));
    });
}

// Buffers of one batch, to limit the memory for ten million values.
struct Narrowing {
    const KernelTable& k;
    const char* isa;
    Format type;
    std::vector<float> values{};
    std::vector<std::uint16_t> halves{};

    static constexpr std::size_t batch = 1 << 14;

    void add(std::uint32_t bits) {
        values.push_back(float_of(bits));
        if (values.size() == batch) flush();
    }
    void add_with_sign(std::uint32_t bits) {
        add(bits);
        add(bits | 0x80000000u);
    }
    void flush() {
        const SmallFloat& format = format_of(type);
        halves.assign(values.size() + 1, 0xbeef);
        kernels_of(k, type).encode[0](values.data(), halves.data(), nullptr, 0, values.size(), 0);
        for (std::size_t i = 0; i < values.size(); ++i) {
            const std::uint16_t wanted = narrowed(double(values[i]), format);
            const bool same = is_nan(wanted, format) ? is_nan(halves[i], format) : halves[i] == wanted;
            CHECK_THAT(same, "%s %s: %a narrowed to %04x, expected %04x", isa, name_of(type), double(values[i]),
                       unsigned(halves[i]), unsigned(wanted));
        }
        CHECK(halves.back() == 0xbeef);
        values.clear();
    }
};

void test_narrowing(const KernelTable& k, const char* isa, Format type) {
    Narrowing test{k, isa, type};
    const SmallFloat& format = format_of(type);

    // Around every number of the format and every midpoint: each case of rounding in each binade, including subnormal
    // numbers, overflow and underflow.
    for (std::uint32_t h = 0; h <= format.infinity(); ++h) {
        const double at = widened(std::uint16_t(h), format);
        // The number after the largest would be twice the start of the last binade.
        const double next = h + 1 < format.infinity() ? widened(std::uint16_t(h + 1), format)
                                                      : 2 * at - widened(std::uint16_t(h - 1), format);
        for (const double x : {at, (at + next) / 2}) {
            const std::uint32_t u = bits_of(float(x));
            for (const std::uint32_t v : {u - 1, u, u + 1})
                if (v <= 0x7f800000u) test.add_with_sign(v);
        }
    }
    // All high bits of a float32 with every kind of low bits, including quiet and signaling NaNs.
    const int tail = 24 - format.precision - (type == Format::float16 ? 1 : 0);
    const std::uint32_t half = 1u << (tail - 1);
    for (std::uint32_t high = 0; high < (1u << (32 - tail)); ++high) {
        const bool special = (high << tail & 0x7f800000u) == 0x7f800000u;
        if (quick() && !special && high % 16 != 5) continue;
        for (const std::uint32_t low : {0u, 1u, half - 1, half, half + 1, 2 * half - 1}) test.add(high << tail | low);
    }
    Random random(9);
    const int count = quick() ? 100000 : 10000000;
    for (int i = 0; i < count; ++i) test.add(std::uint32_t(random.bits()));
    test.flush();

    // Short runs and every start within a vector.
    std::vector<float> values(64);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = random.value<float>();
    for (std::size_t first = 0; first < 20; ++first) {
        for (std::size_t n = 0; n <= 40; ++n) {
            std::vector<std::uint16_t> halves(66, 0xbeef);
            kernels_of(k, type).encode[0](values.data() + first, halves.data() + 1, nullptr, 0, n, 0);
            for (std::size_t i = 0; i < n; ++i) CHECK(halves[i + 1] == narrowed(double(values[first + i]), format));
            CHECK(halves[0] == 0xbeef && halves[n + 1] == 0xbeef);
        }
    }
}

void test_widening_floats(const KernelTable& k, const char* isa) {
    Random random(10);
    std::vector<float> values;
    for (std::uint32_t high = 0; high < 65536; ++high)
        values.push_back(float_of(high << 16 | (high % 7 == 0 ? 1u : 0u)));
    for (int i = 0; i < 100003; ++i) values.push_back(float_of(std::uint32_t(random.bits())));
    std::vector<double> wide(values.size());
    in_pieces(values.size(), [&](std::size_t first, std::size_t n) {
        kernels_of(k, Format::float32)
            .decode[1](values.data() + first, nullptr, std::int64_t(first), wide.data() + first, n);
        for (std::size_t i = first; i < first + n; ++i) {
            // A float32 is a sign, 24 bits and a power of two.
            int exponent = 0;
            const float significand = std::frexp(values[i], &exponent);
            const double wanted = std::ldexp(double(std::int64_t(std::ldexp(significand, 24))), exponent - 24);
            const bool same = std::isnan(values[i])   ? std::isnan(wide[i])
                              : std::isinf(values[i]) ? std::isinf(wide[i]) && (wide[i] > 0) == (values[i] > 0)
                              : values[i] == 0.0f     ? wide[i] == 0.0
                                                      : wide[i] == wanted;
            CHECK_THAT(same && (std::isnan(wide[i]) || std::signbit(wide[i]) == std::signbit(values[i])), "%s: %a", isa,
                       double(values[i]));
        }
    });
}

// The definition itself, at values from the standard's tables.
void test_definition() {
    CHECK(widened(0x3c00, float16) == 1.0 && widened(0x7bff, float16) == 65504.0);
    CHECK(widened(0x0001, float16) == 0x1p-24 && widened(0x0400, float16) == 0x1p-14);
    CHECK(widened(0xc000, float16) == -2.0 && std::isinf(widened(0x7c00, float16)));
    CHECK(widened(0x3f80, bfloat16) == 1.0 && widened(0x0001, bfloat16) == 0x1p-133);
    CHECK(widened(0x7f7f, bfloat16) == 0x1.fep127 && std::isnan(widened(0x7f81, bfloat16)));
    CHECK(narrowed(65519.99, float16) == 0x7bff && narrowed(65520.0, float16) == 0x7c00);
    CHECK(narrowed(0x1p-25, float16) == 0 && narrowed(0x1.001p-25, float16) == 1);
    CHECK(narrowed(1.0 + 0x1p-11, float16) == 0x3c00 && narrowed(1.0 + 0x3p-11, float16) == 0x3c02);
    CHECK(narrowed(-0.0, bfloat16) == 0x8000 && narrowed(1.0 + 0x1p-8, bfloat16) == 0x3f80);
    CHECK(narrowed(1.0 + 0x3p-8, bfloat16) == 0x3f82);
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    test_definition();
    for (const Isa* isa : supported_isas()) {
        for (const Format type : {Format::bfloat16, Format::float16}) {
            test_widening(*isa->kernels, isa->name, type);
            test_narrowing(*isa->kernels, isa->name, type);
        }
        test_widening_floats(*isa->kernels, isa->name);
    }
    return finish();
}
