// A rule that is made at run time, as a program: scalar expressions of the hyperparameters and the step number, and
// expressions that are evaluated for each element. It is plain data, which kernel objects read too.
//
// Its text form, as bytes, is what load_rule() reads. Integers and floats are little-endian; a string is a u16 count
// of bytes and UTF-8 without zeros.
//   "ADKRULE", u8 version, u32 checksum of what follows (FNV-1a)
//   u16 hyperparameters, states, scalar nodes, element nodes, carried numbers; from version 2 on also: reductions
//   string name, class name (may be empty: made of the name), summary, formula, source,
//          the rule that computes the point to evaluate at (empty: that is the param)
//   f64 default of weight_decay, f64 of decoupled
//   hyperparameters:  string name, f64 default, u8 range (Range), string meaning
//   states:           string name, f64 initial, u8 what it starts as (starts_as_number), u8 nonnegative; of version 3
//                     also: u8 what there is one number for (Per in rule.hpp; no slices). Those for each element come
//                     first
//   scalar nodes:     u8 op (ScalarOp), u16 a, b, c, f64 value
//   element nodes:    u8 op (ElementOp), u16 a, b, c
//   u16 element node of the new param, then of each state; of a state per tensor the scalar node
//   carried numbers:  u16 hyperparameter, u16 scalar node of its value at the next step
//   reductions:       u8 what (Reduce), u8 of what (Over), u16 element node
// Programs without reductions have version 1, those with reductions version 2, and those that use a tensor's rows and
// columns or have a number for each tensor version 3. A node's operands are nodes before it, and a reduction's element
// depends only on reductions before it. Operands that an op does not have are 0.
//
// A tensor is a sequence of matrices: its last axis runs over columns, the one before it over rows, and the others over
// matrices. A tensor with fewer than two axes is a matrix of one row. If all operands of an element node are numbers or
// have a value for each row, the node has a value for each row too, and likewise for columns. Any other node has a
// value for each element.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adaptk::detail {

// Evaluated once a step, in double.
enum class ScalarOp : std::uint8_t {
    number,  // value
    hyper,   // a: which; after the rule's own, weight_decay and decoupled
    step,    // its number
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
    power,
    negative,
    absolute,
    square_root,
    sign,
    floor,
    logarithm,
    select,              // a != 0 ? b : c
    cumulative_product,  // of a's values at steps 1 ... t; 0 from where its magnitude is below 2^-60
    reduced,             // a: a reduction, whose value it is
    state,               // a: which, of those per tensor
    shape,               // a: which number (Shape)
    count,
};

// What a program may use of a tensor's shape: the rows and the columns of a matrix; 1 if the tensor has fewer than two
// axes, else 0.
enum class Shape : std::uint8_t { rows, columns, is_vector, count };

struct ScalarNode {
    ScalarOp op;
    std::uint16_t a, b, c;
    double value;
};

// Evaluated for each element, in the compute type.
enum class ElementOp : std::uint8_t {
    scalar,           // a: a scalar node, whose value is rounded to the compute type
    param,            // after decoupled decay
    grad,             // scaled, and after coupled decay
    state,            // a: which
    param_as_stored,  // before any decay
    add,
    subtract,
    multiply,
    divide,
    maximum,
    minimum,
    less,
    less_equal,
    equal,
    not_equal,
    negative,
    absolute,
    square_root,
    sign,
    select,
    reduced,  // a: a reduction over rows, columns or matrices
    count,
};

// A hyperparameter that each step sets to a new value for the next one.
struct CarriedNumber {
    std::uint16_t hyper, node;
};

struct ElementNode {
    ElementOp op;
    std::uint16_t a, b, c;
};

// A number from all elements of a scope. Elements are computed in the compute type and summed in float64 in the order
// of reduce.hpp, or the largest one is found: NaN if there is one, +0 before -0, and -inf for no elements.
enum class Reduce : std::uint8_t { norm, sum, mean, largest, count };
//   all      the tensors of the step that the same rule updates
//   rows     each row: a number for each row; likewise for columns
//   matrix   all rows of a matrix, of a value for each row: one number for all of them; likewise for columns
enum class Over : std::uint8_t { tensor, all, rows, columns, matrix, count };
struct ReductionNode {
    Reduce what;
    Over over;
    std::uint16_t element;
};

