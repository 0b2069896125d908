// Invariants of all rules in the registry, and the settings of a process.
#include "registry.hpp"

#include "check.hpp"
#include "dispatch.hpp"
#include "support.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#include "x86_level.hpp"
#endif

#include <cctype>
#include <set>
#include <sstream>

namespace adaptk::test {
namespace {

bool is_identifier(const std::string& s) {
    if (s.empty() || std::isdigit(static_cast<unsigned char>(s[0])) != 0) return false;
    return std::all_of(s.begin(), s.end(),
                       [](char c) { return c == '_' || std::isalnum(static_cast<unsigned char>(c)) != 0; });
}

std::vector<std::string> words(const char* text) {
    std::istringstream stream(text);
    std::vector<std::string> all;
    for (std::string w; stream >> w;) all.push_back(w);
    return all;
}

void test_names() {
    std::set<std::string> names;
    std::set<std::pair<std::string, std::set<std::string>>> variants;
    for (const RuleInfo& r : detail::rules()) {
        CHECK_THAT(is_identifier(r.name), "%s", r.name);
        CHECK_THAT(names.insert(r.name).second, "two rules are called %s", r.name);
        CHECK(detail::find_rule(r.name) == &r);
        CHECK_THAT(!words(r.class_name).empty(), "%s", r.name);
        const auto options = words(r.variant);
        for (const std::string& c : words(r.class_name)) {
            CHECK_THAT(is_identifier(c), "%s", c.c_str());
            CHECK_THAT(variants.insert({c, {options.begin(), options.end()}}).second, "%s: two rules for '%s'",
                       c.c_str(), r.variant);
        }
        for (const char* text : {r.summary, r.formula, r.source}) CHECK_THAT(text[0] != '\0', "%s", r.name);
        const std::string summary = r.summary;
        CHECK_THAT(summary.back() == '.' && summary.find('\n') == std::string::npos, "%s", r.name);
    }
    CHECK(names.size() == Rules::size);
    CHECK(detail::find_rule("") == nullptr && detail::find_rule("adam ") == nullptr);
}

// Messages of a library of some rules about the others.
void test_unknown_rules() {
    const std::string text = detail::unknown_rule("lionn");
    CHECK(text.starts_with("unknown rule 'lionn'"));
#if defined(ADAPTK_CHOSEN_RULES)
    for (const RuleInfo& r : detail::rules()) CHECK_THAT(text.find(r.name) != std::string::npos, "%s", r.name);
    CHECK(text.find("ADAPTK_RULES") != std::string::npos);
#else
    CHECK(text.find("ADAPTK_RULES") == std::string::npos);
#endif
}

void test_hyperparameters() {
    for (const RuleInfo& r : detail::rules()) {
        CHECK_THAT(r.own.size() > 0 && std::string(r.own[0].name) == "lr", "%s", r.name);
        CHECK(r.hyper_count() <= max_hyperparameters);
        std::set<std::string> names{"param", "grad", "step"};
        for (std::size_t i = 0; i < r.hyper_count(); ++i) {
            const Hyperparameter h = r.hyper(i);
            CHECK_THAT(is_identifier(h.name) && names.insert(h.name).second, "%s: %s", r.name, h.name);
            CHECK_THAT(detail::in_range(h.range, h.value), "%s: the default of %s is not in %s", r.name, h.name,
                       detail::range_text(h.range));
            CHECK_THAT(h.meaning[0] != '\0', "%s: %s", r.name, h.name);
            const double other = other_value(h);
            CHECK_THAT(i >= r.own.size() || (detail::in_range(h.range, other) && other != h.value), "%s: %s", r.name,
                       h.name);
        }
        const auto common = std::size_t(common_hyperparameters.size());
        for (std::size_t i = 0; i < common; ++i)
            CHECK(std::string(r.hyper(r.own.size() + i).name) == common_hyperparameters[i].name);
        const HyperValues h = default_hyper(r);
        CHECK_THAT(r.invalid(h) == nullptr, "%s: %s", r.name, r.invalid(h));
        CHECK(r.weight_decay(h) == r.common.weight_decay && r.decoupled(h) == (r.common.decoupled != 0.0));
        CHECK(r.grad_scale(h) == 1.0);
        for (const State& s : r.states)
            CHECK_THAT(is_identifier(s.name) && names.insert(s.name).second, "%s: %s", r.name, s.name);
    }
}

void test_states() {
    for (const RuleInfo& r : detail::rules()) {
        CHECK(r.states.size() <= max_states);
        for (const State& s : r.states) {
            CHECK(std::isfinite(s.initial));
            if (s.from == nullptr) continue;
            const bool known = std::any_of(r.own.begin(), r.own.end(),
                                           [&](const Hyperparameter& h) { return std::string(h.name) == s.from; });
            CHECK_THAT(known && s.option == nullptr, "%s: %s starts as %s", r.name, s.name, s.from);
        }
    }
}

void test_presets() {
    const std::set<std::string> conventions{"torch", "keras", "tf1", "optax"};
    for (const RuleInfo& r : detail::rules()) {
        std::set<std::pair<std::string, std::string>> seen;
        std::set<std::string> plain;
        for (const Preset& p : r.conventions) {
            const std::string name = p.name;
            CHECK_THAT(conventions.count(p.convention) == 1, "%s: %s", r.name, p.convention);
            CHECK_THAT(seen.insert({p.convention, name}).second, "%s: %s has %s twice", r.name, p.convention, p.name);
            if (name.empty()) {
                plain.insert(p.convention);
                continue;
            }
            bool known = false;
            for (std::size_t i = 0; i < r.hyper_count(); ++i) {
                const Hyperparameter h = r.hyper(i);
                if (name != h.name) continue;
                known = true;
                CHECK_THAT(detail::in_range(h.range, p.value), "%s: %s has %s = %g", r.name, p.convention, p.name,
                           p.value);
                CHECK_THAT(p.value != h.value, "%s: %s's %s is the default already", r.name, p.convention, p.name);
            }
            for (const State& s : r.states) {
                if (name != s.name) continue;
                known = true;
                CHECK_THAT(std::isfinite(p.value) && p.value != s.initial && s.from == nullptr, "%s: %s's %s", r.name,
                           p.convention, p.name);
            }
            CHECK_THAT(known, "%s: %s has %s, which is neither a hyperparameter nor a state", r.name, p.convention,
                       p.name);
        }
        // A convention without differences is one entry, and one with differences has no such entry.
        for (const auto& [convention, name] : seen)
            CHECK_THAT(name.empty() || plain.count(convention) == 0, "%s: %s", r.name, convention.c_str());
        for (const std::string& convention : conventions) {
            HyperValues h = default_hyper(r);
            for (const Preset& p : r.conventions) {
                for (std::size_t i = 0; i < r.hyper_count(); ++i)
                    if (convention == p.convention && std::string(p.name) == r.hyper(i).name) h.value[i] = p.value;
            }
            CHECK_THAT(r.invalid(h) == nullptr, "%s: %s", r.name, convention.c_str());
        }
    }
}

// The coefficients of both types fit into the driver's buffer, and are written within bounds.
void test_coefficients() {
    for_each_rule([]<class R, std::size_t I>() {
        const RuleInfo& r = detail::rules()[I];
        CHECK(std::string(r.name) == R::name);
        CHECK(r.states.size() == R::states.size() && r.own.size() == R::hyperparameters.size());
        constexpr std::size_t used[2] = {sizeof(StepCoefficients<R, float>), sizeof(StepCoefficients<R, double>)};
        static_assert(std::max(used[0], used[1]) <= detail::max_coefficients_bytes);
        const HyperValues h = default_hyper(r);
        for (const detail::Isa& isa : detail::built_isas()) {
            if (!isa.supported) continue;
            for (std::size_t type = 0; type < 2; ++type) {
                alignas(64) std::array<std::byte, detail::max_coefficients_bytes + 8> bytes;
                bytes.fill(std::byte{0xa5});
                isa.coefficients->prepare[I][type](h.value, 1.0, 1000, bytes.data(), nullptr);
                for (std::size_t i = used[type]; i < bytes.size(); ++i) CHECK(bytes[i] == std::byte{0xa5});
            }
        }
    });
}

void test_ranges() {
    const double inf = std::numeric_limits<double>::infinity();
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const double tiny = std::numeric_limits<double>::denorm_min();
    const double below_one = 1.0 - 0x1p-53;
    const double above_one = 1.0 + 0x1p-52;
    struct Case {
        Range range;
        const char* text;
        std::vector<double> in, out;
    };
    const Case cases[] = {
        {Range::finite, "(-inf, inf)", {-1e308, -1.0, 0.0, 1e308}, {inf, -inf}},
        {Range::nonnegative, "[0, inf)", {0.0, -0.0, tiny, 1e308}, {-tiny, inf, -inf}},
        {Range::positive, "(0, inf)", {tiny, 1e308}, {0.0, -0.0, -tiny, inf}},
        {Range::fraction, "[0, 1)", {0.0, tiny, below_one}, {1.0, -tiny, inf}},
        {Range::unit_interval, "[0, 1]", {0.0, 1.0}, {above_one, -tiny, inf}},
        {Range::open_fraction, "(0, 1)", {tiny, below_one}, {0.0, 1.0, inf}},
        {Range::above_one, "(1, inf)", {above_one, 1e308}, {1.0, 0.0, inf}},
        {Range::upper_bound, "[0, inf]", {0.0, 1.0, inf}, {-tiny, -inf}},
        {Range::flag, "bool", {0.0, 1.0}, {0.5, 2.0, -1.0, inf}},
    };
    for (const Case& c : cases) {
        CHECK(detail::range_text(c.range) == std::string(c.text));
        for (const double x : c.in) CHECK_THAT(detail::in_range(c.range, x), "%a in %s", x, c.text);
        for (const double x : c.out) CHECK_THAT(!detail::in_range(c.range, x), "%a in %s", x, c.text);
        CHECK(!detail::in_range(c.range, nan));
    }
}

void set_environment(const char* name, const char* value) {
#if defined(_WIN32)
    _putenv_s(name, value);
#else
    setenv(name, value, 1);
#endif
}

void test_instruction_sets() {
    std::set<std::string> names;
    for (const Isa& isa : detail::built_isas()) CHECK(names.insert(isa.name).second && isa.kernels != nullptr);
    const auto isas = supported_isas();
    CHECK(!isas.empty() && std::string(isas[0]->name) == "portable");
    CHECK(&detail::current_isa() == isas.back());
    for (const Isa* isa : isas) {
        CHECK(detail::choose_isa(isa->name).empty());
        CHECK(&detail::current_isa() == isa);
        const std::string error = detail::choose_isa("x86-64-v9");
        CHECK(error.find("x86-64-v9") != std::string::npos && error.find("portable") != std::string::npos);
        CHECK(&detail::current_isa() == isa);
    }
    for (const Isa& isa : detail::built_isas())
        if (!isa.supported) CHECK(!detail::choose_isa(isa.name).empty() && &detail::current_isa() == isas.back());
    set_environment("ADAPTK_ISA", "portable");
    CHECK(detail::choose_isa_from_environment().empty());
    CHECK(std::string(detail::current_isa().name) == "portable");
    set_environment("ADAPTK_ISA", "8086");
    CHECK(detail::choose_isa_from_environment().find("ADAPTK_ISA") == 0);
    set_environment("ADAPTK_ISA", "");
    CHECK(detail::choose_isa_from_environment().empty());
    CHECK(std::string(detail::current_isa().name) == "portable");
}

#if defined(__x86_64__) || defined(_M_X64)
// A fictitious processor. The operating system is only queried if needed.
struct Processor {
    std::uint32_t basic = 0x38d83201, structured = 0xd0030128, extended = 0x20, most = 7, most_extended = 0x80000008;
    std::uint64_t registers = 0xe7;

