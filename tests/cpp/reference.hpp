// A step by the rules' formulas, element by element: the reference for every kernel and code path.
#pragma once

#include "support.hpp"

namespace adaptk::test {

// One parameter, its states, and a gradient for each step, as they are stored.
struct Data {
    Format param, grad;
    std::size_t size = 0;
    Bytes values;
    std::vector<Bytes> states;
    std::vector<Bytes> grads;

    Format state() const { return compute_format(param); }
    std::size_t buffers() const { return 2 + states.size(); }
    // Buffer b in the step driver's numbering.
    Format type(std::size_t b) const { return b == 0 ? param : b == 1 ? grad : state(); }
    Bytes& bytes(std::size_t b, std::size_t step) { return b == 0 ? values : b == 1 ? grads[step] : states[b - 2]; }
    const Bytes& bytes(std::size_t b, std::size_t step) const { return const_cast<Data*>(this)->bytes(b, step); }
};

// Special numbers: both zeros, subnormal and extreme numbers, and those whose squares are just in range.
template <class T> constexpr std::size_t special_count = 16;
template <class T> T special(std::size_t i) {
    using Limits = std::numeric_limits<T>;
    const std::array<T, special_count<T>> values{T(0),
                                                 -T(0),
                                                 Limits::denorm_min(),
                                                 -(Limits::min() / 2 + Limits::denorm_min()),
                                                 Limits::min(),
                                                 -Limits::min() * T(1.5),
                                                 std::ldexp(T(1.5), Limits::max_exponent / 2 - 1),
                                                 -std::ldexp(T(1.25), Limits::min_exponent / 2),
                                                 T(1),
                                                 T(-1),
                                                 T(1) + Limits::epsilon(),
                                                 Limits::max(),
                                                 -Limits::max(),
                                                 Limits::infinity(),
                                                 -Limits::infinity(),
                                                 Limits::quiet_NaN()};
    return values[i % special_count<T>];
}

enum class Kind { plain, special };

// plain: values as in training, with occasional special ones. special: all combinations of special values of the
// parameter, the gradient and the first state.
template <class T>
Data make_data(Format param, Format grad, std::size_t states, std::size_t size, std::size_t steps, Kind kind,
               std::uint64_t seed) {
    constexpr std::size_t count = special_count<T>;
    Random random(seed);
    Data d{param, grad, size, Bytes(size * size_of(param)), {}, {}};
    d.states.assign(states, Bytes(size * sizeof(T)));
    d.grads.assign(steps, Bytes(size * size_of(grad)));
    for (std::size_t i = 0; i < size; ++i) {
        const auto element = [&](std::size_t combination) {
            if (kind == Kind::special) return special<T>(combination);
            return random.below(64) == 0 ? special<T>(random.below(count)) : random.value<T>();
        };
        write_element(param, element(i), &d.values[i * size_of(param)]);
        for (std::size_t s = 0; s < states; ++s) {
            const T x = element(s == 0 ? i / count / count : random.below(count));
            // Second moments are never negative in training; first ones are.
            write_element(d.state(), random.below(3) == 0 ? x : std::fabs(x), &d.states[s][i * sizeof(T)]);
        }
        for (std::size_t t = 0; t < steps; ++t)
            write_element(grad, element(t == 0 ? i / count : random.below(count)), &d.grads[t][i * size_of(grad)]);
    }
    return d;
}

inline Data make_data(Format param, Format grad, std::size_t states, std::size_t size, std::size_t steps, Kind kind,
                      std::uint64_t seed) {
    return param == Format::float64 ? make_data<double>(param, grad, states, size, steps, kind, seed)
                                    : make_data<float>(param, grad, states, size, steps, kind, seed);
}

// Step t with `scale` instead of the hyperparameter grad_scale.
void reference_step(const RuleInfo& rule, Data& d, const HyperValues& h, double scale, std::int64_t t,
                    const Bytes& grads);

inline void reference_steps(const RuleInfo& rule, Data& d, const HyperValues& h, std::span<const std::int64_t> steps) {
    for (std::size_t k = 0; k < steps.size(); ++k) reference_step(rule, d, h, rule.grad_scale(h), steps[k], d.grads[k]);
}

}  // namespace adaptk::test
