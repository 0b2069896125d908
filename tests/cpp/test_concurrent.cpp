// Threads that step separate tensors while others change the number of threads and the instruction set: every step
// gives the same bits as alone.
//
// For ThreadSanitizer, build with the library's own threads (ADAPTK_OPENMP=OFF): GCC's libgomp is not instrumented, so
// its barriers look like races. The state shared by callers is the same in both builds.
#include "check.hpp"
#include "reference.hpp"

#include "adaptk/adaptk.h"

#include <string>
#include <thread>

namespace adaptk::test {
namespace {

constexpr std::array<std::int64_t, 4> steps{1, 2, 3, 4};
constexpr std::size_t callers = 6;

void change_settings(const std::atomic<bool>& done) {
    const auto isas = supported_isas();
    Random random(11);
    while (!done.load()) {
        CHECK(detail::choose_isa(isas[random.below(isas.size())]->name).empty());
        CHECK(!detail::choose_isa("none").empty());
        CHECK(detail::set_num_threads(int(1 + random.below(3))).empty());
        std::this_thread::yield();
    }
}

void look_at_settings(const std::atomic<bool>& done) {
    while (!done.load()) {
        CHECK(detail::current_isa().supported);
        CHECK(detail::num_threads() >= 1 && detail::num_threads() <= 3);
        CHECK(detail::rules().size() == Rules::size && detail::find_rule("adam") != nullptr);
        CHECK(!detail::in_forked_child());
        std::this_thread::yield();
    }
}

void step_all_rules(std::size_t caller) {
    const auto rules = detail::rules();
    for (std::size_t i = 0; i < rules.size(); ++i) {
        const RuleInfo& rule = rules[(i + caller * 5) % rules.size()];
        const Format type =
            std::array{Format::float32, Format::float64, Format::bfloat16, Format::float16}[(i + caller) % 4];
        const std::size_t size = quick() ? 2000 : 40000;
        Data d = make_data(type, type, rule.states.size(), size, steps.size(), Kind::plain, i * callers + caller);
        Data expected = d;
        // Different callers with different hyperparameters: caches between steps are per thread.
        HyperValues h = (i + caller) % 2 == 0 ? default_hyper(rule) : other_hyper(rule);
        reference_steps(rule, expected, h, steps);
        for (std::size_t k = 0; k < steps.size(); ++k) {
            ParamUpdate t(std::int64_t(size), type, type);
            for (std::size_t b = 0; b < d.buffers(); ++b) t.buffer[b] = d.bytes(b, k).data();
            const Segment segment{&rule, h, steps[k], 1};
            const auto report = detail::run_step({&t, 1}, {&segment, 1}, {1.0, -1.0, false, true});
            CHECK(report.has_norm);
        }
        for (std::size_t b = 0; b < d.buffers(); ++b) {
            if (b == 1) continue;
            const std::size_t at = first_difference(d.type(b), expected.bytes(b, 0).data(), d.bytes(b, 0).data(), size);
            CHECK_THAT(at == no_difference, "%s, caller %zu: buffer %zu differs at %zu", rule.name, caller, b, at);
        }
    }
}

// The C interface: one plan for all callers, whose steps are applied completely or refused, and per-thread errors.
struct Shared {
    std::vector<float> param = std::vector<float>(3000, 0.0f);
    std::vector<float> grad = std::vector<float>(3000, -1.0f);
    std::int64_t size = 3000;
    adaptk_plan* plan = nullptr;
    std::atomic<int> taken{0}, busy{0};
};

void share_a_plan(Shared& shared) {
    const adaptk_tensor g = adaptk_make_tensor(shared.grad.data(), ADAPTK_FLOAT32, 1, &shared.size);
    const adaptk_tensor* const grads[] = {&g};
    for (int i = 0; i < 200; ++i) {
        const adaptk_status status = adaptk_plan_step(shared.plan, 1, grads, nullptr);
        const std::string error = adaptk_last_error();
        CHECK(status == ADAPTK_OK ? error.empty() : error == "plan: it is being used by another thread");
        CHECK(status == ADAPTK_OK || status == ADAPTK_BUSY);
        ++(status == ADAPTK_OK ? shared.taken : shared.busy);
        CHECK(adaptk_plan_step(nullptr, 1, grads, nullptr) == ADAPTK_INVALID_ARGUMENT);
        CHECK(adaptk_last_error() == std::string("plan: NULL"));
        CHECK(adaptk_find_rule("adam") != nullptr && adaptk_get_num_threads() >= 1);
    }
}

void test_shared_plan() {
    Shared shared;
    const adaptk_tensor p = adaptk_make_tensor(shared.param.data(), ADAPTK_FLOAT32, 1, &shared.size);
    const adaptk_tensor* const params[] = {&p};
    const adaptk_hyper hyper[] = {{"lr", 1.0}};
    CHECK(adaptk_plan_create("sgd", hyper, 1, 1, params, nullptr, &shared.plan) == ADAPTK_OK);
    std::vector<std::thread> all;
    for (std::size_t c = 0; c < callers; ++c) all.emplace_back(share_a_plan, std::ref(shared));
    for (std::thread& t : all) t.join();
    CHECK(std::all_of(shared.param.begin(), shared.param.end(), [&](float x) { return x == float(shared.taken); }));
    std::int64_t steps = 0;
    CHECK(adaptk_plan_get_steps(shared.plan, 1, &steps) == ADAPTK_OK && steps == shared.taken);
    CHECK(adaptk_plan_destroy(shared.plan) == ADAPTK_OK);
}

void test_concurrent() {
    CHECK(detail::set_num_threads(1).empty());
    std::atomic<bool> done{false};
    std::vector<std::thread> others;
    others.emplace_back(change_settings, std::cref(done));
    others.emplace_back(look_at_settings, std::cref(done));
    std::vector<std::thread> all;
    for (std::size_t c = 0; c < callers; ++c) all.emplace_back(step_all_rules, c);
    for (std::thread& t : all) t.join();
    done.store(true);
    for (std::thread& t : others) t.join();
}

}  // namespace
}  // namespace adaptk::test

int main() {
    adaptk::test::test_concurrent();
    adaptk::test::test_shared_plan();
    return adaptk::test::finish();
}