// How many operands of these kinds an op has.
constexpr int arity(ScalarOp op) {
    if (op < ScalarOp::add || op >= ScalarOp::reduced) return 0;
    if (op == ScalarOp::select) return 3;
    return op < ScalarOp::negative ? 2 : 1;
}
constexpr int arity(ElementOp op) {
    if (op < ElementOp::add || op == ElementOp::reduced) return 0;
    if (op == ElementOp::select) return 3;
    return op < ElementOp::negative ? 2 : 1;
}

inline constexpr std::size_t max_scalar_nodes = 256;
inline constexpr std::size_t max_element_nodes = 512;
inline constexpr std::size_t max_reductions = 8;
// Values for each row or column that a pass over elements reads.
inline constexpr std::size_t max_operands = 8;

// The instructions for elements: a machine with one accumulator r, which is a block of elements, and operands a, b in
// slots of a block each: first the buffers, then constants, then scratch. If an instruction has several operations,
// each is rounded.
enum class Opcode : std::uint8_t {
    end,
    load,              // r = a
    store,             // a = r
    add,               // r = r + a
    subtract,          // r = r - a
    subtract_from,     // r = a - r
    multiply,          // r = r * a
    divide,            // r = r / a
    divide_into,       // r = a / r
    maximum,           // r = max(r, a)
    maximum_with,      // r = max(a, r): for two zeros, the other one
    minimum,           // r = min(r, a)
    minimum_with,      // r = min(a, r)
    less,              // r = r < a
    greater,           // r = a < r
    less_equal,        // r = r <= a
    greater_equal,     // r = a <= r
    equal,             // r = r == a
    not_equal,         // r = r != a
    negative,          // r = -r
    absolute,          // r = abs(r)
    square_root,       // r = sqrt(r)
    sign,              // r = sign(r)
    select,            // r = r != 0 ? a : b
    keep_if,           // r = a != 0 ? r : b
    keep_unless,       // r = a != 0 ? b : r
    load_add,          // r = a + b
    load_subtract,     // r = a - b
    load_multiply,     // r = a * b
    add_product,       // r = r + a * b
    subtract_product,  // r = r - a * b
    product_subtract,  // r = a * b - r
    product_divide,    // r = a * b / r
    multiply_add,      // r = r * a + b
    square,            // r = r * r
    load_square,       // r = a * a
    // Frequent instructions with constants, which are read once per block: loads take most of a block's time.
    add_constant,               // a is one
    multiply_constant,          // a
    load_multiply_constant,     // a
    add_product_constant,       // a
    subtract_product_constant,  // a
    product_subtract_constant,  // a
    product_divide_constant,    // a
    multiply_add_constants,     // a and b
    // The parts that most rules have. The result is also stored in c. x and y are a and b of the next word, which is an
    // operand and not an instruction.
    average,            // r = a * b + x * y, a and x are constants
    average_square,     // r = a * b + (y * y) * x, a and x are constants
    root_multiply_add,  // r = sqrt(r) * a + b, a and b are constants; not stored, and of one word
    step,               // r = b - a * y / r, a is a constant
    step_decayed,       // r = x * b - a * y / r, a and x are constants
};

struct Instruction {
    Opcode op;
    std::uint8_t c;
    std::uint16_t a, b;
};

// The number of a kernel's scratch slots.
inline constexpr std::size_t max_scratch = 32;
// The largest number of a program's constants, including the common ones.
inline constexpr std::size_t max_constants = 96;
// The common ones: the gradient's scale; w (coupled decay) or 1 - lr * w.
inline constexpr std::size_t common_constants = 2;

// sums[(phase + i) % 256] += term(scale * x[i]) for i = 0 ... n-1 in this order. For Term::largest, the larger of both.
using AddTerms = void (*)(const void* x, std::size_t n, std::size_t phase, double scale, double* sums);

// A reduction of a buffer of a program.
struct BufferSum {
    AddTerms add;
    std::size_t buffer;
    double* sums;
};
// What is reduced of each block after its code.
struct BlockSums {
    const BufferSum* sum;
    std::size_t count;
    std::size_t fixed;  // the number of the last buffers that have one block, which each block of elements overwrites
    std::size_t phase;  // of the first element
    double scale;
};

// The coefficients that the StepKernel of a program receives.
struct ProgramStep {
    const Instruction* code;
    std::size_t buffers;
    // A bit for each buffer: whether it is written, whether it is read or written, and whether it is prefetched,
    // because it is in memory.
    std::uint32_t written, used, ahead;
    // Blocks of one repeated number each: the constants of all tensors of a segment, and then a tensor's own.
    std::size_t constants;
    const void* constant;
    std::size_t own_constants;
    const void* own_constant;
    const BlockSums* sums = nullptr;
};

}  // namespace adaptk::detail
