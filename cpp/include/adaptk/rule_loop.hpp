// The loops of a rule over elements in the compute type. They are part of the library's kernel objects, and of rules
// that are compiled at run time.
#pragma once

#include "adaptk/prefetch.hpp"
#include "adaptk/rule.hpp"

#include <cstddef>
#include <utility>

namespace adaptk::detail {
namespace {

using std::size_t;

template <size_t, class T> using Stream = T* ADAPTK_RESTRICT;

template <class R, class T, bool Coupled, size_t... I>
ADAPTK_HD void rule_run(const StepCoefficients<R, T>& c, size_t n, T* ADAPTK_RESTRICT p, const T* ADAPTK_RESTRICT g,
                        Stream<I, T>... s) {
    ADAPTK_INDEPENDENT
    for (size_t i = 0; i < n; ++i) {
        T pi = p[i];
        T gi = g[i];
        update_element<R, Coupled>(c, pi, gi, s[i]...);
        p[i] = pi;
    }
}

// Long loops prefetch. The processor's own prefetchers follow up to seven streams, but with a root and a division for
// each element they have too few requests in flight: measured on two cores with 64M elements, Adam ran at 0.87 of the
// streams' bandwidth without prefetches and at 1.0 with them. Prefetches are issued for blocks, since one inside the
// loop would keep the compiler from vectorising it.
constexpr size_t block_bytes = 256;
constexpr size_t ahead_bytes = 2048;
constexpr size_t long_bytes = 16384;

// Calls run(count, streams...) for each block, after prefetching ahead of it, and then for the rest.
template <class T, class Run, class... Streams> ADAPTK_HD void in_blocks(size_t n, const Run& run, Streams... stream) {
    constexpr size_t block = block_bytes / sizeof(T);
    size_t i = 0;
    if (n >= long_bytes / sizeof(T)) {
        for (; i + block <= n; i += block) {
            (prefetch<CacheLevel::first>(stream + i, ahead_bytes, block_bytes), ...);
            run(block, (stream + i)...);
        }
    }
    run(n - i, (stream + i)...);
}

template <class R, class T, bool Coupled, size_t... I>
void rule_loop(StepCoefficients<R, T> c, size_t n, T* ADAPTK_RESTRICT p, const T* ADAPTK_RESTRICT g,
               Stream<I, T>... s) {
    in_blocks<T>(
        n,
        [&c](size_t m, T* pm, const T* gm, Stream<I, T>... sm) { rule_run<R, T, Coupled, I...>(c, m, pm, gm, sm...); },
        p, g, s...);
}

template <class R, class T, bool Coupled, size_t... I>
void unpack(const void* coefficients, void* const* b, size_t n, std::index_sequence<I...>) {
    rule_loop<R, T, Coupled, I...>(*static_cast<const StepCoefficients<R, T>*>(coefficients), n, static_cast<T*>(b[0]),
                                   static_cast<const T*>(b[1]), static_cast<T*>(b[2 + I])...);
}

template <class R, class T, bool Coupled> void step(const void* coefficients, void* const* b, size_t n) {
    unpack<R, T, Coupled>(coefficients, b, n, std::make_index_sequence<R::states.size()>{});
}

}  // namespace
}  // namespace adaptk::detail
