// The global norm against its documented tree, and between all ways of computing it.
#include "check.hpp"
#include "support.hpp"

namespace adaptk::test {
namespace {

using detail::global_norm;

constexpr std::size_t leaf_size = 8192;
constexpr std::size_t lane_count = 256;
constexpr int max_threads = 6;

// All gradients concatenated, as float64: widening is exact.
using Flat = std::vector<double>;

double leaf_sum(const Flat& x, std::size_t leaf, double scale) {
    std::vector<double> lanes(lane_count, 0.0);
    for (std::size_t i = 0; i < leaf_size && leaf * leaf_size + i < x.size(); ++i) {
        const double v = scale * x[leaf * leaf_size + i];
        lanes[i % lane_count] += v * v;
    }
    while (lanes.size() > 1) {
        const std::size_t half = lanes.size() / 2;
        for (std::size_t i = 0; i < half; ++i) lanes[i] += lanes[half + i];
        lanes.resize(half);
    }
    return lanes[0];
}

// The tree over leaves [first, first + 2^level): the left half is full if there is a right one.
double tree_sum(const Flat& x, std::size_t leaves, std::size_t first, int level, double scale) {
    if (level == 0) return leaf_sum(x, first, scale);
    const std::size_t half = std::size_t{1} << (level - 1);
    const double left = tree_sum(x, leaves, first, level - 1, scale);
    return first + half < leaves ? left + tree_sum(x, leaves, first + half, level - 1, scale) : left;
}

double tree_norm(const Flat& x) {
    const std::size_t leaves = (x.size() + leaf_size - 1) / leaf_size;
    if (leaves == 0) return 0.0;
    int level = 0;
    while ((std::size_t{1} << level) < leaves) ++level;
    return std::sqrt(tree_sum(x, leaves, 0, level, 1.0));
}

// Without overflow of squares: values are divided by the largest.
double slow_norm(const Flat& x) {
    double largest = 0.0;
    for (const double v : x) largest = std::max(largest, std::fabs(v));
    if (largest == 0.0) return 0.0;
    int exponent = 0;
    std::frexp(largest, &exponent);
    long double sum = 0.0L;
    for (const double v : x) {
        const auto scaled = std::ldexp((long double)(v), -exponent);
        sum += scaled * scaled;
    }
    return double(std::ldexp(std::sqrt(sum), exponent));
}

bool close(double a, double b) { return std::fabs(a - b) <= 1e-14 * std::fabs(b) + 0x1p-1074; }

// A list of gradients, each in its own memory with some offset.
class List {
  public:
    void add(Format type, const double* x, std::size_t n, std::size_t offset) {
        Bytes bytes(n * size_of(type));
        for (std::size_t i = 0; i < n; ++i) {
            std::byte* at = &bytes[i * size_of(type)];
            if (type == Format::float64) {
                write_element(type, x[i], at);
            } else {
                write_element(type, float(x[i]), at);
            }
            flat_.push_back(read_element<double>(type, at));
        }
        buffers_.emplace_back(bytes.data(), bytes.size(), offset);
        tensors_.emplace_back(std::int64_t(n), compute_format(type), type);
    }
    std::span<const ParamUpdate> tensors() {
        for (std::size_t i = 0; i < tensors_.size(); ++i) tensors_[i].buffer[1] = buffers_[i].data();
        return tensors_;
    }
    const Flat& flat() const { return flat_; }

  private:
    std::vector<Buffer> buffers_;
    std::vector<ParamUpdate> tensors_;
    Flat flat_;
};

void set_threads(int n) {
    if (!detail::set_num_threads(n).empty()) CHECK(detail::set_num_threads(1).empty());
}

// f() with every instruction set, on one and several threads.
template <class F> void everywhere(const F& f) {
    for (const Isa* isa : supported_isas()) {
        CHECK(detail::choose_isa(isa->name).empty());
        for (const int threads : {1, 2, max_threads}) {
            set_threads(threads);
            f(isa->name);
        }
    }
}

bool same(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b)); }

void test_tree() {
    Random random(1);
    for (const std::size_t size :
         {0, 1, 2, 255, 256, 257, 8191, 8192, 8193, 16384, 24577, 40961, 57345, 100003, 700001}) {
        if (quick() && size > 60000) continue;
        Flat x(size);
        for (double& v : x) v = random.value<double>();
        for (const Format type : {Format::float32, Format::float64, Format::bfloat16, Format::float16}) {
            List list;
            list.add(type, x.data(), size, 0);
            const double wanted = tree_norm(list.flat());
            CHECK(close(wanted, slow_norm(list.flat())));
            everywhere([&](const char* isa) {
                const auto report = global_norm(list.tensors(), 1.0);
                CHECK(report.has_norm && report.finite && !report.skipped);
                CHECK_THAT(same(report.grad_norm, wanted), "%s %s, %zu elements: %a, expected %a", isa, name_of(type),
                           size, report.grad_norm, wanted);
                for (const double scale : {0.1, -0.1, 0.0, 3.0})
                    CHECK(same(global_norm(list.tensors(), scale).grad_norm, std::fabs(scale) * wanted));
            });
        }
    }
}

