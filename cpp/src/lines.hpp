// Numbers for each row and each column of tensors (program.hpp): where they are during a step, how they become operands
// beside elements, and how elements are reduced to them.
//
// A row is a scope of reduce.hpp: leaves of 8192 elements, and so on. A column is summed in blocks of rows, one row
// after the other, and then the blocks pairwise, level by level; an odd last one is passed on to the next level. A
// matrix has at most 64 blocks. All sums are float64. So they depend on a tensor's shape, and not on threads or
// instruction sets.
#pragma once

#include "leaves.hpp"
#include "rule_program.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

namespace adaptk::detail {

// The numbers of one tensor: the inputs of a program's lines, then the outputs of its current stage.
class RowColumnValues {
  public:
    RowColumnValues() = default;
    RowColumnValues(const Program& program, const ParamUpdate& t) : wide_(t.compute() == 1) {
        const std::size_t line[] = {std::size_t(t.grid.all_rows()), std::size_t(t.grid.all_columns())};
        for (const Program::Axis a : {Program::row, Program::column}) {
            const std::size_t slots = program.inputs(a).count() + program.max_outputs(a);
            if (slots == 0) continue;
            count_[a] = line[a];
            lines_of_slot_[a] = (count_[a] * element() + sizeof(CacheLine) - 1) / sizeof(CacheLine);
            memory_[a].resize(slots * lines_of_slot_[a]);
        }
    }
    std::size_t count(Program::Axis a) const { return count_[a]; }
    std::size_t bytes(Program::Axis a) const { return count_[a] * element(); }
    void* at(Program::Axis a, std::size_t slot) { return memory_[a].data() + slot * lines_of_slot_[a]; }
    const void* at(Program::Axis a, std::size_t slot) const { return memory_[a].data() + slot * lines_of_slot_[a]; }

  private:
    bool wide_ = false;
    std::size_t count_[2] = {}, lines_of_slot_[2] = {};
    std::vector<CacheLine> memory_[2];

    std::size_t element() const { return wide_ ? sizeof(double) : sizeof(float); }
};

// A program's buffers that hold, for each element, the number of its row or its column.
struct Operands {
    struct Line {
        const void* numbers;
        bool of_rows;
    };
    const Grid* grid = nullptr;
    std::size_t count = 0;
    Line line[max_operands];

    // For n <= room elements from `first` on: sets work[i] to the numbers of line i.
    template <class T, std::size_t room>
    void put(std::int64_t first, std::size_t n, T (*scratch)[room], void** work) const {
        for (std::size_t i = 0; i < count; ++i) {
            const auto* const numbers = static_cast<const T*>(line[i].numbers);
            work[i] =
                line[i].of_rows ? put_rows(numbers, first, n, scratch[i]) : put_columns(numbers, first, n, scratch[i]);
        }
    }

