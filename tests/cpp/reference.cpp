#include "reference.hpp"

namespace adaptk::test {
namespace {

// The coefficients of a step by the definition in rule.hpp, not by the registry's function.
template <class R, class T> StepCoefficients<R, T> coefficients_of(const HyperValues& h, double scale, std::int64_t t) {
    typename R::Hyper own;
    std::memcpy(&own, h.value, sizeof own);
    const double* common = h.value + R::hyperparameters.size();
    const double decay = common[0];
    const bool decoupled = common[1] != 0.0;
    const double signed_scale = common[2] != 0.0 ? -scale : scale;
    memo_of_t<R> memo = {};
    return {{T(signed_scale), T(decay), T(decoupled ? 1.0 - h.value[0] * decay : 1.0), decay != 0.0 && !decoupled},
            adaptk::coefficients_of<R, T>(own, t, memo)};
}

template <class R, class T, bool Coupled>
void reference_elements(const StepCoefficients<R, T>& c, Data& d, const Bytes& grads) {
    constexpr std::size_t states = R::states.size();
    for (std::size_t i = 0; i < d.size; ++i) {
        std::byte* at = &d.values[i * size_of(d.param)];
        T p = read_element<T>(d.param, at);
        T g = read_element<T>(d.grad, &grads[i * size_of(d.grad)]);
        std::array<T, states + 1> s{};
        for (std::size_t j = 0; j < states; ++j) std::memcpy(&s[j], &d.states[j][i * sizeof(T)], sizeof(T));
        apply_common<Coupled>(c.common, p, g);
        [&]<std::size_t... J>(std::index_sequence<J...>) {
            R::update(c.rule, p, g, s[J]...);
        }(std::make_index_sequence<states>{});
        write_element(d.param, p, at);
        for (std::size_t j = 0; j < states; ++j) std::memcpy(&d.states[j][i * sizeof(T)], &s[j], sizeof(T));
    }
}

template <class R, class T>
void reference_typed(Data& d, const HyperValues& h, double scale, std::int64_t t, const Bytes& grads) {
    const auto c = coefficients_of<R, T>(h, scale, t);
    const double* common = h.value + R::hyperparameters.size();
    if (common[0] != 0.0 && common[1] == 0.0) {
        reference_elements<R, T, true>(c, d, grads);
    } else {
        reference_elements<R, T, false>(c, d, grads);
    }
}

template <class R> void reference_of(Data& d, const HyperValues& h, double scale, std::int64_t t, const Bytes& grads) {
    if (d.param == Format::float64) {
        reference_typed<R, double>(d, h, scale, t, grads);
    } else {
        reference_typed<R, float>(d, h, scale, t, grads);
    }
}

}  // namespace

void reference_step(const RuleInfo& rule, Data& d, const HyperValues& h, double scale, std::int64_t t,
                    const Bytes& grads) {
    using Function = void (*)(Data&, const HyperValues&, double, std::int64_t, const Bytes&);
    static const auto functions = []<class... R>(RuleList<R...>) {
        return std::array<Function, sizeof...(R)>{reference_of<R>...};
    }(Rules{});
    functions[rule.index](d, h, scale, t, grads);
}

}  // namespace adaptk::test
