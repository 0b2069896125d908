// Runs models that are programs. Each instruction is executed for several points at once, so that decoding it costs
// little. Everything is in an unnamed namespace, so that each kernel object has its own.
#pragma once

#include "adaptk/solve/lanes.hpp"
#include "batch_program.hpp"

namespace adaptk::detail {
namespace {

inline constexpr int batch_points_at_once = 8;

// Lanes, `step` apart for consecutive points; 0 if it is the same for all of them.
template <class V> struct BatchPlace {
    V* at;
    int step;
};

template <class V, class F> void for_points(int count, BatchPlace<V> to, BatchPlace<V> a, F f) {
    for (int i = 0; i < count; ++i) to.at[i * to.step] = f(a.at[i * a.step]);
}
template <class V, class F> void for_points(int count, BatchPlace<V> to, BatchPlace<V> a, BatchPlace<V> b, F f) {
    for (int i = 0; i < count; ++i) to.at[i * to.step] = f(a.at[i * a.step], b.at[i * b.step]);
}

template <class V> V one_if(solve::Mask<V> condition) { return condition ? solve::lane<V>(1) : V{}; }

template <class V> void execute(const BatchInstruction* code, int size, const BatchPlace<V>* places, int count) {
    using T = solve::Element<V>;
    using solve::lane;
    for (const BatchInstruction* const end = code + size; code != end; ++code) {
        const BatchPlace<V> to = places[code->to], a = places[code->a], b = places[code->b], c = places[code->c];
        switch (BatchOp(code->op)) {
        case BatchOp::add: for_points(count, to, a, b, [](V x, V y) { return V(x + y); }); break;
        case BatchOp::subtract: for_points(count, to, a, b, [](V x, V y) { return V(x - y); }); break;
        case BatchOp::multiply: for_points(count, to, a, b, [](V x, V y) { return V(x * y); }); break;
        case BatchOp::divide: for_points(count, to, a, b, [](V x, V y) { return V(x / y); }); break;
        case BatchOp::maximum:
            for_points(count, to, a, b, [](V x, V y) { return V(((x > y) | (x != x)) ? x : y); });
            break;
        case BatchOp::minimum:
            for_points(count, to, a, b, [](V x, V y) { return V(((x < y) | (x != x)) ? x : y); });
            break;
        case BatchOp::less: for_points(count, to, a, b, [](V x, V y) { return one_if<V>(x < y); }); break;
        case BatchOp::less_equal: for_points(count, to, a, b, [](V x, V y) { return one_if<V>(x <= y); }); break;
        case BatchOp::equal: for_points(count, to, a, b, [](V x, V y) { return one_if<V>(x == y); }); break;
        case BatchOp::not_equal: for_points(count, to, a, b, [](V x, V y) { return one_if<V>(x != y); }); break;
        case BatchOp::negative: for_points(count, to, a, [](V x) { return V(-x); }); break;
        case BatchOp::absolute: for_points(count, to, a, [](V x) { return solve::absolute<V>(x); }); break;
        case BatchOp::square_root: for_points(count, to, a, [](V x) { return solve::sqrt<V>(x); }); break;
        case BatchOp::sign:
            for_points(count, to, a, [](V x) {
                const V positive = x > T(0) ? lane<V>(1) : (x == T(0) ? V{} : x);
                return V(x < T(0) ? lane<V>(-1) : positive);
            });
            break;
        case BatchOp::select:
            for (int i = 0; i < count; ++i)
                to.at[i * to.step] = a.at[i * a.step] != T(0) ? b.at[i * b.step] : c.at[i * c.step];
            break;
        case BatchOp::exponential: for_points(count, to, a, [](V x) { return solve::exp<V>(x); }); break;
        case BatchOp::exponential_less_1: for_points(count, to, a, [](V x) { return solve::expm1<V>(x); }); break;
        case BatchOp::logarithm: for_points(count, to, a, [](V x) { return solve::log<V>(x); }); break;
        case BatchOp::arc_tangent: for_points(count, to, a, [](V x) { return solve::atan<V>(x); }); break;
        case BatchOp::sine:
        case BatchOp::cosine: {
            const bool sine = BatchOp(code->op) == BatchOp::sine;
            for_points(count, to, a, [sine](V x) {
                V s, c;
                solve::sine_cosine<V>(x, s, c);
                return sine ? s : c;
            });
            break;
        }
        }
    }
}

// For each of `count` points, whose data and then inputs start `stride` lanes apart, the derivatives and model - data.
template <class V>
void run_program(const BatchProgram& program, const V* p, const V* points, int stride, int count, V* out) {
    using T = solve::Element<V>;
    V fixed[max_batch_fixed], inputs[max_batch_inputs][batch_points_at_once],
        slots[max_batch_slots][batch_points_at_once];
    BatchPlace<V> places[max_batch_fixed + max_batch_inputs + max_batch_slots];
    const int parameters = program.parameters, first_input = program.numbers + parameters + program.once_count;
    for (int i = 0; i < program.numbers; ++i) fixed[i] = solve::lane<V>(T(program.number[i]));
    for (int i = 0; i < parameters; ++i) fixed[program.numbers + i] = p[i];
    for (int i = 0; i < first_input; ++i) places[i] = {fixed + i, 0};
    for (int i = 0; i < program.inputs; ++i) places[first_input + i] = {inputs[i], 1};
    for (int i = 0; i < max_batch_slots; ++i) places[first_input + program.inputs + i] = {slots[i], 1};
    execute<V>(program.once, program.once_count, places, 1);
    for (int first = 0; first < count; first += batch_points_at_once) {
        const int now = count - first < batch_points_at_once ? count - first : batch_points_at_once;
        for (int i = 0; i < now; ++i, points += stride)
            for (int j = 0; j < program.inputs; ++j) inputs[j][i] = points[1 + j];
        execute<V>(program.each, program.each_count, places, now);
        points -= std::ptrdiff_t(stride) * now;
        for (int i = 0; i < now; ++i, points += stride, out += parameters + 1) {
            for (int j = 0; j <= parameters; ++j) {
                const BatchPlace<V> from = places[program.outputs[j]];
                out[j] = from.at[i * from.step];
            }
            out[parameters] -= points[0];
        }
    }
}

}  // namespace
}  // namespace adaptk::detail
