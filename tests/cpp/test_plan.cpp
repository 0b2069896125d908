// The step plan without a language interface: errors, step counts, steps of single params, rules made at run time, and
// states of lower precision.
#include "check.hpp"
#include "step_plan.hpp"
#include "support.hpp"

#include <thread>

namespace adaptk::test {
namespace {

using detail::ContinuedStep;
using detail::Outcome;
using detail::Slot;
using detail::StepOptions;
using detail::StepPlan;

// Float32 params of Adam, with room for gradients.
struct Params {
    std::vector<std::vector<float>> p, g, m, v;
    explicit Params(std::vector<std::size_t> sizes) {
        Random random(11);
        for (const std::size_t n : sizes) {
            p.emplace_back(n, 1.0f);
            g.emplace_back(n);
            m.emplace_back(n);
            v.emplace_back(n);
            for (float& x : g.back()) x = random.value<float>();
        }
    }
    ParamUpdate update(std::size_t i) {
        ParamUpdate u(std::int64_t(p[i].size()), Format::float32, Format::float32);
        u.buffer[0] = p[i].data();
        u.buffer[2] = m[i].data();
        u.buffer[3] = v[i].data();
        return u;
    }
    std::vector<ParamUpdate> updates(std::size_t first, std::size_t count) {
        std::vector<ParamUpdate> out;
        for (std::size_t i = first; i < first + count; ++i) out.push_back(update(i));
        return out;
    }
};

const RuleInfo& adam() { return *detail::find_rule("adam"); }

void add_all(StepPlan& plan, Params& params) {
    plan.begin();
    for (std::size_t i = 0; i < plan.size(); ++i)
        CHECK(plan.add(i, params.g[i].data(), Format::float32, plan.host_steps(i) + 1));
}

void test_steps_are_those_of_the_core() {
    const std::vector<std::size_t> sizes{5, 0, 3000, 64};
    Params a(sizes), b(sizes);
    StepPlan plan;
    CHECK(!plan.add_group(adam(), default_hyper(adam()), a.updates(0, 2), {}));
    CHECK(!plan.add_group(adam(), other_hyper(adam()), a.updates(2, 2), {}));
    const StepOptions options{0.5, 0.25, true, true};
    for (int k = 1; k <= 3; ++k) {
        add_all(plan, a);
        CHECK(!plan.check());
        const Outcome outcome = plan.run(options);
        plan.count();
        std::vector<ParamUpdate> work = b.updates(0, 4);
        for (std::size_t i = 0; i < 4; ++i) work[i].buffer[1] = b.g[i].data();
        const Segment segments[] = {{&adam(), default_hyper(adam()), k, 2}, {&adam(), other_hyper(adam()), k, 2}};
        const detail::StepReport wanted = detail::run_step(work, segments, options);
        CHECK(outcome.report.grad_norm == wanted.grad_norm && !outcome.pending);
        CHECK(a.p == b.p && a.m == b.m && a.v == b.v);
    }
    CHECK(plan.steps() == std::vector<std::int64_t>(4, 3) && plan.steps_taken() == 3);
    // Only some params take part; only their counts increase.
    plan.begin();
    plan.add(2, a.g[2].data(), Format::float32, 4);
    CHECK(!plan.check() && plan.shares()[0].segments.size() == 1);
    plan.run({});
    plan.count();
    CHECK((plan.steps() == std::vector<std::int64_t>{3, 3, 4, 3}));
    // A skipped step changes nothing.
    const auto before = a.p;
    a.g[3][0] = std::numeric_limits<float>::infinity();
    add_all(plan, a);
    CHECK(plan.run({1.0, -1.0, true, false}).report.skipped && a.p == before);
}

void test_refused_groups_leave_nothing_behind() {
    Params a({100, 100, 100});
    StepPlan plan;
    CHECK(!plan.add_group(adam(), default_hyper(adam()), a.updates(0, 1), {}));
    // A state of the new param is a state of the old one.
    std::vector<ParamUpdate> wrong = a.updates(1, 2);
    wrong[1].buffer[3] = a.v[0].data() + 10;
    const auto overlap = plan.add_group(adam(), default_hyper(adam()), wrong, {});
    CHECK(overlap && !overlap->same_param);
    const bool named = overlap->first.tensor == 0 ? overlap->second.tensor == 2 : overlap->first.tensor == 2;
    CHECK(named && overlap->first.buffer == 3 && overlap->second.buffer == 3);
    CHECK(plan.size() == 1 && plan.group_count() == 1 && plan.is_indexed());
    wrong = a.updates(0, 1);
    const auto twice = plan.add_group(adam(), default_hyper(adam()), wrong, {});
    CHECK(twice && twice->same_param);
    CHECK(!plan.add_group(adam(), default_hyper(adam()), a.updates(1, 2), {}));
    CHECK(plan.size() == 3 && plan.group_of(2) == 1);
    // A gradient over written memory.
    plan.begin();
    plan.add(0, a.m[2].data(), Format::float32, 1);
    const auto borrowed = plan.check();
    CHECK(borrowed && borrowed->first.tensor == 0 && borrowed->first.buffer == 1 && borrowed->second.tensor == 2 &&
          borrowed->second.buffer == 2);
    plan.remove_group(2);
    CHECK(plan.size() == 1 && plan.group_count() == 1);
}

// Only participating tensors are checked: pointers of others may be stale.
void test_watching_those_that_take_part() {
    Params a({100, 100});
    StepPlan plan(StepPlan::Watch::taking_part, StepPlan::Counts::caller);
    const std::uint32_t group = plan.add_group(adam(), default_hyper(adam()));
    for (int i = 0; i < 2; ++i) plan.add_tensor(group);
    plan.bind(0, a.update(0), {});
    ParamUpdate same = a.update(1);
    same.buffer[2] = a.m[0].data();
    plan.bind(1, same, {});
    plan.begin();
    plan.add(0, a.g[0].data(), Format::float32, 1);
    CHECK(!plan.check());
    plan.begin();
    for (std::size_t i = 0; i < 2; ++i) plan.add(i, a.g[i].data(), Format::float32, 1);
    CHECK(plan.check());
    plan.move(1, 2, a.m[1].data());
    CHECK(!plan.check());
}

void test_parts_from_several_threads() {
    const std::vector<std::size_t> sizes(16, 4000);
    Params a(sizes), b(sizes);
    StepPlan plan, whole;
    CHECK(!plan.add_group(adam(), default_hyper(adam()), a.updates(0, 16), {}));
    CHECK(!whole.add_group(adam(), default_hyper(adam()), b.updates(0, 16), {}));
    for (int k = 1; k <= 3; ++k) {
        std::vector<std::thread> threads;
        for (std::size_t t = 0; t < 4; ++t) {
            threads.emplace_back([&, t] {
                for (std::size_t i = t; i < 16; i += 4) {
                    const Segment segment{&adam(), default_hyper(adam()), k, 1};
                    CHECK(!plan.check_part(i, a.g[i].data(), Format::float32));
                    plan.run_part(i, a.g[i].data(), Format::float32, segment, {});
                }
            });
        }
        for (std::thread& t : threads) t.join();
        add_all(whole, b);
        CHECK(!whole.check());
        whole.run({});
        whole.count();
    }
    CHECK(a.p == b.p && a.m == b.m && a.v == b.v);
    CHECK(plan.check_part(0, a.p[5].data(), Format::float32)->second.tensor == 5);
}

void test_lists_that_come_along() {
    Params a({50, 50});
    StepPlan plan(StepPlan::Watch::all, StepPlan::Counts::caller);
    std::vector<ParamUpdate> list = a.updates(0, 2);
    for (std::size_t i = 0; i < 2; ++i) list[i].buffer[1] = a.g[i].data();
    CHECK(!plan.check_list(adam(), list) && !plan.check_list(adam(), list));
    list[1].buffer[1] = a.v[0].data();
    const auto grad = plan.check_list(adam(), list);
    CHECK(grad && grad->first.tensor == 1 && grad->second.tensor == 0 && grad->second.buffer == 3);
    list[1].buffer[0] = a.m[0].data() + 1;
    CHECK(plan.check_list(adam(), list));
}

void test_look_ahead() {
    const RuleInfo& rule = *detail::find_rule("rmsprop_nesterov");
    CHECK(rule.ahead_state == 1 && std::string(rule.hyper(rule.ahead_hyper).name) == "momentum");
    CHECK(adam().ahead_state == RuleInfo::nowhere);
    Params a({10, 300});
    for (auto& v : a.v) std::fill(v.begin(), v.end(), 0.5f);
    StepPlan plan;
    CHECK(!plan.add_group(rule, default_hyper(rule), a.updates(0, 2), {}));
    const double factor = 0.25;
    plan.look_ahead({&factor, 1}, nullptr);
    CHECK(plan.is_ahead() && a.p[0][3] == 1.125f && a.p[1][299] == 1.125f);
    void* const to[] = {a.p[0].data(), nullptr};
    plan.undo_look_ahead(to, nullptr);
    CHECK(!plan.is_ahead() && a.p[0][3] == 1.0f && a.p[1][299] == 1.125f);
}

// ---- a rule that is not in the list

template <class T> void halve(const void*, void* const* b, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) static_cast<T*>(b[0])[i] *= T(0.5);
}
void no_coefficients(const double*, double, std::int64_t, void*, const void*) {}

void test_a_rule_made_at_run_time() {
    const detail::RuleCode code{
        {{halve<float>, halve<float>}, {halve<double>, halve<double>}}, {no_coefficients, no_coefficients}, nullptr};
    const std::vector<detail::RuleCode> of_every_isa(detail::built_isas().size(), code);
    static constexpr Hyperparameter own[] = {{"lr", 1.0, Range::finite, "unused"}};
    RuleInfo rule = adam();
    rule.index = RuleInfo::nowhere;
    rule.name = "halve";
    rule.own = own;
    rule.states = {};
    rule.code = of_every_isa;
    std::vector<float> p(1000, 3.0f), g(1000);
    std::vector<std::uint16_t> h(1000, 0x3c00);
    ParamUpdate work[] = {update_of({p.data(), g.data()}, 1000, Format::float32, Format::float32),
                          update_of({h.data(), h.data() + 500}, 500, Format::float16, Format::float16)};
    const Segment segment{&rule, default_hyper(rule), 1, 2};
    for (const Isa* isa : supported_isas()) {
        detail::choose_isa(isa->name);
        p.assign(1000, 3.0f);
        h.assign(1000, 0x3c00);
        detail::run_step(work, {&segment, 1}, {});
        CHECK(p[0] == 1.5f && p[999] == 1.5f && h[0] == 0x3800 && h[499] == 0x3800 && h[500] == 0x3c00);
    }
}

// ---- states of lower precision

// Stored states are the rounded result of a step of the decoded ones.
void test_states_in_sixteen_bits() {
    for (const Isa* isa : supported_isas()) {
        detail::choose_isa(isa->name);
        for (const RuleInfo& rule : detail::rules()) {
            for (const Format state : {Format::bfloat16, Format::float16}) {
                for (const std::size_t offset : {0, 1}) {
                    const std::size_t n = quick() ? 300 : 1100;
                    const std::size_t states = rule.states.size();
                    Random random(3);
                    std::vector<float> p(n), g(n);
                    std::vector<std::vector<float>> wide(states, std::vector<float>(n));
                    std::vector<Buffer> narrow;
                    for (std::size_t s = 0; s < states; ++s) narrow.emplace_back(Bytes(2 * n).data(), 2 * n, offset);
                    for (std::size_t i = 0; i < n; ++i) p[i] = random.value<float>();
                    for (std::size_t s = 0; s < states; ++s) {
                        for (std::size_t i = 0; i < n; ++i)
                            write_element(state, std::fabs(random.value<float>()), narrow[s].data() + 2 * i);
                    }
                    std::vector<float> q = p;
                    for (int k = 1; k <= 3; ++k) {
                        for (float& x : g) x = random.value<float>();
                        const Segment segment{&rule, default_hyper(rule), k, 1};
                        for (std::size_t s = 0; s < states; ++s)
                            for (std::size_t i = 0; i < n; ++i)
                                wide[s][i] = read_element<float>(state, narrow[s].data() + 2 * i);
                        ParamUpdate stored = update_of({p.data(), g.data()}, n, Format::float32, Format::float32);
                        ParamUpdate decoded = update_of({q.data(), g.data()}, n, Format::float32, Format::float32);
                        for (std::size_t s = 0; s < states; ++s) {
                            stored.set(2 + s, {narrow[s].data(), state});
                            decoded.set(2 + s, {wide[s].data(), Format::float32});
                        }
                        detail::run_step({&stored, 1}, {&segment, 1}, {});
                        detail::run_step({&decoded, 1}, {&segment, 1}, {});
                        for (std::size_t s = 0; s < states; ++s) {
                            Bytes wanted(2 * n);
                            for (std::size_t i = 0; i < n; ++i) write_element(state, wide[s][i], &wanted[2 * i]);
                            CHECK_THAT(first_difference(state, narrow[s].data(), wanted.data(), n) == no_difference,
                                       "%s %s %s, state %zu", isa->name, rule.name, name_of(state), s);
                            CHECK(narrow[s].intact());
                        }
                        const auto* const a = reinterpret_cast<const std::byte*>(p.data());
                        const auto* const b = reinterpret_cast<const std::byte*>(q.data());
                        CHECK_THAT(first_difference(Format::float32, a, b, n) == no_difference, "%s %s", isa->name,
                                   rule.name);
                    }
                }
            }
        }
    }
}

// Memory of the exact size of a state in blocks, so that sanitizers check its ends. A plan detects scales shared by two
// states.
void test_states_with_scales() {
    const RuleInfo& rule = *detail::find_rule("adam");
    const auto hyper = default_hyper(rule);
    const Format signed_codes = detail::find_format("int8")->id, codes = detail::find_format("uint8")->id;
    for (const Isa* isa : supported_isas()) {
        CHECK(detail::choose_isa(isa->name).empty());
        for (const std::int64_t n : {std::int64_t{1}, std::int64_t{127}, std::int64_t{128}, std::int64_t{1000}}) {
            std::vector<float> p(std::size_t(n), 1.0f), g(std::size_t(n), 0.5f);
            std::vector<std::int8_t> m(std::size_t(n), 0);
            std::vector<std::uint8_t> v(std::size_t(n), 0);
            std::vector<float> m_scales(detail::side_count(signed_codes, n)), v_scales(m_scales.size());
            detail::ParamUpdate t(n, detail::Format::float32, detail::Format::float32);
            t.buffer[0] = p.data();
            t.buffer[1] = g.data();
            t.set(2, {m.data(), signed_codes, m_scales.data()});
            t.set(3, {v.data(), codes, v_scales.data()});
            detail::StepPlan plan;
            CHECK(!plan.add_group(rule, hyper, {&t, 1}, {}));
            plan.begin();
            CHECK(plan.add(0, g.data(), detail::Format::float32, 1));
            CHECK(!plan.check());
            plan.run({});
            for (const float scale : m_scales) CHECK(scale > 0.0f);
            CHECK(m[0] == 127 && v[0] == 254 && p[0] < 1.0f);
            std::vector<float> decoded(static_cast<std::size_t>(n));
            detail::decode(t.slot(2), decoded.data(), n);
            CHECK(decoded[std::size_t(n) - 1] == m_scales.back());
            // The same scales for both states.
            t.set(3, {v.data(), codes, m_scales.data()});
            detail::StepPlan other;
            CHECK(other.add_group(rule, hyper, {&t, 1}, {}).has_value());
            // A gradient within scales.
            if (n <= std::int64_t(m_scales.size())) {
                plan.begin();
                CHECK(plan.add(0, v_scales.data(), detail::Format::float32, 2));
                CHECK(plan.check().has_value());
            }
        }
    }
}

void test_formats() {
    CHECK(detail::formats().size() == Formats::size);
    for (const detail::FormatInfo& f : detail::formats()) {
        CHECK(&f == &detail::info_of(f.id) && &f == detail::find_format(f.name));
        CHECK(f.block >= 1 && 256 % f.block == 0 && f.bytes >= 1 && f.bytes % f.alignment == 0);
        CHECK(detail::storage_bytes(f.id, 0) == 0 &&
              detail::storage_bytes(f.id, 7) == (f.packed_bits > 0 ? 4u : 7u * f.bytes));
        CHECK(detail::is_packed(f.id) ? f.packed_bits == 1 && f.block % 2 == 0 : detail::stored_count(f.id, 7) == 7);
        CHECK(detail::side_count(f.id, 0) == 0 && detail::side_count(f.id, f.block) == 1);
        CHECK(detail::side_count(f.id, f.block + 1) == 2);
        CHECK(detail::has_side(f.id) == (f.block > 1 || f.split));
        CHECK(detail::is_plain(f.id) == (!detail::has_side(f.id) && !f.stochastic));
        CHECK(detail::is_plain(f.dtype) || detail::has_side(f.dtype));
        for (const Format param : f.as_param) CHECK(detail::info_of(param).dtype == f.dtype);
    }
    std::vector<std::uint16_t> halves(700);
    detail::fill({halves.data(), Format::float16}, 700, 0.1);
    CHECK(std::all_of(halves.begin(), halves.end(), [](std::uint16_t h) { return h == 0x2e66; }));
    CHECK(detail::find_format("int9") == nullptr);
    test_states_with_scales();
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    test_steps_are_those_of_the_core();
    test_refused_groups_leave_nothing_behind();
    test_watching_those_that_take_part();
    test_parts_from_several_threads();
    test_lists_that_come_along();
    test_look_ahead();
    test_a_rule_made_at_run_time();
    test_states_in_sixteen_bits();
    test_formats();
    return finish();
}
