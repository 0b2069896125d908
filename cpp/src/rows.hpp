// Gradients that have values for some rows of a param, and none for the others.
//
// A row is what the first axis of a param counts. Values that one row is given several times are summed first: leaves
// of 32 of them, each added up in their order, then the leaves in theirs, in the type that the step computes in. So a
// sum depends on nothing but the gradient.
#pragma once

#include "step.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace adaptk::detail {

enum class SparseMode : std::uint8_t {
    lazy,      // rows without a gradient stay as they are, and so do their states
    dense,     // as a gradient that is 0 there
    catch_up,  // as lazy, but a row takes first the steps that it has missed: see IdleSteps in rule.hpp
};
inline constexpr const char* sparse_mode_names[] = {"lazy", "dense", "catch_up"};

// Occurrences whose values are summed before the next ones are.
inline constexpr std::size_t row_leaf = 32;

// Integers in a row.
struct RowIndex {
    const void* data = nullptr;
    bool wide = true;  // 64 bits, else 32
    std::int64_t count = 0;
    std::int64_t at(std::int64_t i) const {
        return wide ? static_cast<const std::int64_t*>(data)[i] : static_cast<const std::int32_t*>(data)[i];
    }
    std::size_t bytes() const { return std::size_t(count) * (wide ? 8 : 4); }
};

// What a step knows of a tensor whose gradient is of rows, or whose rows may have missed steps.
class RowUpdate {
  public:
    ADAPTK_INTERNAL_API RowUpdate();
    ADAPTK_INTERNAL_API ~RowUpdate();
    RowUpdate(const RowUpdate&) = delete;
    RowUpdate& operator=(const RowUpdate&) = delete;

    SparseMode mode = SparseMode::lazy;
    // catch_up: of each row, how many steps it has taken or caught up with.
    std::int64_t* last_step = nullptr;
    // The gradient is an ordinary one, buffer 1: all rows catch up first.
    bool whole = false;

    // The gradient of a param of so many rows; `values` has a row for each index, in C order, in a plain format. The
    // order of the indices is free. Returns the place of an index that is not in [0, rows), if there is one. Throws
    // std::bad_alloc.
    ADAPTK_INTERNAL_API std::optional<std::int64_t> assign(const RowIndex& index, const Slot& values, std::int64_t rows,
                                                           std::int64_t row_size);
    // Without a gradient.
    void assign(std::int64_t rows, std::int64_t row_size) {
        rows_ = rows;
        row_size_ = row_size;
    }

    std::int64_t rows() const { return rows_; }
    std::int64_t row_size() const { return row_size_; }
    const RowIndex& index() const { return index_; }
    const Slot& values() const { return values_; }
    std::size_t values_bytes() const { return storage_bytes(values_.format, index_.count * row_size_); }

    // The rows that have values, from the lowest on.
    std::size_t distinct() const { return distinct_; }
    std::int64_t row(std::size_t i) const { return std::int64_t(keys_[start_[i]] >> place_bits_); }
    // Their occurrences: numbers first(i) ... first(i + 1) - 1.
    std::size_t first(std::size_t i) const { return start_[i]; }
    std::size_t occurrences() const { return occurrences_; }
    // Where the values of an occurrence are.
    std::int64_t place(std::size_t occurrence) const {
        return std::int64_t(keys_[occurrence] & ((std::uint64_t{1} << place_bits_) - 1));
    }
    // Of each occurrence, from the lowest row on: (row << place_bits()) | place().
    std::span<const std::uint64_t> keys() const { return {keys_.data(), occurrences_}; }
    unsigned place_bits() const { return place_bits_; }
    // The number of the first row with values that is not below this one.
    std::size_t lower_bound(std::int64_t row) const;

  private:
    RowIndex index_;
    Slot values_;
    std::int64_t rows_ = 0, row_size_ = 0;
    unsigned place_bits_ = 0;
    std::size_t occurrences_ = 0, distinct_ = 0;
    // With room for more, perhaps.
    std::vector<std::uint64_t> keys_, other_;  // (row << place_bits_) | place, sorted
    std::vector<std::size_t> start_;
    std::vector<std::uint32_t> counts_;

    template <class I> std::optional<std::int64_t> sort(const I* indices);
    template <unsigned Passes, class I> std::optional<std::int64_t> sort_in(const I* indices, unsigned bits);
};

// Elements first ... first + n - 1 of the gradient, with zeros in the rows that have no values. T: what the step
// computes in.
template <class T>
void gradient_of_rows(const KernelTable& k, const RowUpdate& rows, std::int64_t first, std::size_t n, T* out);
// Whether some of them have values.
bool has_values(const RowUpdate& rows, std::int64_t first, std::int64_t n);

// What a step runs on rows.
struct RowKernel {
    StepKernel kernel;
    const void* coefficients;
    std::uint64_t key;  // of stochastic rounding
    std::size_t buffers;
    const Segment& segment;
    const RowWiseKernels* row_wise;  // of rules that keep one number for each row, else null
};

// A step of the rows that have values.
void run_rows(const KernelTable& k, const RowKernel& kernel, const ParamUpdate& t);
// A step of all rows, by a rule that keeps one number for each: with buffer 1 as the gradient, or, if it is null, with
// one that is 0 in the rows without values.
void run_all_rows(const KernelTable& k, const RowKernel& kernel, const ParamUpdate& t);
// All rows catch up with so many steps.
void catch_up_rows(const KernelTable& k, const Segment& segment, const ParamUpdate& t, std::int64_t steps);
// The same, for callers outside of a step.
ADAPTK_INTERNAL_API void catch_up_rows(const Segment& segment, const ParamUpdate& t, std::int64_t steps);

// What steps are compared with in benchmarks: the same rows, in order, through the kernel that writes so many streams;
// and as many values, in the order in which they lie. The tensor is float32 throughout, and so are the values, which
// are not fewer than the rows.
ADAPTK_INTERNAL_API void run_row_probe(const ParamUpdate& t, std::size_t written, std::span<const std::int64_t> rows,
                                       std::int64_t row_size, std::span<const float> values);

// Why rows of a tensor cannot be stepped one by one, to be read behind the name of the buffer, whose number `buffer`
// gets; null if they can.
ADAPTK_INTERNAL_API const char* why_no_rows(const ParamUpdate& t, std::size_t buffers, std::int64_t row_size,
                                            std::size_t& buffer);
// Why a rule does not take gradients of rows at all, to be read behind its name; null if it does.
ADAPTK_INTERNAL_API const char* why_never_rows(const RuleInfo& rule);
// Why a step on a CUDA device cannot take a gradient of rows, to be read behind the name of the buffer, whose number
// `buffer` gets; null if it can.
ADAPTK_INTERNAL_API const char* why_no_rows_on_cuda(const ParamUpdate& t, std::size_t buffers, SparseMode mode,
                                                    std::size_t& buffer);
// Why rows cannot catch up by this rule with these values; null if they can.
ADAPTK_INTERNAL_API const char* why_no_catch_up(const RuleInfo& rule, const HyperValues& hyper);

}  // namespace adaptk::detail
