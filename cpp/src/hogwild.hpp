// Training of linear models over sparse rows and of matrix factorisations, one example at a time, by threads that
// update the weights without locks (F. Niu, B. Recht, C. Re, S. J. Wright, Hogwild!: a lock-free approach to
// parallelizing stochastic gradient descent, NIPS 2011). Shared weights are read and written by relaxed atomic loads
// and stores, so there is no data race; an update may overwrite another one.
#pragma once

#include "export.hpp"

#include <cstdint>

namespace adaptk::detail {

// deterministic: the examples in one order for any number of threads. locked: one lock for all weights, so that every
// gradient is that of the weights that it changes.
enum class TrainingMode { hogwild, locked, deterministic };

enum class LinearLoss { log_loss, hinge, squared_hinge, squared_error, huber };
enum class SparseRule { sgd, adagrad, adam, ftrl };
// constant: eta. invscaling: eta / t^power_t. optimal: 1 / (scale (t0 + t)).
enum class StepSchedule { constant, invscaling, optimal };

// Rows of a matrix in the caller's memory, of float or double: compressed, or dense in C order.
struct Rows {
    const void* data = nullptr;
    // Dense: 0 ... columns - 1, for all rows. Compressed: those of each row, in increasing order.
    const void* indices = nullptr;
    // Where each row begins, and the last one ends; null if dense.
    const void* starts = nullptr;
    std::int64_t rows = 0, columns = 0;
    bool doubles = false, wide_indices = false, wide_starts = false;
};

struct RowsReport {
    // The first row with each fault, or -1.
    std::int64_t decreasing = -1;    // ends before it begins, or beyond the stored elements
    std::int64_t out_of_range = -1;  // an index
    std::int64_t not_finite = -1;
    std::int64_t not_canonical = -1;  // indices that do not increase
    std::int64_t stored = 0;
    std::int64_t longest = 0;
};

// Reads everything once. `stored`: the number of stored elements. Adds to counts[u] the number of rows with feature u.
ADAPTK_INTERNAL_API RowsReport check_rows(const Rows& rows, std::int64_t stored, std::int64_t* counts);

// The number of fields of a weight, which are adjacent: sgd w; adagrad w and the sum of squares; adam w, both moments
// and padding; ftrl the sums z and of squares.
ADAPTK_INTERNAL_API int fields_of(SparseRule rule);

struct LinearTask {
    Rows rows;
    // The examples are rows subset[0] ... [examples - 1], or the first ones if it is null.
    const std::int64_t* subset = nullptr;
    std::int64_t examples = 0;
    // By row: a number, or a class if classes >= 1. Problem k then separates class k from the others or, if there is
    // one problem, class 1 from class 0.
    const double* targets = nullptr;
    std::int64_t classes = 0;
    const double* row_weights = nullptr;    // by row, or null
    const double* class_weights = nullptr;  // two for each problem, of the others and of the class, or null
    // For each problem, columns + 1 weights with their fields, in the type of the rows. The last weight is the
    // intercept.
    void* weights = nullptr;
    // By feature: the number of examples divided by that of examples with the feature; null if no penalty needs it.
    const double* rarity = nullptr;
    // By feature: how many of counted_rows rows have it; null if all threads write all weights directly.
    const std::int64_t* counts = nullptr;
    std::int64_t counted_rows = 0;
    std::int64_t longest = 0;  // of the report
    std::int64_t stored = 0;
};

struct LinearOptions {
    LinearLoss loss = LinearLoss::log_loss;
    SparseRule rule = SparseRule::sgd;
    StepSchedule schedule = StepSchedule::constant;
    TrainingMode mode = TrainingMode::hogwild;
    double epsilon = 0.1;  // of huber
    double eta = 0.1, power_t = 0.5, optimal_scale = 1, optimal_t0 = 1;
    double l1 = 0, l2 = 0;
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;  // eps also of adagrad; beta1 also of ftrl, its beta
    bool intercept = true;
    bool shuffle = true;
    int threads = 1;
    // A thread adds its updates of a frequent weight to the shared one after about this many updates. 1: it writes the
    // weight directly; 0: chosen from the number of threads.
    int publish_every = 0;
    std::uint64_t seed = 0;
    std::int64_t epoch = 0;
    std::int64_t steps_before = 0;  // examples seen before
};

// Called from time to time on the calling thread; false ends the training.
struct StopCheck {
    bool (*call)(void* context) = nullptr;
    void* context = nullptr;
};

// One pass over the examples. losses[k]: the sum of problem k's losses, each before its example's update. Returns the
// number of threads that worked concurrently, or 0 if `stop_check` ended it.
ADAPTK_INTERNAL_API int train_linear(const LinearTask& task, const LinearOptions& options, double* losses,
                                     StopCheck stop_check);

// out[i * outputs + k] = intercept k + row i times coefficients k, of `outputs` x columns.
ADAPTK_INTERNAL_API void linear_scores(const Rows& rows, const double* coefficients, const double* intercepts,
                                       std::int64_t outputs, double* out, int threads);

// Values of a matrix at (rows[i], columns[i]), as products of factors and sums of biases.
struct FactorTask {
    const void* rows = nullptr;
    const void* columns = nullptr;
    const void* values = nullptr;
    std::int64_t examples = 0;
    bool wide_indices = false, doubles = false;
    std::int64_t rank = 0;
    // The distance of one row's factors from the next one's is factor_stride(rank) elements. The bias follows the
    // factors.
    void* row_factors = nullptr;
    void* column_factors = nullptr;
    void* row_squares = nullptr;  // adagrad's sums of squares
    void* column_squares = nullptr;
    // How many rows and columns the factors have; 0: all threads write all factors directly.
    std::int64_t row_count = 0, column_count = 0;
    double mean = 0;
    // Deterministic: the examples in the order of factor_blocks(); null in the other modes.
    const std::int64_t* order = nullptr;
    const std::int64_t* block_starts = nullptr;
};

struct FactorOptions {
    SparseRule rule = SparseRule::sgd;
    TrainingMode mode = TrainingMode::hogwild;
    double eta = 0.01, alpha = 0, eps = 1e-10;
    bool bias = true;
    bool shuffle = true;
    int threads = 1;
    std::uint64_t seed = 0;
    std::int64_t epoch = 0;
};

ADAPTK_INTERNAL_API std::int64_t factor_stride(std::int64_t rank);

// Rows and columns are in this many groups each, by remainder: blocks without a common row or column are independent.
inline constexpr std::int64_t factor_groups = 16;

// Sorts the examples by block; `starts` has factor_groups^2 + 1 elements.
ADAPTK_INTERNAL_API void factor_blocks(const FactorTask& task, std::int64_t* order, std::int64_t* starts);

// One pass; `loss` gets the sum of squared errors, each before its example's update. Returns as train_linear.
ADAPTK_INTERNAL_API int train_factors(const FactorTask& task, const FactorOptions& options, double* loss,
                                      StopCheck stop_check);

}  // namespace adaptk::detail
