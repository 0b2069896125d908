// The rules without the library: Adam by hand in a loop, and a rule of the program's own run over arrays.
#include <adaptk/rules.hpp>
#include <adaptk/run.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace {

// The sign of a decaying sum of gradients.
struct SignMomentum {
    struct Hyper {
        double lr, beta;
    };
    template <class T> struct Coefficients {
        T lr, beta;
    };
    template <class T> static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return {T(h.lr), T(h.beta)};
    }
    template <class T> static void update(const Coefficients<T>& c, T& p, T g, T& m) {
        m = c.beta * m + g;
        p = p - c.lr * adaptk::sign(m);
    }
};

bool same(const std::vector<double>& a, const std::vector<double>& b, const char* what) {
    if (a == b) return true;
    std::fprintf(stderr, "%s\n", what);
    return false;
}

}  // namespace

int main() {
    const std::size_t n = 1000;
    std::vector<double> p(n), g(n), m(n), v(n);
    for (std::size_t i = 0; i < n; ++i) {
        p[i] = double(i) / 100 - 3;
        g[i] = std::sin(double(i));
    }
    auto p2 = p, m2 = m, v2 = v, p3 = p, m3 = m, v3 = v;
    adaptk::Adam::Hyper h = adaptk::defaults<adaptk::Adam>();
    h.lr = 0.01;
    for (int t = 1; t <= 3; ++t) {
        adaptk::run<adaptk::Adam>(h, t, p, g, m, v);
        const auto c = adaptk::coefficients<adaptk::Adam, double>(h, t);
        for (std::size_t i = 0; i < n; ++i) adaptk::update<adaptk::Adam>(c, p2[i], g[i], m2[i], v2[i]);
        // The formula, as its paper has it.
        for (std::size_t i = 0; i < n; ++i) {
            m3[i] = 0.9 * m3[i] + (1.0 - 0.9) * g[i];
            v3[i] = 0.999 * v3[i] + (1.0 - 0.999) * (g[i] * g[i]);
            const double c1 = 1 - std::pow(0.9, t), c2 = 1 - std::pow(0.999, t);
            p3[i] -= 0.01 * (m3[i] / c1) / (std::sqrt(v3[i] / c2) + 1e-8);
        }
    }
    bool good = same(p, p2, "run() and update() differ") && same(m, m2, "run() and update() differ in m");
    for (std::size_t i = 0; i < n; ++i) good = good && std::fabs(p[i] - p3[i]) < 1e-12;

    // A rule of one's own, with what every rule has in front of it.
    std::vector<double> q(n, 1.0), momentum(n);
    adaptk::run<SignMomentum>({.lr = 0.5, .beta = 0.5}, 1, q, g, momentum);
    for (std::size_t i = 0; i < n; ++i) good = good && q[i] == 1.0 - 0.5 * (g[i] > 0 ? 1 : g[i] < 0 ? -1 : 0);
    adaptk::RunOptions how;
    how.common.weight_decay = 0.5;
    how.common.decoupled = 1.0;
    how.common.maximize = 1.0;
    std::vector<double> r(n, 1.0), zero(n);
    adaptk::run<SignMomentum>(how, {.lr = 0.5, .beta = 0.5}, 1, r, g, zero);
    for (std::size_t i = 0; i < n; ++i) good = good && r[i] == 0.75 + 0.5 * (g[i] > 0 ? 1 : g[i] < 0 ? -1 : 0);
    try {
        adaptk::run<SignMomentum>({.lr = 0.5, .beta = 0.5}, 1, q, std::span(g).first(3), momentum);
        good = false;
    } catch (const std::invalid_argument&) {
    }
    if (!good) std::fprintf(stderr, "a result is wrong\n");
    return good ? 0 : 1;
}