// The tree is over the concatenated gradients: it does not depend on the partition, the alignment or (if values are
// exact) the types.
void test_partitions() {
    Random random(2);
    // A different order of summation differs by an ulp or two, which the root often hides: hence many rounds.
    for (int round = 0; round < 16; ++round) {
        Flat x(36003);
        // 8 bits each, exact in every type, of such different magnitudes that no sum of squares is exact.
        for (double& v : x) v = std::ldexp(double(std::int64_t(random.below(256)) - 128), -int(random.below(25)));
        const double wanted = tree_norm(x);
        const std::size_t most = std::array<std::size_t, 4>{40, 700, 3000, 30000}[std::size_t(round) % 4];
        List list;
        for (std::size_t first = 0; first < x.size();) {
            const std::size_t n = std::min(random.below(6) == 0 ? 0 : random.below(most + 1), x.size() - first);
            const Format types[] = {Format::float32, Format::float64, Format::bfloat16, Format::float16};
            list.add(types[random.below(4)], x.data() + first, n, random.below(9));
            first += n;
        }
        CHECK(list.flat() == x);
        everywhere([&](const char* isa) {
            const double got = global_norm(list.tensors(), 1.0).grad_norm;
            CHECK_THAT(same(got, wanted), "%s, %zu tensors: %a, expected %a", isa, list.tensors().size(), got, wanted);
        });
    }
}

// Squares of float64 values are out of range although the norm is not.
void test_range() {
    Random random(3);
    const std::size_t size = 20001;
    Flat plain(size);
    for (double& v : plain) v = random.value<double>();
    for (const int exponent :
         {-1074, -1060, -1030, -1000, -700, -540, -530, -500, -460, -440, 440, 500, 511, 512, 600, 900, 1000, 1010}) {
        Flat x = plain;
        for (double& v : x) v = std::ldexp(v, exponent);
        for (const bool mixed : {false, true}) {
            List list;
            list.add(Format::float64, x.data(), size / 2, 0);
            if (mixed) {
                list.add(Format::float32, plain.data(), 999, 4);
                list.add(Format::bfloat16, plain.data(), 999, 0);
            }
            list.add(Format::float64, x.data() + size / 2, size - size / 2, 0);
            const double wanted = slow_norm(list.flat());
            double first = -1.0;
            everywhere([&](const char* isa) {
                const double got = global_norm(list.tensors(), 1.0).grad_norm;
                CHECK_THAT(close(got, wanted), "%s, values near 2^%d: %a, expected %a", isa, exponent, got, wanted);
                if (first < 0.0) first = got;
                CHECK(same(got, first));
            });
        }
    }
    for (const double v : {1e200, 1e-200, 8e307, 5e-324, 1e-310}) {
        const Flat x(4, v);
        List list;
        list.add(Format::float64, x.data(), 4, 0);
        const double got = global_norm(list.tensors(), 1.0).grad_norm;
        CHECK_THAT(close(got, 2 * v), "four times %a: %a", v, got);
    }
    // Squares of other types cannot be out of range: extreme values of each.
    for (const auto& [type, v] : {std::pair{Format::float32, 0x1p-149}, std::pair{Format::float32, 0x1.fffffep127},
                                  std::pair{Format::bfloat16, 0x1p-133}, std::pair{Format::bfloat16, 0x1.fep127},
                                  std::pair{Format::float16, 0x1p-24}, std::pair{Format::float16, 65504.0}}) {
        const Flat x(4, v);
        List list;
        list.add(type, x.data(), 4, 0);
        CHECK(global_norm(list.tensors(), 1.0).grad_norm == 2 * v);
    }
}

