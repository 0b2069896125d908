// The library through adaptk.hpp: groups, options, errors.
#include <adaptk/adaptk.hpp>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define CHECK(x)                                                                                                       \
    do {                                                                                                               \
        if (!(x)) {                                                                                                    \
            std::fprintf(stderr, "%d: %s\n", __LINE__, #x);                                                            \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

template <class Run> adaptk::Error error_of(const Run& run) {
    try {
        run();
    } catch (const adaptk::Error& e) {
        return e;
    }
    return {ADAPTK_OK, "no error"};
}

int main() {
    std::vector<float> w{1.0f, 2.0f, 3.0f};
    std::array<double, 2> b{4.0, 5.0};
    const std::vector<float> dw{1.0f, 1.0f, 1.0f};
    const std::array<double, 2> db{2.0, 2.0};

    adaptk::Plan plan("sgd", {w, b}, {{"lr", 0.5}});
    plan.step({dw, db});
    CHECK((w == std::vector<float>{0.5f, 1.5f, 2.5f}));
    CHECK((b == std::array<double, 2>{3.0, 4.0}));
    plan.set({{"lr", 1.0}});
    CHECK(plan.get("lr") == 1.0);
    plan.step({dw, db}, {.clip_norm = 0.0, .want_norm = true});
    CHECK(std::fabs(plan.report().grad_norm - std::sqrt(11.0)) < 1e-15);
    CHECK(plan.report().grad_norm == adaptk::global_norm({dw, db}));
    CHECK((plan.steps() == std::vector<std::int64_t>{2, 2}));

    // States of the plan's own, started as the rule says.
    std::vector<double> p(4, 1.0);
    adaptk::Plan second("delta_bar_delta", {p}, {{"lr", 0.25}});
    CHECK(second.state<double>(0, 1)[3] == 0.25);
    second.add_group("adam", {w});
    CHECK(second.size() == 2);
    const std::vector<double> dp(4, 1.0);
    second.step({dp, dw}, {.skip_nonfinite = true});
    CHECK(!second.report().skipped && p[0] == 0.75);
    CHECK(second.state<double>(0, 0)[0] == 1.0 - 0.7);
    const float before = w[0];
    const std::vector<double> bad{1.0, 2.0, NAN, 3.0};
    second.step({bad, dw}, {.skip_nonfinite = true});
    CHECK(second.report().skipped && p[0] == 0.75 && w[0] == before);

    std::vector<float> v(3, 0.0f);
    adaptk::step("momentum", {{"lr", 1.0}, {"velocity", 0.0}}, 1, w, dw, {v});
    CHECK(v[0] == 1.0f && w[0] == before - 1.0f);

    // Rows 7 and 3 of a table; row 7 twice.
    std::vector<float> table(20, 1.0f), sums(20, 0.0f);
    const std::vector<std::int64_t> rows{7, 3, 7};
    const std::vector<float> given(6, 2.0f);
    adaptk::step_rows("adagrad", {{"lr", 0.5}}, 1, table, {2, rows, given}, {sums});
    CHECK(table[15] == 0.5f && table[7] == 0.5f && table[0] == 1.0f && sums[15] == 16.0f && sums[6] == 4.0f);
    std::vector<std::int64_t> last(10, 0);
    adaptk::step_rows("sgd", {{"lr", 0.0}}, 5, table, {2, rows, given, last}, {}, ADAPTK_CATCH_UP);
    CHECK(last[7] == 5 && last[3] == 5 && last[0] == 0);
    CHECK(adaptk::step_rows("sgd", {}, 1, table, {2, rows, given}, {}, ADAPTK_DENSE, {.want_norm = true}).has_norm);
    const std::vector<std::int64_t> beyond{7, 3, 10};
    for (const auto& wrong : {adaptk::Rows{2, beyond, given}, adaptk::Rows{3, rows, given}, adaptk::Rows{0, {}, given},
                              adaptk::Rows{2, rows, dw}, adaptk::Rows{2, rows, given, std::span(last).first(9)}})
        CHECK(error_of([&] { adaptk::step_rows("sgd", {}, 1, table, wrong); }).status() == ADAPTK_INVALID_ARGUMENT);

    // Errors
    const auto unknown = error_of([&] { adaptk::Plan("adamm", {w}); });
    CHECK(unknown.status() == ADAPTK_UNKNOWN_NAME && std::string(unknown.what()).find("adamm") != std::string::npos);
    CHECK(error_of([&] { adaptk::Plan("adam", {w}, {{"lr", NAN}}); }).status() == ADAPTK_INVALID_ARGUMENT);
    CHECK(error_of([&] { adaptk::Plan("adam", {dw}); }).status() == ADAPTK_INVALID_ARGUMENT);
    std::vector<double> wide(3);
    CHECK(error_of([&] { adaptk::step("momentum", {}, 1, w, dw, {wide}); }).status() == ADAPTK_INVALID_TYPE);
    CHECK(error_of([&] { adaptk::Plan("sgd", {w}).step({w}); }).status() == ADAPTK_INVALID_ARGUMENT);
    CHECK(error_of([&] { adaptk::step("adam", {}, 1, w, dw); }).status() == ADAPTK_INVALID_ARGUMENT);
    CHECK(error_of([&] { second.add_group("adam", {w}); }).status() == ADAPTK_INVALID_ARGUMENT);
    CHECK(second.size() == 2);
    second.step({dp, dw});
    return 0;
}