  private:
    template <class T> T* put_rows(const T* numbers, std::int64_t first, std::size_t n, T* out) const {
        std::int64_t row = first / grid->columns, column = first % grid->columns;
        for (std::size_t done = 0; done < n; ++row, column = 0) {
            const auto m = std::size_t(std::min(std::int64_t(n - done), grid->columns - column));
            std::fill_n(out + done, m, numbers[row]);
            done += m;
        }
        return out;
    }
    template <class T> T* put_columns(const T* numbers, std::int64_t first, std::size_t n, T* out) const {
        std::int64_t row = first / grid->columns, column = first % grid->columns;
        // The const_cast is safe: kernels write to results only.
        if (column + std::int64_t(n) <= grid->columns)
            return const_cast<T*>(numbers) + row / grid->rows * grid->columns + column;
        for (std::size_t done = 0; done < n; ++row, column = 0) {
            const auto m = std::size_t(std::min(std::int64_t(n - done), grid->columns - column));
            std::copy_n(numbers + row / grid->rows * grid->columns + column, m, out + done);
            done += m;
        }
        return out;
    }
};

constexpr Term term_of(Reduce what) {
    return what == Reduce::norm ? Term::square : what == Reduce::largest ? Term::largest : Term::value;
}
inline AddTerms adder(const KernelTable& k, Reduce what, bool wide) {
    return k.reduction[std::size_t(term_of(what))].add[wide ? 1 : 0];
}
constexpr double start_of(Reduce what) { return what == Reduce::largest ? Maximum::none : Addition::none; }
// Calls run with the operation that combines the numbers of a reduction.
template <class Run> auto with_combination(Reduce what, const Run& run) {
    return what == Reduce::largest ? run(Maximum{}) : run(Addition{});
}

// The result of a reduction of n numbers that add up to `sum`.
inline double reduced(Reduce what, double sum, std::int64_t n) {
    switch (what) {
    case Reduce::norm: return std::sqrt(sum);
    case Reduce::mean: return sum / double(n);
    case Reduce::largest: return sum != sum ? std::numeric_limits<double>::quiet_NaN() : sum + 0.0;
    default: return sum;
    }
}

// Reduces numbers in the order of a scope in reduce.hpp.
template <class T> double reduced_in_order(const KernelTable& k, Reduce what, const T* x, std::int64_t n) {
    const AddTerms add = adder(k, what, sizeof(T) == 8);
    return with_combination(what, [&](auto combine) {
        using Combine = decltype(combine);
        std::vector<double> level;
        for (std::int64_t at = 0; at < n; at += std::int64_t(reduction_leaf)) {
            alignas(cache_line) double sums[reduction_width];
            std::fill_n(sums, reduction_width, Combine::none);
            add(x + at, std::size_t(std::min(n - at, std::int64_t(reduction_leaf))), 0, 1.0, sums);
            level.push_back(Leaves::fold<Combine>(sums));
        }
        return reduced(what, Leaves::pairwise<Combine>(level), n);
    });
}

// One pass's reductions over rows and columns, of all tensors.
class LineSums {
  public:
    // lines: of each tensor.
    LineSums(const KernelTable& k, const Program& program, const Program::Pass& pass,
             std::span<const ParamUpdate> tensors, std::span<RowColumnValues* const> lines)
        : k_(k), tensors_(tensors) {
        for (std::size_t i = 0; i < pass.reductions.size(); ++i) {
            const ReductionNode& r = program.reductions[pass.reductions[i]];
            const bool of_rows = r.over == Over::rows;
            const Program::Inputs& in = program.inputs(of_rows ? Program::row : Program::column);
            const auto at = std::find(in.reductions.begin(), in.reductions.end(), pass.reductions[i]);
            sums_.push_back(
                {r.what, of_rows, pass.term_of[i], in.states.size() + std::size_t(at - in.reductions.begin())});
        }
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            total_ += tensors[i].size;
            of_.emplace_back(tensors[i], *lines[i], sums_);
        }
    }

    // make_evaluate() returns a thread's evaluate(tensor, first element, elements, take), which calls take(terms, first
    // element, elements) for the parts, in order.
    template <class MakeEvaluate> void run(const MakeEvaluate& make_evaluate) {
        in_parallel(threads_for(total_), [&](int thread, int threads) {
            const auto begin = std::int64_t(double(total_) * thread / threads);
            const auto end = thread + 1 == threads ? total_ : std::int64_t(double(total_) * (thread + 1) / threads);
            auto&& evaluate = make_evaluate();
            std::int64_t offset = 0;
            for (std::size_t i = 0; i < tensors_.size(); offset += tensors_[i++].size) {
                if (tensors_[i].size == 0 || offset >= end || offset + tensors_[i].size <= begin) continue;
                const OfTensor& t = of_[i];
                for (std::int64_t unit = 0; unit < t.units; ++unit) {
                    const Unit u = t.unit(unit);
                    if (offset + u.begin < begin || offset + u.begin >= end) continue;
                    if (tensors_[i].compute() == 1) {
                        run_unit<double>(i, u, evaluate);
                    } else {
                        run_unit<float>(i, u, evaluate);
                    }
                }
            }
        });
        for (std::size_t i = 0; i < tensors_.size(); ++i)
            tensors_[i].compute() == 1 ? finish<double>(of_[i]) : finish<float>(of_[i]);
    }

  private:
    struct Sum {
        Reduce what;
        bool of_rows;
        std::size_t term, slot;
    };
    // Rows of all matrices, and columns, that one thread processes.
    struct Unit {
        std::int64_t first_row, last_row, first_column, last_column;
        std::int64_t begin;  // elements before it
    };
    static constexpr std::int64_t elements_of_small_unit = 1 << 15;
    static constexpr std::int64_t short_row = 32;