void test_nonfinite() {
    Random random(4);
    Flat plain(50000);
    for (double& v : plain) v = random.value<double>();
    const double inf = std::numeric_limits<double>::infinity();
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (const Format type : {Format::float32, Format::float64, Format::bfloat16, Format::float16}) {
        for (const std::size_t at : {std::size_t{0}, std::size_t{8191}, std::size_t{8192}, std::size_t{49999}}) {
            Flat with_inf = plain;
            with_inf[at] = -inf;
            Flat with_nan = plain;
            with_nan[at] = nan;
            Flat with_both = with_inf;
            with_both[(at + 5000) % plain.size()] = nan;
            List of_inf, of_nan, of_both;
            of_inf.add(type, with_inf.data(), plain.size(), 0);
            of_nan.add(type, with_nan.data(), plain.size(), 0);
            of_both.add(type, with_both.data(), plain.size(), 0);
            everywhere([&](const char*) {
                for (List* list : {&of_inf, &of_nan, &of_both}) {
                    const auto report = global_norm(list->tensors(), 0.5);
                    CHECK(!report.finite);
                    CHECK(list == &of_inf ? report.grad_norm == inf : std::isnan(report.grad_norm));
                }
            });
        }
    }
    // A norm beyond the largest float64 is infinite although every value is finite.
    const Flat huge(100, std::numeric_limits<double>::max());
    List list;
    list.add(Format::float64, huge.data(), huge.size(), 0);
    const auto report = global_norm(list.tensors(), 1.0);
    CHECK(report.grad_norm == inf && report.finite);
    CHECK(global_norm({}, 1.0).grad_norm == 0.0);
}

// A step's norm is of the gradients times the factors of their segments.
void test_segments() {
    Random random(6);
    const RuleInfo& rule = *detail::find_rule("sgd");
    for (const auto& factors : {std::vector{1.0, 0.3, -2.0}, std::vector{0.7, 0.7, 0.7}, std::vector{1e200, 1e180, 3.0},
                                std::vector{1e-200, 3e-210, 2e-200}, std::vector{1e-300, 1e3, 0.0}}) {
        Flat x(30011);
        for (double& v : x) v = random.value<double>();
        List list;
        std::vector<Segment> segments;
        Flat scaled;
        for (std::size_t s = 0; s < factors.size(); ++s) {
            HyperValues h = default_hyper(rule);
            h.value[0] = 0.0;
            h.value[rule.own.size() + 3] = factors[s];
            segments.push_back({&rule, h, 1, 2});
            for (const Format type : {Format::float32, Format::bfloat16}) {
                const std::size_t first = list.flat().size();
                list.add(type, x.data() + first, 5001 - s, s);
                for (std::size_t i = first; i < list.flat().size(); ++i) scaled.push_back(factors[s] * list.flat()[i]);
            }
        }
        std::vector<float> params(x.size());
        // Bits if segments have different factors and no second pass is needed.
        const bool plain = factors[0] != factors[1] && std::fabs(std::log2(std::fabs(factors[0]))) < 100;
        for (const double scale : {1.0, 0.1}) {
            const double wanted = scale * (plain ? tree_norm(scaled) : slow_norm(scaled));
            everywhere([&](const char* isa) {
                std::vector<ParamUpdate> work(list.tensors().begin(), list.tensors().end());
                float* param = params.data();
                for (ParamUpdate& t : work) {
                    t.buffer[0] = param;
                    param += t.size;
                }
                const auto report = detail::run_step(work, segments, {scale, -1.0, false, true});
                const double got = report.grad_norm;
                CHECK(report.finite && report.has_norm);
                CHECK_THAT(plain ? same(got, wanted) : close(got, wanted), "%s, factors %g, %g, ...: %a, expected %a",
                           isa, factors[0], factors[1], got, wanted);
            });
        }
    }
}

// The caller's rounding mode and flushing have no effect and are restored.
void test_caller_modes() {
    Random random(5);
    const ModeBits before = get_mode();
    for (int round = 0; round < 20; ++round) {
        Flat x(40000);
        const int exponent = std::array{0, -1040, 600}[std::size_t(round) % 3];
        for (double& v : x) v = std::ldexp(random.value<double>(), exponent);
        List list;
        list.add(Format::float64, x.data(), x.size(), 0);
        everywhere([&](const char* isa) {
            const double wanted = global_norm(list.tensors(), 0.1).grad_norm;
            for (const NamedMode& mode : caller_modes) {
                set_mode(mode.bits);
                const double got = global_norm(list.tensors(), 0.1).grad_norm;
                const ModeBits after = get_mode();
                set_mode(before);
                CHECK_THAT(control_bits(after) == control_bits(mode.bits), "%s", mode.name);
                CHECK_THAT(same(got, wanted), "%s, values near 2^%d, called with %s: %a, expected %a", isa, exponent,
                           mode.name, got, wanted);
            }
        });
    }
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    test_tree();
    test_partitions();
    test_range();
    test_nonfinite();
    test_segments();
    test_caller_modes();
    return finish();
}
