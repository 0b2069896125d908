// A C++ program that uses adaptk, beside its own expressions in Armadillo: bench/cpp_race.py builds and runs it.
//
// consumer OVERHEAD_ROUNDS SECONDS SIZE...: lines "what type size name seconds", medians of one step.
#include <adaptk/adaptk.hpp>
#include <adaptk/rules.hpp>
#include <adaptk/run.hpp>

#include <armadillo>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double> of) {
    std::nth_element(of.begin(), of.begin() + std::ptrdiff_t(of.size() / 2), of.end());
    return of[of.size() / 2];
}

// The rules as a user of Armadillo writes them, statement by statement as ensmallen's update policies do.
template <class T> struct Armadillo {
    using Matrix = arma::Mat<T>;
    std::string rule;
    Matrix p, g, first, second;
    double t = 0;

    Armadillo(std::string name, arma::uword n) : rule(std::move(name)), p(n, 1), g(n, 1), first(n, 1), second(n, 1) {
        p.fill(T(1));
        g.fill(T(0.01));
    }

    void step() {
        ++t;
        if (rule == "adam") {
            const T b1 = T(0.9), b2 = T(0.999), eps = T(1e-8);
            first *= b1;
            first += (1 - b1) * g;
            second *= b2;
            second += (1 - b2) * (g % g);
            const double one = 1.0 - std::pow(0.9, t), two = 1.0 - std::pow(0.999, t);
            p -= (T(0.001 * std::sqrt(two) / one) * first) / (arma::sqrt(second) + eps);
        } else if (rule == "adagrad") {
            first += g % g;
            p -= (T(0.01) * g) / (arma::sqrt(first) + T(1e-8));
        } else if (rule == "rmsprop") {
            first *= T(0.99);
            first += T(1 - 0.99) * (g % g);
            p -= T(0.01) * g / (arma::sqrt(first) + T(1e-8));
        } else {
            const T rho = T(0.95), eps = T(1e-6);
            first *= rho;
            first += (1 - rho) * (g % g);
            const Matrix dx = arma::sqrt((second + eps) / (first + eps)) % g;
            second *= rho;
            second += (1 - rho) * (dx % dx);
            p -= dx;
        }
    }
};

adaptk::Plan plan(const std::string& rule, std::span<const adaptk::Tensor> params) {
    if (rule == "adam") return {"adam", params, {{"lr", 0.001}, {"eps", 1e-8}}};
    if (rule == "adagrad") return {"adagrad", params, {{"lr", 0.01}, {"eps_out", 1e-8}, {"eps_in", 0.0}}};
    if (rule == "rmsprop")
        return {"rmsprop", params, {{"lr", 0.01}, {"rho", 0.99}, {"eps_out", 1e-8}, {"eps_in", 0.0}}};
    return {"adadelta", params, {{"lr", 1.0}, {"rho", 0.95}, {"eps", 1e-6}}};
}

// Steps in turns; both sides have come to the same params, or there is nothing to compare.
template <class T> void race(const char* rule, arma::uword n, double seconds) {
    Armadillo<T> theirs(rule, n);
    std::vector<T> p(n, T(1));
    const std::vector<T> g(n, T(0.01));
    const std::vector<adaptk::Tensor> params{p}, grads{g};
    adaptk::Plan ours = plan(rule, params);
    std::vector<double> times[2];
    const double end = now() + seconds;
    for (int k = 0; k < 5 || now() < end; ++k) {
        const double a = now();
        ours.step(grads);
        const double b = now();
        theirs.step();
        const double c = now();
        if (k < 1) continue;
        times[0].push_back(b - a);
        times[1].push_back(c - b);
    }
    const double moved = std::fabs(double(p[0]) - 1.0);
    if (!(std::fabs(double(p[n - 1]) - double(theirs.p(n - 1))) <= 1e-3 * moved) || moved == 0.0) {
        std::fprintf(stderr, "%s: %.9g beside %.9g\n", rule, double(p[n - 1]), double(theirs.p(n - 1)));
        std::exit(1);
    }
    const char* const type = sizeof(T) == 4 ? "float" : "double";
    std::printf("%s %s %llu adaptk %.9g\n", rule, type, static_cast<unsigned long long>(n), median(times[0]));
    std::printf("%s %s %llu armadillo %.9g\n", rule, type, static_cast<unsigned long long>(n), median(times[1]));
    std::fflush(stdout);
}

// The loop over the elements and nothing else: what a step costs that is bound, checked and counted by nobody.
[[gnu::noinline]] void bare(const adaptk::StepCoefficients<adaptk::Adam, float>& c, std::size_t n, float* __restrict p,
                            const float* __restrict g, float* __restrict m, float* __restrict v) {
#pragma GCC ivdep
    for (std::size_t i = 0; i < n; ++i) adaptk::update<adaptk::Adam>(c, p[i], g[i], m[i], v[i]);
}

void overhead(int rounds) {
    constexpr std::size_t n = 64;
    std::vector<float> p(n, 1.0f), m(n), v(n), q(n, 1.0f);
    const std::vector<float> g(n, 0.01f);
    adaptk::Plan bound("adam", {q});
    const auto hyper = adaptk::defaults<adaptk::Adam>();
    const auto fixed = adaptk::coefficients<adaptk::Adam, float>(hyper, 1);
    std::int64_t t = 0;
    const std::pair<const char*, std::function<void()>> sides[] = {
        {"plan", [&] { bound.step({g}); }},
        {"run", [&] { adaptk::run<adaptk::Adam>(hyper, ++t, p, g, m, v); }},
        {"loop", [&] { bare(fixed, n, p.data(), g.data(), m.data(), v.data()); }},
        {"nothing", [] {}},
    };
    std::vector<double> times[std::size(sides)];
    for (int round = 0; round < rounds; ++round) {
        for (std::size_t k = 0; k < std::size(sides); ++k) {
            constexpr int calls = 100;
            const double start = now();
            for (int i = 0; i < calls; ++i) sides[k].second();
            times[k].push_back((now() - start) / calls);
        }
    }
    for (std::size_t k = 0; k < std::size(sides); ++k)
        std::printf("overhead float %zu %s %.9g\n", n, sides[k].first, median(times[k]));
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc < 3) return 2;
    overhead(std::atoi(argv[1]));
    const double seconds = std::atof(argv[2]);
    for (int i = 3; i < argc; ++i) {
        const auto n = arma::uword(std::atoll(argv[i]));
        for (const char* rule : {"adam", "adagrad", "rmsprop", "adadelta"}) {
            race<float>(rule, n, seconds);
            race<double>(rule, n, seconds);
        }
    }
    return 0;
} catch (const adaptk::Error& e) {
    std::fprintf(stderr, "%s: %s\n", adaptk_status_name(e.status()), e.what());
    return 1;
}
