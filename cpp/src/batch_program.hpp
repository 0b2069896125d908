// A model of batches as a program, which is made at run time (python/adaptk/solve/_expression.py). Plain data, which
// kernel objects read too.
#pragma once

#include <cstdint>

namespace adaptk::detail {

enum class BatchOp : std::uint16_t {
    add,
    subtract,
    multiply,
    divide,
    maximum,  // NaN if an operand is NaN
    minimum,
    less,  // 1 or 0
    less_equal,
    equal,
    not_equal,
    negative,
    absolute,
    square_root,
    sign,
    select,  // a != 0 ? b : c
    exponential,
    exponential_less_1,
    logarithm,
    sine,
    cosine,
    arc_tangent,
};

// Operands are numbered in this order: numbers, parameters, results that depend on these alone, a point's inputs,
// slots.
struct BatchInstruction {
    std::uint16_t op, to, a, b, c;
};

inline constexpr int max_batch_inputs = 4;
inline constexpr int max_batch_fixed = 128;  // places before the inputs
inline constexpr int max_batch_slots = 48;

struct BatchProgram {
    int parameters = 0, inputs = 1, numbers = 0;
    const double* number = nullptr;
    int once_count = 0, each_count = 0;
    const BatchInstruction* once =
        nullptr;  // for each trial point; instruction i writes to place numbers + parameters + i
    const BatchInstruction* each = nullptr;  // for each point of the data
    const std::uint16_t* outputs = nullptr;  // parameters + 1: the derivatives, and the value
};

}  // namespace adaptk::detail
