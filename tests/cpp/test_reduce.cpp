// Reductions over every scope against their documented tree, for every format, instruction set and number of threads.
#include "check.hpp"
#include "reduce.hpp"
#include "support.hpp"

namespace adaptk::test {
namespace {

using detail::Reduction;
using detail::Scope;
using detail::Term;

constexpr std::size_t leaf_size = 8192;
constexpr std::size_t width = 256;

double term(Term t, double scale, double x) {
    const double v = scale * x;
    return t == Term::square ? v * v : v;
}

// As documented in the header, one number after the other.
double tree(const std::vector<double>& terms) {
    std::vector<double> level;
    for (std::size_t first = 0; first < terms.size(); first += leaf_size) {
        std::vector<double> sums(width, 0.0);
        for (std::size_t i = first; i < std::min(first + leaf_size, terms.size()); ++i)
            sums[(i - first) % width] += terms[i];
        for (std::size_t n = width / 2; n > 0; n /= 2)
            for (std::size_t i = 0; i < n; ++i) sums[i] += sums[i + n];
        level.push_back(sums[0]);
    }
    while (level.size() > 1) {
        std::vector<double> next;
        for (std::size_t i = 0; i + 1 < level.size(); i += 2) next.push_back(level[i] + level[i + 1]);
        if (level.size() % 2 != 0) next.push_back(level.back());
        level = next;
    }
    return level.empty() ? 0.0 : level[0];
}

struct List {
    std::vector<Buffer> memory;
    std::vector<ParamUpdate> tensors;
    std::vector<std::vector<double>> values;
    std::vector<std::int64_t> row_sizes;

    void add(Random& random, Format format, std::size_t n, std::size_t row, std::size_t offset) {
        Bytes bytes(n * size_of(format));
        std::vector<double> x(n);
        for (std::size_t i = 0; i < n; ++i) {
            std::byte* at = &bytes[i * size_of(format)];
            if (format == Format::float64) {
                write_element(format, random.value<double>(), at);
            } else {
                write_element(format, random.value<float>(), at);
            }
            x[i] = read_element<double>(format, at);
        }
        memory.emplace_back(bytes.data(), bytes.size(), offset);
        tensors.emplace_back(std::int64_t(n), compute_format(format), format);
        values.push_back(x);
        row_sizes.push_back(std::int64_t(row));
    }
    void place() {
        for (std::size_t i = 0; i < memory.size(); ++i) tensors[i].buffer[1] = memory[i].data();
    }
};

std::vector<double> expected(const List& list, const Reduction& what, const std::vector<double>& factors) {
    std::vector<std::vector<double>> parts;
    std::size_t tensor = 0;
    std::size_t left = 0;
    std::size_t group = 0;
    if (what.scope == Scope::all) parts.emplace_back();
    for (; tensor < list.values.size(); ++tensor) {
        for (; what.scope == Scope::group && left == 0; left = what.groups[group++]) parts.emplace_back();
        if (what.scope == Scope::tensor) parts.emplace_back();
        for (std::size_t i = 0; i < list.values[tensor].size(); ++i) {
            if (what.scope == Scope::row && std::int64_t(i) % list.row_sizes[tensor] == 0) parts.emplace_back();
            const double factor = factors.empty() ? 1.0 : factors[tensor];
            parts.back().push_back(term(what.term, what.scale * factor, list.values[tensor][i]));
        }
        --left;
    }
    for (; what.scope == Scope::group && group < what.groups.size(); ++group) parts.emplace_back();
    std::vector<double> sums;
    for (const auto& p : parts) sums.push_back(tree(p));
    return sums;
}

void test_scopes() {
    Random random(5);
    List list;
    const struct {
        Format format;
        std::size_t size, row, offset;
    } shapes[] = {{Format::float32, 40000, 40000, 0}, {Format::float64, 6, 3, 0},  {Format::bfloat16, 24590, 2459, 0},
                  {Format::float16, 1000, 10, 1},     {Format::float32, 0, 1, 0},  {Format::float32, 8192, 4096, 2},
                  {Format::float64, 20001, 6667, 3},  {Format::bfloat16, 7, 1, 3}, {Format::float32, 16385, 3277, 0}};
    for (const auto& s : shapes) list.add(random, s.format, s.size, s.row, s.offset);
    list.place();
    const std::vector<std::size_t> groups{2, 0, 3, 4, 0};
    std::vector<double> factors;
    for (std::size_t i = 0; i < list.tensors.size(); ++i) factors.push_back(1.0 + 0.25 * double(i));
    for (const Isa* isa : supported_isas()) {
        detail::choose_isa(isa->name);
        for (int threads = 1; threads <= (quick() ? 2 : 5); ++threads) {
            detail::set_num_threads(threads);
            for (const Term t : {Term::square, Term::value}) {
                for (const Scope scope : {Scope::all, Scope::group, Scope::tensor, Scope::row}) {
                    for (const bool with_factors : {false, true}) {
                        Reduction what;
                        what.term = t;
                        what.scope = scope;
                        what.scale = 0.75;
                        what.groups = groups;
                        what.row_sizes = list.row_sizes;
                        if (with_factors) what.factors = factors;
                        const std::vector<double> sums = detail::reduce(list.tensors, what);
                        const std::vector<double> wanted =
                            expected(list, what, with_factors ? factors : std::vector<double>{});
                        CHECK_THAT(sums == wanted, "%s, %d threads, term %d, scope %d", isa->name, threads, int(t),
                                   int(scope));
                    }
                }
            }
        }
    }
    CHECK(detail::reduce({}, {}) == std::vector<double>{0.0});
}

// Norms that need a second pass because squares overflow or underflow, and norms that need none.
void test_norms_out_of_range() {
    const double inf = std::numeric_limits<double>::infinity();
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const struct {
        double x, norm;
        bool finite;
    } cases[] = {
        {0.0, 0.0, true},     {-0.0, 0.0, true},           {1e-170, 2e-170, true}, {0x1p-1074, 0x1p-1073, true},
        {1e200, 2e200, true}, {-0x1p1000, 0x1p1001, true}, {inf, inf, false},      {nan, nan, false}};
    for (const auto& c : cases) {
        std::vector<double> x(40000, 0.0);
        for (const std::size_t i : {0u, 9000u, 20000u, 39999u}) x[i] = c.x;
        ParamUpdate t = update_of({nullptr, x.data()}, x.size(), Format::float64, Format::float64);
        for (const int threads : {1, 3}) {
            detail::set_num_threads(threads);
            const detail::StepReport r = detail::global_norm({&t, 1}, 1.0);
            const bool same = std::isnan(c.norm) ? std::isnan(r.grad_norm)
                                                 : std::fabs(r.grad_norm - c.norm) <= 1e-15 * std::fabs(c.norm) ||
                                                       r.grad_norm == c.norm;
            CHECK_THAT(same && r.finite == c.finite && r.has_norm, "%a: %a", c.x, r.grad_norm);
        }
    }
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    test_scopes();
    test_norms_out_of_range();
    return finish();
}
