// Numbers for each row, column or matrix of a tensor, beside its elements: a rule's code asks for them by its states
// and reductions (tables.hpp), and computes what it makes of them for each element anew. That is arithmetic alone,
// where results of their own would be memory and a kernel for each pass. The bits are the CPU's, which keeps such
// results.
#pragma once

#include "device.hpp"
#include "stored.hpp"
#include "tables.hpp"

#include <cstdint>

namespace adaptk::cuda {

template <class R> inline constexpr bool has_lines = requires { R::has_lines; };

// What belongs to an element, a row or a column. Rows and columns of all matrices are counted.
template <class T> struct LineNumbers {
    const LineTensor& tensor;
    std::int64_t row, column, matrix;

    ADAPTK_DEVICE T row_number(int i) const { return static_cast<const T*>(tensor.line[i])[row]; }
    ADAPTK_DEVICE T column_number(int i) const { return static_cast<const T*>(tensor.line[i])[column]; }
    ADAPTK_DEVICE T matrix_number(int i) const { return static_cast<const T*>(tensor.line[i])[matrix]; }
    ADAPTK_DEVICE void put_row(int i, T x) const { static_cast<T*>(tensor.line[i])[row] = x; }
    ADAPTK_DEVICE void put_column(int i, T x) const { static_cast<T*>(tensor.line[i])[column] = x; }
};

// Of a row or a column.
template <class T> ADAPTK_DEVICE LineNumbers<T> numbers_of_row(const LineTensor& t, std::int64_t row) {
    return {t, row, 0, row / t.rows};
}
template <class T> ADAPTK_DEVICE LineNumbers<T> numbers_of_column(const LineTensor& t, std::int64_t column) {
    return {t, 0, column, column / t.columns};
}

// How often n goes into x, which is less than n + 256: without a division of 64 bits.
ADAPTK_DEVICE std::int64_t times(std::int64_t x, std::int64_t n) {
    return n >= tile ? std::int64_t(x >= n) : std::int64_t(std::uint32_t(x) / std::uint32_t(n));
}

// Which elements of a tile a lane has: as load_part() and load_direct() take them, or as element_at() says.
enum class Layout { part, direct, stored };

// Of a lane's elements of a tile; behind a tensor's end those of its last one.
template <class T> class LinesOfTile {
  public:
    ADAPTK_DEVICE LinesOfTile(const LineTensor& t, std::int64_t first, int lane, int left, Layout layout)
        : tensor_(t), first_row_(first / t.columns), first_column_(first % t.columns), matrix_(first_row_ / t.rows),
          row_in_matrix_(first_row_ % t.rows), lane_(lane), last_(left - 1), layout_(layout) {}

    ADAPTK_DEVICE LineNumbers<T> operator()(int i) const {
        constexpr int n = vector_size<T>;
        const int own = layout_ == Layout::part     ? lane_ + int(warp) * i
                        : layout_ == Layout::direct ? n * (lane_ + int(warp) * (i / n)) + i % n
                                                    : element_at<T>(lane_, i);
        const std::int64_t x = first_column_ + (own < last_ ? own : last_);
        const std::int64_t rows = times(x, tensor_.columns);
        const std::int64_t matrix = matrix_ + times(row_in_matrix_ + rows, tensor_.rows);
        return {tensor_, first_row_ + rows, matrix * tensor_.columns + x - rows * tensor_.columns, matrix};
    }

  private:
    const LineTensor& tensor_;
    std::int64_t first_row_, first_column_, matrix_, row_in_matrix_;
    int lane_, last_;
    Layout layout_;
};

// In its place for rules that know nothing of rows and columns.
struct NoLines {};
template <class R>
ADAPTK_DEVICE const LineTensor* lines_of([[maybe_unused]] const LineTensor* all,
                                         [[maybe_unused]] std::uint32_t tensor) {
    if constexpr (has_lines<R>) {
        return all + tensor;
    } else {
        return nullptr;
    }
}
template <class R, class T>
ADAPTK_DEVICE auto lines_of_tile([[maybe_unused]] const LineTensor* t, [[maybe_unused]] std::int64_t first,
                                 [[maybe_unused]] int lane, [[maybe_unused]] int left, [[maybe_unused]] Layout layout) {
    if constexpr (has_lines<R>) {
        return LinesOfTile<T>(*t, first, lane, left, layout);
    } else {
        return NoLines{};
    }
}

}  // namespace adaptk::cuda