    struct OfTensor {
        Grid grid;
        RowColumnValues* lines;
        std::int64_t matrices_of_unit = 1, rows_of_block = 1, blocks = 1, width = 1, widths = 1, units = 0, leaves = 1;
        std::vector<std::vector<double>> partial;  // for each sum: those of leaves of rows, or of blocks of columns

        OfTensor(const ParamUpdate& t, RowColumnValues& of, std::span<const Sum> sums) : grid(t.grid), lines(&of) {
            if (t.size == 0) return;
            const std::int64_t rows = grid.rows, columns = grid.columns;
            width = std::min(columns, widest_column_block);
            widths = (columns + width - 1) / width;
            rows_of_block = rows_of_column_block(rows, columns);
            blocks = (rows + rows_of_block - 1) / rows_of_block;
            if (blocks == 1 && widths == 1)
                matrices_of_unit =
                    std::clamp<std::int64_t>(elements_of_small_unit / (rows * columns), 1, grid.matrices);
            units = (grid.matrices + matrices_of_unit - 1) / matrices_of_unit * blocks * widths;
            leaves = leaves_of(columns);
            for (const Sum& s : sums) {
                std::size_t n = 0;
                if (s.of_rows && leaves > 1) n = std::size_t(grid.all_rows() * leaves);
                if (!s.of_rows && rows > 1) n = std::size_t(blocks * grid.all_columns());
                partial.emplace_back(n, start_of(s.what));
            }
        }
        Unit unit(std::int64_t u) const {
            if (matrices_of_unit > 1) {
                const std::int64_t first = u * matrices_of_unit * grid.rows;
                return {first, std::min(first + matrices_of_unit * grid.rows, grid.all_rows()), 0, grid.columns,
                        first * grid.columns};
            }
            const std::int64_t w = u % widths, b = u / widths % blocks, first = u / widths / blocks * grid.rows;
            const std::int64_t from = first + b * rows_of_block, to = std::min(from + rows_of_block, first + grid.rows);
            return {from, to, w * width, std::min((w + 1) * width, grid.columns),
                    from * grid.columns + w * width * (to - from)};
        }
    };

    const KernelTable& k_;
    std::span<const ParamUpdate> tensors_;
    std::vector<Sum> sums_;
    std::vector<OfTensor> of_;
    std::int64_t total_ = 0;

    template <class T, class Evaluate> void run_unit(std::size_t tensor, const Unit& u, Evaluate& evaluate) {
        OfTensor& t = of_[tensor];
        const std::int64_t columns = t.grid.columns;
        alignas(cache_line) double sums[max_reductions][reduction_width];
        for (std::size_t s = 0; s < sums_.size(); ++s) std::fill_n(sums[s], reduction_width, start_of(sums_[s].what));
        const auto take = [&](const T* const* terms, std::int64_t first, std::int64_t n) {
            std::int64_t row = first / columns, column = first % columns;
            for (std::int64_t done = 0; done < n;) {
                // To the end of the row or of its leaf.
                const std::int64_t leaf_end =
                    (column / std::int64_t(reduction_leaf) + 1) * std::int64_t(reduction_leaf);
                const std::int64_t m = std::min({n - done, columns - column, leaf_end - column});
                for (std::size_t s = 0; s < sums_.size(); ++s) {
                    const T* const x = terms[sums_[s].term] + done;
                    if (sums_[s].of_rows) {
                        add_to_row<T>(t, s, x, row, column, m, sums[s]);
                    } else {
                        add_to_columns<T>(t, s, x, row, column, m);
                    }
                }
                done += m;
                column += m;
                if (column == columns) {
                    column = 0;
                    ++row;
                }
            }
        };
        if (u.first_column == 0 && u.last_column == columns) {
            evaluate.template run<T>(tensor, u.first_row * columns, (u.last_row - u.first_row) * columns, take);
            return;
        }
        for (std::int64_t row = u.first_row; row < u.last_row; ++row)
            evaluate.template run<T>(tensor, row * columns + u.first_column, u.last_column - u.first_column, take);
    }

    // For so few elements that a call would take longer.
    template <class T> static void add_few(Reduce what, const T* x, std::int64_t n, double* sums) {
        for (std::int64_t i = 0; i < n; ++i) {
            const auto v = double(x[i]);
            sums[i] = what == Reduce::largest ? larger(sums[i], v) : sums[i] + (what == Reduce::norm ? v * v : v);
        }
    }

