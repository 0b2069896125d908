// What the kernels are given that make gradients of rows ready for a step.
#pragma once

#include "device.hpp"
#include "tables.hpp"

#include <cstddef>
#include <cstdint>

namespace adaptk::cuda {

// Occurrences of one row that are added up before others are (detail::row_leaf of them at most), from `first` to where
// the next leaf begins.
struct RowLeaf {
    std::uint32_t first;
    std::uint32_t row;      // which of the rows with values
    std::uint32_t partial;  // where the sum goes if the row has other leaves, else no_partial
};
inline constexpr std::uint32_t no_partial = 0xffffffff;

// A row of several leaves.
struct LongRow {
    std::uint32_t first;  // occurrence
    std::uint32_t row;
    std::uint32_t partial, count;
};

// Rows of a tensor as tensors of their own.
struct RowTables {
    Tensor* tensors;        // null: none are made
    Side* sides;            // beside them, or null
    MoreStates* more;       // null: its rule has no more than table_states states
    MoreSides* more_sides;  // beside `more`, or null
    // The tensor that the rows are of: where its buffers begin, and how many bytes a row has in each.
    void* buffer[max_buffers];
    void* side[max_buffers];
    std::uint8_t format[max_buffers];
    std::int64_t row_bytes[max_buffers], side_bytes[max_buffers];
    std::int64_t row_size;
    std::uint32_t tensor;  // its number, for random bits
    std::uint8_t number;   // the buffer with one number for each row, if there is one, else 0
    bool unaligned;        // elements are loaded one by one
    bool gathered;         // those with values alone are there, one behind the other
};

// Rows `first` ... `first + count - 1` with a gradient of the whole tensor.
struct RowTablesLaunch {
    RowTables rows;
    std::int64_t first;
    std::uint32_t count;
};

struct RowsLaunch {
    const void* values;  // a row for each index
    void* sums;  // in the type that is computed in, a row for each row with values; or for all rows of the tensor
    void* partials;
    const std::uint64_t* keys;  // of each occurrence: (row << place_bits) | place of its values
    const RowLeaf* leaves;      // and one more, where the last one ends
    const LongRow* long_rows;
    std::uint32_t leaf_count, long_count;
    std::uint32_t place_bits;
    bool for_all_rows;
    std::uint8_t values_format;
    RowTables rows;  // those with values
};

// Of rows whose rule keeps one number for each: what a warp makes of each row's gradient.
struct RowFactorsLaunch {
    const Tensor* tensors;     // a row each
    const Side* sides;         // beside them, or null
    const void* coefficients;  // a StepCoefficients of the rule, for all
    void* of_rows;             // and one of its elements, for each
    const std::uint64_t* key;  // of random bits; null: none are needed
    std::uint64_t* keys_of_rows;
    const Control* control;
    std::uint32_t count;
};

// A row that has missed steps, and the factors that make up for them.
struct MissedRow {
    std::int64_t row;
    std::uint32_t factors;
};

// IdleSteps (rule.hpp), in the type that is computed in.
template <class T> struct IdleFactors {
    T param;
    T state[max_states], from_state[max_states];
};

struct CatchUpLaunch {
    void* buffer[max_buffers];
    const MissedRow* rows;
    const void* factors;
    std::int64_t row_size;
    std::int64_t count;
    int states;
    int number;  // the state with one number for each row; or -1
};

// The same of a tensor whose buffers have any format. The rows of a step are moved: they catch up on their way to
// memory in float32, in which they are stepped, and go back behind the step. So an element is rounded once.
struct StoredRowsLaunch {
    CatchUpLaunch rows;
    void* moved[max_buffers];  // row after row, in float32; of rows that stay where they are null
    bool back;                 // from there, without factors
    bool aligned;              // every buffer lies on a multiple of 16 bytes
    std::uint8_t format[max_buffers];
    void* side[max_buffers];
    std::uint64_t key;  // of random bits, and the tensor's number for those
    std::uint32_t tensor;
};

// `type`: 0 float, 1 double.
void launch_row_leaves(const RowsLaunch&, std::size_t type, unsigned blocks, cudaStream_t);
void launch_long_rows(const RowsLaunch&, std::size_t type, unsigned blocks, cudaStream_t);
void launch_row_tables(const RowTablesLaunch&, unsigned blocks, cudaStream_t);
void launch_catch_up(const CatchUpLaunch&, std::size_t type, unsigned blocks, cudaStream_t);
void launch_stored_rows(const StoredRowsLaunch&, unsigned blocks, cudaStream_t);

}  // namespace adaptk::cuda
