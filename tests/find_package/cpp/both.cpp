// Every rule as a template in this program and as a kernel of the library: the same bits.
#include <adaptk/adaptk.hpp>
#include <adaptk/rules.hpp>
#include <adaptk/run.hpp>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

int failures = 0;

template <class T> std::vector<T> numbers(std::size_t n, double from) {
    std::vector<T> x(n);
    for (std::size_t i = 0; i < n; ++i) x[i] = T(from + std::sin(double(i) * 12.9898) * 43.7585);
    return x;
}

template <class R, class T, std::size_t... I> void compare(std::size_t n, int threads, std::index_sequence<I...>) {
    std::vector<T> p = numbers<T>(n, 0.0), q = p;
    const std::vector<T> g = numbers<T>(n, 0.25);
    std::vector<T> mine[sizeof...(I) + 1], theirs[sizeof...(I) + 1];
    for (std::size_t s = 0; s < sizeof...(I); ++s) mine[s] = theirs[s] = std::vector<T>(n, T(0.5));
    adaptk::RunOptions how;
    how.threads = threads;
    how.common.weight_decay = 0.01;
    for (int t = 1; t <= 3; ++t) {
        adaptk::run<R>(how, adaptk::defaults<R>(), t, p, g, mine[I]...);
        adaptk::step(R::name, {{"weight_decay", 0.01}, {"decoupled", 0.0}}, t, q, g, {theirs[I]...});
    }
    bool same = std::memcmp(p.data(), q.data(), n * sizeof(T)) == 0;
    for (std::size_t s = 0; s < sizeof...(I); ++s)
        same = same && std::memcmp(mine[s].data(), theirs[s].data(), n * sizeof(T)) == 0;
    if (!same) {
        std::fprintf(stderr, "%s differs, %zu bytes an element, %d threads\n", R::name, sizeof(T), threads);
        ++failures;
    }
}

template <class... R> void compare_all(adaptk::RuleList<R...>) {
    (compare<R, float>(1003, 1, std::make_index_sequence<R::states.size()>{}), ...);
    (compare<R, double>(1003, 1, std::make_index_sequence<R::states.size()>{}), ...);
    compare<adaptk::Adam, float>(200'003, 3, std::make_index_sequence<2>{});
}

}  // namespace

int main() {
    compare_all(adaptk::Rules{});
    return failures == 0 ? 0 : 1;
}