    detail::CpuidRegisters cpuid(std::uint32_t leaf) const {
        switch (leaf) {
        case 0: return {.eax = most};
        case 1: return {.ecx = basic};
        case 7: CHECK(most >= 7); return {.ebx = structured};
        case 0x80000000u: return {.eax = most_extended};
        case 0x80000001u: return {.ecx = extended};
        default: CHECK(false); return {};
        }
    }
    std::uint64_t saved() const {
        CHECK((basic & 1u << 27) != 0);
        return registers;
    }
};

void test_x86_levels() {
    CHECK(detail::x86_level(Processor{}) == 4);
    CHECK(detail::x86_level(Processor{.basic = 0}) == 1);
    CHECK(detail::x86_level(Processor{.most = 6}) == 2);
    CHECK(detail::x86_level(Processor{.most_extended = 0x80000000u}) == 2);
    CHECK(detail::x86_level(Processor{.registers = 0x3}) == 2);
    CHECK(detail::x86_level(Processor{.registers = 0x7}) == 3);
    CHECK(detail::x86_level(Processor{.registers = 0x67}) == 3);
    const Processor whole;
    for (unsigned bit = 0; bit < 32; ++bit) {
        Processor p;
        p.basic &= ~(1u << bit);
        const int by_basic = (0x982201u >> bit & 1) != 0 ? 1 : p.basic != whole.basic ? 2 : 4;
        CHECK_THAT(detail::x86_level(p) == by_basic, "bit %u of leaf 1", bit);
        p = {};
        p.structured &= ~(1u << bit);
        const int by_structured = (0x128u >> bit & 1) != 0 ? 2 : p.structured != whole.structured ? 3 : 4;
        CHECK_THAT(detail::x86_level(p) == by_structured, "bit %u of leaf 7", bit);
        p = {};
        p.extended &= ~(1u << bit);
        CHECK_THAT(detail::x86_level(p) == (p.extended != whole.extended ? 2 : 4), "bit %u of leaf 0x80000001", bit);
    }
    // This processor against the compiler, if it knows the levels.
    const int level = detail::x86_level(detail::ThisProcessor{});
    for (const Isa& isa : detail::built_isas()) {
        const std::string name = isa.name;
        if (name.starts_with("x86-64-v")) CHECK_THAT(isa.supported == (level >= name.back() - '0'), "%s", isa.name);
    }
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
    CHECK((level >= 2) == (__builtin_cpu_supports("x86-64-v2") != 0));
    CHECK((level >= 3) == (__builtin_cpu_supports("x86-64-v3") != 0));
    CHECK((level >= 4) == (__builtin_cpu_supports("x86-64-v4") != 0));
#endif
}
#endif

void test_threads() {
    CHECK(detail::num_threads() >= 1 && !detail::in_forked_child());
    CHECK(detail::set_num_threads(1).empty() && detail::num_threads() == 1);
    CHECK(detail::set_num_threads(3).empty() && detail::num_threads() == 3);
    const int before = detail::num_threads();
    for (const long long n : {0LL, -1LL, 1LL << 40}) {
        CHECK(detail::set_num_threads(n).find(std::to_string(n)) != std::string::npos);
        CHECK(detail::num_threads() == before);
    }
    for (const char* text : {"x", "2x", "0", "-3", "99999999999999999999"}) {
        set_environment("ADAPTK_NUM_THREADS", text);
        CHECK_THAT(detail::set_num_threads_from_environment().find("ADAPTK_NUM_THREADS") == 0, "%s", text);
        CHECK(detail::num_threads() == before);
    }
    set_environment("ADAPTK_NUM_THREADS", "1");
    CHECK(detail::set_num_threads_from_environment().empty() && detail::num_threads() == 1);
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    test_names();
    test_unknown_rules();
    test_hyperparameters();
    test_states();
    test_presets();
    test_coefficients();
    test_ranges();
    test_instruction_sets();
#if defined(__x86_64__) || defined(_M_X64)
    test_x86_levels();
#endif
    test_threads();
    return finish();
}