    // The accumulators are reset after each leaf.
    template <class T>
    void add_to_row(OfTensor& t, std::size_t s, const T* x, std::int64_t row, std::int64_t column, std::int64_t n,
                    double* sums) {
        const std::int64_t columns = t.grid.columns;
        const Reduce what = sums_[s].what;
        if (columns <= short_row) {
            add_few(what, x, n, sums + column);
        } else {
            adder(k_, what, sizeof(T) == 8)(x, std::size_t(n), std::size_t(column) % reduction_width, 1.0, sums);
        }
        column += n;
        if (column < columns && column % std::int64_t(reduction_leaf) != 0) return;
        const std::size_t used = std::bit_ceil(std::size_t(std::min(columns, std::int64_t(reduction_width))));
        const double sum =
            with_combination(what, [&](auto combine) { return Leaves::fold<decltype(combine)>(sums, used); });
        std::fill_n(sums, used, start_of(what));
        if (t.leaves > 1) {
            t.partial[s][std::size_t(row * t.leaves + (column - 1) / std::int64_t(reduction_leaf))] = sum;
        } else {
            static_cast<T*>(t.lines->at(Program::row, sums_[s].slot))[row] = T(reduced(sums_[s].what, sum, columns));
        }
    }

    template <class T>
    void add_to_columns(OfTensor& t, std::size_t s, const T* x, std::int64_t row, std::int64_t column, std::int64_t n) {
        const std::int64_t matrix = row / t.grid.rows, at = matrix * t.grid.columns + column;
        const Reduce what = sums_[s].what;
        if (t.grid.rows == 1) {
            T* const out = static_cast<T*>(t.lines->at(Program::column, sums_[s].slot)) + at;
            for (std::int64_t i = 0; i < n; ++i) out[i] = what == Reduce::norm ? abs(x[i]) : x[i];
            return;
        }
        const std::int64_t block = (row - matrix * t.grid.rows) / t.rows_of_block;
        double* const sums = t.partial[s].data() + block * t.grid.all_columns() + at;
        if (n <= short_row) {
            add_few(what, x, n, sums);
            return;
        }
        constexpr auto width = std::int64_t(reduction_width);
        for (std::int64_t i = 0; i < n; i += width)
            adder(k_, what, sizeof(T) == 8)(x + i, std::size_t(std::min(n - i, width)), 0, 1.0, sums + i);
    }

    template <class T> void finish(OfTensor& t) {
        if (t.units == 0) return;
        for (std::size_t s = 0; s < sums_.size(); ++s) {
            if (t.partial[s].empty()) continue;
            const Sum& sum = sums_[s];
            double* const partial = t.partial[s].data();
            if (sum.of_rows) {
                T* const out = static_cast<T*>(t.lines->at(Program::row, sum.slot));
                std::vector<double> level;
                for (std::int64_t row = 0; row < t.grid.all_rows(); ++row) {
                    level.assign(partial + row * t.leaves, partial + (row + 1) * t.leaves);
                    const double all = with_combination(
                        sum.what, [&](auto combine) { return Leaves::pairwise<decltype(combine)>(level); });
                    out[row] = T(reduced(sum.what, all, t.grid.columns));
                }
                continue;
            }
            T* const out = static_cast<T*>(t.lines->at(Program::column, sum.slot));
            const std::int64_t columns = t.grid.all_columns();
            in_parallel(threads_for(columns * t.blocks), [&](int thread, int threads) {
                const std::int64_t begin = columns * thread / threads, end = columns * (thread + 1) / threads;
                with_combination(sum.what, [&](auto combine) {
                    for (std::int64_t n = t.blocks; n > 1; n = (n + 1) / 2) {
                        for (std::int64_t b = 0; b < n / 2; ++b)
                            for (std::int64_t c = begin; c < end; ++c)
                                partial[b * columns + c] =
                                    combine.of(partial[2 * b * columns + c], partial[(2 * b + 1) * columns + c]);
                        if (n % 2 != 0)
                            std::copy(partial + (n - 1) * columns + begin, partial + (n - 1) * columns + end,
                                      partial + n / 2 * columns + begin);
                    }
                });
                for (std::int64_t c = begin; c < end; ++c) out[c] = T(reduced(sum.what, partial[c], t.grid.rows));
            });
        }
    }
};

}  // namespace adaptk::detail
