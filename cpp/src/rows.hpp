// Gradients that have values for some rows of a param only.
//
// The first axis of a param counts its rows. If a row has several values, they are summed first, in the compute type:
// leaves of 32 of them in their order, then the leaves in theirs. So a sum depends on the gradient alone.
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
    dense,     // the gradient of these rows is 0
    catch_up,  // as lazy, but a row first takes the steps that it has missed: see IdleSteps in rule.hpp
};
inline constexpr const char* sparse_mode_names[] = {"lazy", "dense", "catch_up"};

// The number of occurrences in a leaf.
inline constexpr std::size_t row_leaf = 32;

// An array of integers.
struct RowIndex {
    const void* data = nullptr;
    bool wide = true;  // 64 bits, else 32
    std::int64_t count = 0;
    std::int64_t at(std::int64_t i) const {
        return wide ? static_cast<const std::int64_t*>(data)[i] : static_cast<const std::int32_t*>(data)[i];
    }
    std::size_t bytes() const { return std::size_t(count) * (wide ? 8 : 4); }
};

// What a step knows about a tensor whose gradient has values for some rows, or whose rows may have missed steps.
class RowUpdate {
  public:
    ADAPTK_INTERNAL_API RowUpdate();
    ADAPTK_INTERNAL_API ~RowUpdate();
    RowUpdate(const RowUpdate&) = delete;
    RowUpdate& operator=(const RowUpdate&) = delete;

    SparseMode mode = SparseMode::lazy;
    // catch_up: the number of steps that each row has taken or caught up with.
    std::int64_t* last_step = nullptr;
    // The gradient is a dense one, buffer 1: all rows catch up first.
    bool whole = false;

    // Sets the gradient of a param with `rows` rows. `values` has a row for each index, in C order, in a format that
    // decodes without a second buffer. Indices may be in any order. Returns the position of an index that is not in [0,
    // rows), if there is one. Throws std::bad_alloc.
    ADAPTK_INTERNAL_API std::optional<std::int64_t> assign(const RowIndex& index, const Slot& values, std::int64_t rows,
                                                           std::int64_t row_size);
    // The same without a gradient.
    void assign(std::int64_t rows, std::int64_t row_size) {
        rows_ = rows;
        row_size_ = row_size;
    }

    std::int64_t rows() const { return rows_; }
    std::int64_t row_size() const { return row_size_; }
    const RowIndex& index() const { return index_; }
    const Slot& values() const { return values_; }
    std::size_t values_bytes() const { return storage_bytes(values_.format, index_.count * row_size_); }

    // The rows that have values, in ascending order.
    std::size_t distinct() const { return distinct_; }
    std::int64_t row(std::size_t i) const { return std::int64_t(keys_[start_[i]] >> place_bits_); }
    // Their occurrences: numbers first(i) ... first(i + 1) - 1.
    std::size_t first(std::size_t i) const { return start_[i]; }
    std::size_t occurrences() const { return occurrences_; }
    // The position of an occurrence's values.
    std::int64_t place(std::size_t occurrence) const {
        return std::int64_t(keys_[occurrence] & ((std::uint64_t{1} << place_bits_) - 1));
    }
    // For each occurrence, in ascending order of rows: (row << place_bits()) | place().
    std::span<const std::uint64_t> keys() const { return {keys_.data(), occurrences_}; }
    unsigned place_bits() const { return place_bits_; }
    // The number of the first row with values that is not less than this one.
    std::size_t lower_bound(std::int64_t row) const;

  private:
    RowIndex index_;
    Slot values_;
    std::int64_t rows_ = 0, row_size_ = 0;
    unsigned place_bits_ = 0;
    std::size_t occurrences_ = 0, distinct_ = 0;
    // These may be larger than needed.
    std::vector<std::uint64_t> keys_, other_;  // (row << place_bits_) | place, sorted
    std::vector<std::size_t> start_;
    std::vector<std::uint32_t> counts_;

    template <class I> std::optional<std::int64_t> sort(const I* indices);
    template <unsigned Passes, class I> std::optional<std::int64_t> sort_in(const I* indices, unsigned bits);
};

// Elements first ... first + n - 1 of the gradient, with zeros in the rows that have no values. T: the compute type.
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
// A step of all rows, by a rule that keeps one number for each. The gradient is buffer 1 or, if that is null, 0 in the
// rows without values.
void run_all_rows(const KernelTable& k, const RowKernel& kernel, const ParamUpdate& t);
// All rows catch up with `steps` steps.
void catch_up_rows(const KernelTable& k, const Segment& segment, const ParamUpdate& t, std::int64_t steps);
// The same, for callers outside of a step.
ADAPTK_INTERNAL_API void catch_up_rows(const Segment& segment, const ParamUpdate& t, std::int64_t steps);

// Benchmarks compare steps with this: the kernel that writes `written` streams, over the same rows in order, and over
// as many values in the order of memory. The tensor and the values are float32, and there are at least as many values
// as rows.
ADAPTK_INTERNAL_API void run_row_probe(const ParamUpdate& t, std::size_t written, std::span<const std::int64_t> rows,
                                       std::int64_t row_size, std::span<const float> values);

// Why rows of a tensor cannot be stepped one by one, as the end of a message that begins with a buffer's name; sets
// `buffer` to that buffer. Null if they can.
ADAPTK_INTERNAL_API const char* why_no_rows(const ParamUpdate& t, std::size_t buffers, std::int64_t row_size,
                                            std::size_t& buffer);
// Why a rule never takes such gradients, as the end of a message that begins with its name. Null if it does.
ADAPTK_INTERNAL_API const char* why_never_rows(const RuleInfo& rule);
// Why rows cannot catch up by this rule with these values; null if they can.
ADAPTK_INTERNAL_API const char* why_no_catch_up(const RuleInfo& rule, const HyperValues& hyper);

}  // namespace adaptk::detail
