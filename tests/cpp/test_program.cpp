// Rules that are loaded from bytes: Adam's program has the bits of the compiled rule on every instruction set, and
// modified or random bytes are refused or harmless: to be run under sanitizers.
#include "check.hpp"
#include "dispatch.hpp"
#include "rule_program.hpp"
#include "step.hpp"
#include "support.hpp"

#include <bit>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace adaptk::test {
namespace {

using detail::ElementOp;
using detail::ScalarOp;
using Bytes = std::vector<std::uint8_t>;

struct Writer {
    Bytes bytes;
    void whole(std::uint64_t x, int n) {
        for (int i = 0; i < n; ++i) bytes.push_back(std::uint8_t(x >> (8 * i)));
    }
    void f64(double x) { whole(std::bit_cast<std::uint64_t>(x), 8); }
    void text(const std::string& s) {
        whole(s.size(), 2);
        bytes.insert(bytes.end(), s.begin(), s.end());
    }
};

Bytes with_header(const Bytes& body) {
    std::uint32_t h = 0x811c9dc5u;
    for (const std::uint8_t b : body) h = (h ^ b) * 0x01000193u;
    Writer w;
    for (const char c : {'A', 'D', 'K', 'R', 'U', 'L', 'E'}) w.bytes.push_back(std::uint8_t(c));
    w.whole(1, 1);
    w.whole(h, 4);
    w.bytes.insert(w.bytes.end(), body.begin(), body.end());
    return w.bytes;
}

struct Scalar {
    ScalarOp op;
    int a = 0, b = 0, c = 0;
    double value = 0.0;
};
struct Element {
    ElementOp op;
    int a = 0, b = 0, c = 0;
};

Bytes body_of(const std::string& name, const std::vector<std::pair<std::string, double>>& hypers, int states,
              const std::vector<Scalar>& scalars, const std::vector<Element>& elements, const std::vector<int>& results,
              const std::vector<std::pair<int, int>>& carried = {}) {
    Writer w;
    for (const std::size_t n : {hypers.size(), std::size_t(states), scalars.size(), elements.size(), carried.size()})
        w.whole(n, 2);
    w.text(name);
    for (int s = 0; s < 5; ++s) w.text("");
    w.f64(0.0);
    w.f64(0.0);
    for (const auto& [h, value] : hypers) {
        w.text(h);
        w.f64(value);
        w.whole(1, 1);
        w.text("");
    }
    for (int s = 0; s < states; ++s) {
        w.text("s" + std::to_string(s));
        w.f64(0.0);
        w.whole(255, 1);
        w.whole(0, 1);
    }
    for (const Scalar& n : scalars) {
        w.whole(std::uint64_t(n.op), 1);
        for (const int x : {n.a, n.b, n.c}) w.whole(std::uint64_t(x), 2);
        w.f64(n.value);
    }
    for (const Element& n : elements) {
        w.whole(std::uint64_t(n.op), 1);
        for (const int x : {n.a, n.b, n.c}) w.whole(std::uint64_t(x), 2);
    }
    for (const int r : results) w.whole(std::uint64_t(r), 2);
    for (const auto& [hyper, node] : carried) {
        w.whole(std::uint64_t(hyper), 2);
        w.whole(std::uint64_t(node), 2);
    }
    return w.bytes;
}

const RuleInfo* load(const Bytes& bytes) {
    std::string error;
    const RuleInfo* const rule = detail::load_rule(std::as_bytes(std::span(bytes)), error);
    CHECK((rule == nullptr) != error.empty());
    return rule;
}

Bytes adam_body() {
    using S = ScalarOp;
    using E = ElementOp;
    const std::vector<Scalar> scalars{
        {S::hyper, 0},  // 0 lr
        {S::hyper, 1},  // 1 beta1
        {S::hyper, 2},  // 2 beta2
        {S::hyper, 3},  // 3 eps
        {S::step},      // 4
        {S::number, 0, 0, 0, 1.0},
        {S::subtract, 5, 1},   // 6 1 - beta1
        {S::subtract, 5, 2},   // 7 1 - beta2
        {S::power, 1, 4},      // 8
        {S::subtract, 5, 8},   // 9
        {S::divide, 0, 9},     // 10 step size
        {S::power, 2, 4},      // 11
        {S::subtract, 5, 11},  // 12
        {S::square_root, 12},  // 13
        {S::divide, 5, 13},    // 14 scale
    };
    const std::vector<Element> elements{
        {E::param},           {E::grad},
        {E::state, 0},        {E::state, 1},  // 0 ... 3
        {E::scalar, 1},       {E::scalar, 6},
        {E::scalar, 2},       {E::scalar, 7},  // 4 ... 7
        {E::scalar, 10},      {E::scalar, 14},
        {E::scalar, 3},  // 8 ... 10
        {E::multiply, 4, 2},  {E::multiply, 5, 1},
        {E::add, 11, 12},  // 13 m
        {E::multiply, 6, 3},  {E::multiply, 1, 1},
        {E::multiply, 7, 15}, {E::add, 14, 16},  // 17 v
        {E::square_root, 17}, {E::multiply, 18, 9},
        {E::add, 19, 10},  // 20
        {E::multiply, 8, 13}, {E::divide, 21, 20},
        {E::subtract, 0, 22},  // 23 p
    };
    return body_of("loaded_adam", {{"lr", 1e-3}, {"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}}, 2, scalars, elements,
                   {23, 13, 17});
}

template <class T> std::vector<std::vector<T>> run(const RuleInfo& rule, std::size_t n, double decay, double eps_at) {
    std::mt19937_64 random(n);
    std::normal_distribution<double> normal;
    std::vector<std::vector<T>> buffers(rule.buffers());
    for (std::size_t b = 0; b < buffers.size(); ++b)
        for (std::size_t i = 0; i < n; ++i)
            buffers[b].push_back(T(b == 3 ? std::fabs(normal(random)) : normal(random)));
    detail::Segment segment{&rule, {}, 3, 1};
    for (std::size_t h = 0; h < rule.hyper_count(); ++h) segment.hyper.value[h] = rule.hyper(h).value;
    segment.hyper.value[std::size_t(eps_at)] = 1e-8;
    segment.hyper.value[rule.own.size() + at_weight_decay] = decay;
    const Format format = sizeof(T) == 8 ? Format::float64 : Format::float32;
    detail::ParamUpdate update(std::int64_t(n), format, format);
    for (std::size_t b = 0; b < buffers.size(); ++b) update.buffer[b] = buffers[b].data();
    detail::run_step({&update, 1}, {&segment, 1}, {});
    return buffers;
}

template <class T> void test_bits(const RuleInfo& made) {
    const RuleInfo& compiled = *detail::find_rule("adam");
    for (const detail::Isa* isa : supported_isas()) {
        CHECK(detail::choose_isa(isa->name).empty());
        for (const std::size_t n : {1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 1000}) {
            for (const double decay : {0.0, 0.25}) {
                const auto want = run<T>(compiled, n, decay, 3);
                const auto got = run<T>(made, n, decay, 3);
                for (std::size_t b = 0; b < want.size(); ++b)
                    CHECK_THAT(std::memcmp(want[b].data(), got[b].data(), n * sizeof(T)) == 0, "%s, %zu elements",
                               isa->name, n);
            }
        }
    }
}

void run_if_loaded(const Bytes& bytes) {
    const RuleInfo* const rule = load(bytes);
    if (rule == nullptr) return;
    run<float>(*rule, 1, 0.0, 0);
    run<double>(*rule, 200, 0.5, 0);
}

void test_changed_bytes() {
    const Bytes body = adam_body();
    const Bytes whole = with_header(body);
    for (std::size_t n = 0; n < whole.size(); ++n)
        CHECK(load(Bytes(whole.begin(), whole.begin() + long(n))) == nullptr);
    for (std::size_t n = 0; n < body.size(); ++n)
        CHECK(load(with_header(Bytes(body.begin(), body.begin() + long(n)))) == nullptr);
    std::mt19937_64 random(1);
    for (int i = 0; i < 3000; ++i) {
        Bytes changed = body;
        for (std::size_t k = 0; k <= random() % 3; ++k) changed[random() % changed.size()] = std::uint8_t(random());
        run_if_loaded(with_header(changed));
    }
}

void test_carried_numbers() {
    using S = ScalarOp;
    using E = ElementOp;
    const auto body = [](int hyper, int node) {
        return body_of("carrying", {{"lr", 0.5}, {"total", 1.0}}, 0,
                       {{S::hyper, 0}, {S::hyper, 1}, {S::step}, {S::multiply, 0, 2}, {S::add, 1, 3}},
                       {{E::param}, {E::grad}, {E::scalar, 4}, {E::multiply, 1, 2}, {E::subtract, 0, 3}}, {4},
                       {{hyper, node}});
    };
    CHECK(load(with_header(body(0, 4))) == nullptr);
    CHECK(load(with_header(body(2, 4))) == nullptr);
    CHECK(load(with_header(body(1, 5))) == nullptr);
    const RuleInfo* const rule = load(with_header(body(1, 4)));
    CHECK(rule != nullptr);
    detail::HyperValues hyper{};
    for (std::size_t i = 0; i < rule->hyper_count(); ++i) hyper.value[i] = rule->hyper(i).value;
    rule->program->update_carried(*rule, hyper, 3);
    CHECK(hyper.value[0] == 0.5);
    CHECK(hyper.value[1] == 2.5);
}

void test_random_programs() {
    std::mt19937_64 random(2);
    for (int i = 0; i < 3000; ++i) {
        std::vector<Scalar> scalars;
        std::vector<Element> elements{{ElementOp::param}, {ElementOp::grad}, {ElementOp::state, 0}};
        const auto before = [&](std::size_t n) { return int(random() % (n == 0 ? 1 : n)); };
        for (std::size_t k = 0; k < 1 + random() % 8; ++k) {
            const auto op = ScalarOp(random() % std::size_t(ScalarOp::count));
            const int used = op == ScalarOp::hyper ? 0 : arity(op);
            scalars.push_back({op, used > 0 ? before(k) : 0, used > 1 ? before(k) : 0, used > 2 ? before(k) : 0,
                               double(random() % 5) - 2.0});
        }
        for (std::size_t k = 3; k < 4 + random() % 40; ++k) {
            const auto op = ElementOp(random() % std::size_t(ElementOp::count));
            const int used = arity(op);
            if (op == ElementOp::scalar) {
                elements.push_back({op, before(scalars.size())});
            } else {
                elements.push_back({op, used > 0 ? before(k) : 0, used > 1 ? before(k) : 0, used > 2 ? before(k) : 0});
            }
        }
        run_if_loaded(with_header(body_of("random_rule", {{"lr", 0.5}}, 1, scalars, elements,
                                          {before(elements.size()), before(elements.size())})));
    }
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    const adaptk::detail::RuleInfo* const adam = load(with_header(adam_body()));
    CHECK(adam != nullptr);
    if (adam != nullptr) {
        test_bits<float>(*adam);
        test_bits<double>(*adam);
        CHECK(load(with_header(adam_body())) == adam);
        CHECK(adaptk::detail::find_rule(adam->key) == adam && adaptk::detail::find_rule("loaded_adam") == nullptr);
    }
    test_changed_bytes();
    test_carried_numbers();
    test_random_programs();
    return finish();
}
