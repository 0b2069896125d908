// The loop of a rule over elements in the type that is computed in: a part of each kernel object (kernels.cpp).
#pragma once

#include "compiler.hpp"

#include "adaptk/rule.hpp"

#include <cstddef>

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
        apply_common<Coupled>(c.common, pi, gi);
        R::update(c.rule, pi, gi, s[i]...);
        p[i] = pi;
    }
}

}  // namespace
}  // namespace adaptk::detail
