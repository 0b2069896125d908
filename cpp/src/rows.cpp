#include "rows.hpp"

#include "dispatch.hpp"
#include "parallel.hpp"

#include <bit>
#include <utility>

namespace adaptk::detail {
namespace {

// The memory of a thread's last update, which the next one reuses: new pages would cost as much as sorting some
// thousand indices.
struct KeptKeys {
    std::vector<std::uint64_t> keys, other;
    std::vector<std::size_t> start;
    std::vector<std::uint32_t> counts;
};
KeptKeys& kept_keys() {
    thread_local KeptKeys kept;
    return kept;
}
constexpr std::size_t max_kept = std::size_t{1} << 20;

// At least n elements with any values: setting them to zero each time would take a tenth of the time of sorting.
template <class T> T* room(std::vector<T>& v, std::size_t n) {
    if (v.size() < n) v.resize(n);
    return v.data();
}

// Negative indices become large.
template <class I> std::uint64_t row_of(I index) { return std::uint64_t(std::int64_t(index)); }

}  // namespace

RowUpdate::RowUpdate() {
    KeptKeys& kept = kept_keys();
    keys_.swap(kept.keys);
    other_.swap(kept.other);
    start_.swap(kept.start);
    counts_.swap(kept.counts);
}

RowUpdate::~RowUpdate() {
    KeptKeys& kept = kept_keys();
    if (keys_.size() > max_kept || keys_.size() <= kept.keys.size()) return;
    keys_.swap(kept.keys);
    other_.swap(kept.other);
    start_.swap(kept.start);
    counts_.swap(kept.counts);
}

std::optional<std::int64_t> RowUpdate::assign(const RowIndex& index, const Slot& values, std::int64_t rows,
                                              std::int64_t row_size) {
    index_ = index;
    values_ = values;
    rows_ = rows;
    row_size_ = row_size;
    occurrences_ = distinct_ = 0;
    const auto n = std::size_t(index.count);
    // A row and a position fit into 64 bits together, because both count what is in memory. If rows have no elements,
    // there may be any number of rows.
    place_bits_ = n > 1 ? unsigned(std::bit_width(n - 1)) : 0;
    const auto wrong = index.wide ? sort(static_cast<const std::int64_t*>(index.data))
                                  : sort(static_cast<const std::int32_t*>(index.data));
    if (wrong || row_size == 0 || n == 0) return wrong;
    // Without a branch, which would often be predicted wrongly.
    const std::uint64_t* const keys = keys_.data();
    std::size_t* const start = room(start_, n + 1);
    const unsigned place_bits = place_bits_;
    std::size_t distinct = 0;
    std::uint64_t before = ~std::uint64_t{0};
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t row = keys[i] >> place_bits;
        start[distinct] = i;
        distinct += row != before ? 1 : 0;
        before = row;
    }
    start[distinct] = n;
    distinct_ = distinct;
    occurrences_ = n;
    return {};
}

// Checks the indices, and makes the sorted keys unless rows have no elements. Only the bits of the row are sorted by:
// positions are in order at the start, and each pass is stable.
template <class I> std::optional<std::int64_t> RowUpdate::sort(const I* indices) {
    constexpr unsigned max_bits = 12;
    const auto n = std::size_t(index_.count);
    const bool makes_keys = row_size_ > 0;
    std::uint64_t* const keys = makes_keys ? room(keys_, n) : nullptr;
    if (!makes_keys || n < 64 || n > UINT32_MAX) {
        bool ascending = true;
        std::uint64_t before = 0;
        for (std::size_t i = 0; i < n; ++i) {
            const std::uint64_t row = row_of(indices[i]);
            if (row >= std::uint64_t(rows_)) return std::int64_t(i);
            if (!makes_keys) continue;
            ascending = ascending && row >= before;
            before = row;
            keys[i] = (row << place_bits_) | i;
        }
        if (!ascending) std::sort(keys, keys + n);
        return {};
    }
    const unsigned row_bits = rows_ > 1 ? unsigned(std::bit_width(std::uint64_t(rows_ - 1))) : 1;
    const unsigned passes = (row_bits + max_bits - 1) / max_bits;
    const unsigned bits = (row_bits + passes - 1) / passes;
    switch (passes) {
    case 1: return sort_in<1>(indices, bits);
    case 2: return sort_in<2>(indices, bits);
    case 3: return sort_in<3>(indices, bits);
    case 4: return sort_in<4>(indices, bits);
    case 5: return sort_in<5>(indices, bits);
    default: return sort_in<6>(indices, bits);
    }
}

// The digits of all passes are counted together, because the counts do not depend on the order.
template <unsigned Passes, class I>
std::optional<std::int64_t> RowUpdate::sort_in(const I* ADAPTK_RESTRICT indices, unsigned bits) {
    const auto n = std::size_t(index_.count);
    const auto rows = std::uint64_t(rows_);
    const std::size_t digits = std::size_t{1} << bits;
    const std::uint64_t mask = digits - 1;
    std::uint32_t* const counts = room(counts_, Passes * digits);
    std::fill_n(counts, Passes * digits, 0);
    bool ascending = true;
    std::uint64_t before = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t row = row_of(indices[i]);
        if (row >= rows) return std::int64_t(i);
        ascending = ascending && row >= before;
        before = row;
        ADAPTK_UNROLL
        for (unsigned pass = 0; pass < Passes; ++pass) ++counts[pass * digits + ((row >> (pass * bits)) & mask)];
    }
    const unsigned place_bits = place_bits_;
    if (ascending) {
        std::uint64_t* const to = keys_.data();
        for (std::size_t i = 0; i < n; ++i) to[i] = (row_of(indices[i]) << place_bits) | i;
        return {};
    }
    room(other_, n);
    for (unsigned pass = 0; pass < Passes; ++pass) {
        std::uint32_t* const at = counts + pass * digits;
        std::uint32_t sum = 0;
        for (std::size_t d = 0; d < digits; ++d) sum += std::exchange(at[d], sum);
        std::uint64_t* const to = other_.data();
        if (pass == 0) {
            for (std::size_t i = 0; i < n; ++i) {
                const std::uint64_t row = row_of(indices[i]);
                to[at[row & mask]++] = (row << place_bits) | i;
            }
        } else {
            const std::uint64_t* const from = keys_.data();
            const unsigned shift = place_bits + pass * bits;
            for (std::size_t i = 0; i < n; ++i) to[at[(from[i] >> shift) & mask]++] = from[i];
        }
        keys_.swap(other_);
    }
    return {};
}

std::size_t RowUpdate::lower_bound(std::int64_t row) const {
    std::size_t begin = 0, end = distinct();
    while (begin < end) {
        const std::size_t middle = begin + (end - begin) / 2;
        if (this->row(middle) < row) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    return begin;
}

namespace {

// Prefetches go into the second level of the cache, as those of tiles in step.cpp: measured with Adam on a table of 1M
// x 64, steps took 0.6 of their time with prefetches into the first level. The distances hardly matter: 4 to 16 rows,
// 12 to 48 values.
constexpr std::size_t rows_ahead = 8, values_ahead = 48;
// The most bytes that are prefetched of one row at once.
constexpr std::size_t max_prefetched = 512;
// Rows of at most this many elements are gathered into a tile, over which the kernel runs once.
constexpr std::int64_t max_gathered = 8;

// Prefetches all lines of a row. NumPy's large arrays begin 16 bytes after the start of a line, so a row takes one line
// more. Functions that only prefetch must be inline: GCC counts no prefetch as an effect, and removes calls of
// functions without effects.
ADAPTK_HD void prefetch_lines(const std::byte* row, std::size_t bytes) {
    const std::size_t before = reinterpret_cast<std::uintptr_t>(row) % cache_line;
    prefetch<CacheLevel::second>(row - before, 0, before + bytes);
}

template <class T> constexpr Format format_of_type = sizeof(T) == 8 ? Format::float64 : Format::float32;

template <class T> bool in_place(const Slot& s) { return s.format == format_of_type<T> && aligned(s.data, sizeof(T)); }

// n elements of a buffer: in place, or decoded into `room`, which holds a tile.
template <class T> const T* elements(const KernelTable& k, const Slot& s, std::int64_t first, std::size_t n, T* room) {
    if (in_place<T>(s)) return reinterpret_cast<const T*>(at(s, first));
    decode_tile(k, s, first, n, room);
    return room;
}

// add(to, x) adds n elements. It uses a kernel, because this file is compiled for the baseline instruction set, and its
// loops are not vectorised.
template <class T> auto adder(const KernelTable& k, std::size_t n) {
    return [kernel = k.add_scaled[sizeof(T) == 8 ? 1 : 0], n](T* to, const T* x) {
        constexpr double once = 1.0;
        void* const both[] = {to, const_cast<T*>(x)};
        kernel(&once, both, n);
    };
}

// The sum of row i, n <= tile elements from column c on: in `room`, or, for a single occurrence, in place. In place, n
// may be greater than a tile.
template <class T>
const T* sum_of_row(const KernelTable& k, const RowUpdate& r, std::size_t i, std::int64_t c, std::size_t n, T* room) {
    const std::size_t first = r.first(i), last = r.first(i + 1);
    const auto values = [&](std::size_t occurrence, T* to) {
        return elements(k, r.values(), r.place(occurrence) * r.row_size() + c, n, to);
    };
    if (last - first == 1) return values(first, room);
    alignas(cache_line) T leaf[tile], decoded[tile];
    const auto add = adder<T>(k, n);
    for (std::size_t begin = first; begin < last; begin += row_leaf) {
        const std::size_t end = std::min(begin + row_leaf, last);
        T* const sum = begin == first ? room : leaf;
        const T* const one = values(begin, sum);
        if (one != sum) std::memcpy(sum, one, n * sizeof(T));
        for (std::size_t o = begin + 1; o < end; ++o) add(sum, values(o, decoded));
        if (begin != first) add(room, leaf);
    }
    return room;
}

template <class T> class RowRun {
  public:
    RowRun(const KernelTable& k, const ParamUpdate& t, const RowUpdate& rows, std::size_t buffers, std::uint64_t key)
        : k_(k), t_(t), r_(rows), buffers_(buffers) {
        for (std::size_t b = 0; b < buffers; ++b) {
            in_place_[b] = in_place<T>(t.slot(b));
            of_row_[b] = is_number(b) ? 1 : r_.row_size();
            keys_[b] = info_of(t.format[b]).stochastic ? buffer_key(key, t.number, std::uint32_t(b)) : 0;
        }
        // This gradient is not a buffer of the tensor.
        in_place_[1] = in_place<T>(r_.values());
    }

    // Columns [c0, c1) of rows begin ... end - 1 of those that have values.
    void step(const RowKernel& kernel, std::size_t begin, std::size_t end, std::int64_t c0, std::int64_t c1) const {
        if (r_.row_size() <= max_gathered && t_.row_buffer == 0) {
            step_gathered(kernel, begin, end);
            return;
        }
        if (all_in_place() && r_.mode != SparseMode::catch_up && c1 - c0 <= std::int64_t(tile)) {
            step_in_place(kernel, begin, end, c0, std::size_t(c1 - c0));
            return;
        }
        alignas(cache_line) T scratch[max_buffers][tile];
        const std::size_t row_bytes = std::min(std::size_t(c1 - c0) * sizeof(T), max_prefetched);
        for (std::size_t i = begin; i < end; ++i) {
            ask(i, end, c0, row_bytes);
            const std::int64_t row = r_.row(i);
            if (t_.row_buffer != 0) {
                step_row_wise(kernel, row, scratch, [&](std::int64_t c, std::size_t n, T* room) {
                    return sum_of_row(k_, r_, i, c, n, room);
                });
                continue;
            }
            const bool single = in_place_[1] && r_.first(i + 1) - r_.first(i) == 1 && all_in_place();
            const IdleSteps missed = missed_steps(kernel.segment, row, kernel.segment.step - 1);
            for (std::int64_t c = c0; c < c1;) {
                const auto n = std::size_t(single ? c1 - c : std::min(c1 - c, std::int64_t(tile)));
                void* work[max_buffers] = {};
                load(work, scratch, row, c, n);
                work[1] = const_cast<T*>(sum_of_row(k_, r_, i, c, n, scratch[1]));
                apply_missed(missed, work, n);
                kernel.kernel(kernel.coefficients, work, n);
                store(scratch, row, c, n);
                c += std::int64_t(n);
            }
        }
    }

    // For a rule that keeps one number for each row and a gradient of all rows: that of the tensor, or one that is 0 in
    // the rows without values.
    void step_all(const RowKernel& kernel, std::int64_t begin, std::int64_t end) const {
        alignas(cache_line) T scratch[max_buffers][tile];
        for (std::int64_t row = begin; row < end; ++row) {
            step_row_wise(kernel, row, scratch, [&](std::int64_t c, std::size_t n, T* room) -> const T* {
                const std::int64_t element = row * r_.row_size() + c;
                if (t_.buffer[1] != nullptr) return elements(k_, t_.slot(1), element, n, room);
                gradient_of_rows(k_, r_, element, n, room);
                return room;
            });
        }
    }

    // Rows begin ... end - 1 of all rows catch up with `steps` steps.
    void catch_up(const Segment& segment, std::int64_t begin, std::int64_t end, std::int64_t steps) const {
        alignas(cache_line) T scratch[max_buffers][tile];
        for (std::int64_t row = begin; row < end; ++row) {
            if (r_.last_step[row] >= steps) continue;
            const IdleSteps missed = missed_steps(segment, row, steps);
            for (std::int64_t c = 0; c < r_.row_size(); c += std::int64_t(tile)) {
                const auto n = std::size_t(std::min(r_.row_size() - c, std::int64_t(tile)));
                void* work[max_buffers] = {};
                load(work, scratch, row, c, n);
                apply_missed(missed, work, n);
                store(scratch, row, c, n);
            }
        }
    }

  private:
    const KernelTable& k_;
    const ParamUpdate& t_;
    const RowUpdate& r_;
    std::size_t buffers_;
    bool in_place_[max_buffers] = {};
    std::int64_t of_row_[max_buffers] = {};  // elements
    std::uint64_t keys_[max_buffers] = {};

    bool is_number(std::size_t b) const { return b != 0 && b == t_.row_buffer; }
    bool all_in_place() const {
        return std::all_of(in_place_, in_place_ + buffers_, [](bool b) { return b; });
    }

    // Loads columns c ... c + n - 1 of a row, and with column 0 the row's number if there is one.
    void load(void** work, T (*scratch)[tile], std::int64_t row, std::int64_t c, std::size_t n) const {
        for (std::size_t b = 0; b < buffers_; ++b) {
            if (b == 1 || (is_number(b) && c > 0)) continue;
            const std::size_t m = is_number(b) ? 1 : n;
            work[b] = const_cast<T*>(elements(k_, t_.slot(b), row * of_row_[b] + c, m, scratch[b]));
        }
    }
    void store(T (*scratch)[tile], std::int64_t row, std::int64_t c, std::size_t n) const {
        for (std::size_t b = 0; b < buffers_; ++b) {
            if (b == 1 || in_place_[b] || (is_number(b) && c > 0)) continue;
            encode_tile(k_, scratch[b], t_, b, row * of_row_[b] + c, is_number(b) ? 1 : n, keys_[b]);
        }
    }

    // grad(c, n, room): the row's gradient from column c on.
    template <class Grad>
    void step_row_wise(const RowKernel& kernel, std::int64_t row, T (*scratch)[tile], const Grad& grad) const {
        static_assert(tile == row_part);
        const std::int64_t size = r_.row_size();
        const IdleSteps missed = missed_steps(kernel.segment, row, kernel.segment.step - 1);
        void* work[max_buffers] = {};
        if (size <= std::int64_t(tile)) {
            load(work, scratch, row, 0, std::size_t(size));
            work[1] = const_cast<T*>(grad(0, std::size_t(size), scratch[1]));
            apply_missed(missed, work, std::size_t(size));
            kernel.kernel(kernel.coefficients, work, std::size_t(size));
            store(scratch, row, 0, std::size_t(size));
            return;
        }
        const auto part = [&](std::int64_t c) { return std::size_t(std::min(size - c, std::int64_t(tile))); };
        double sum = 0.0;
        for (std::int64_t c = 0; c < size; c += std::int64_t(tile)) {
            const T* const p = elements(k_, t_.slot(0), row * size + c, part(c), scratch[0]);
            sum += kernel.row_wise->square_sum(kernel.coefficients, p, grad(c, part(c), scratch[1]), part(c));
        }
        double factor = 0.0;
        for (std::int64_t c = 0; c < size; c += std::int64_t(tile)) {
            load(work, scratch, row, c, part(c));
            work[1] = const_cast<T*>(grad(c, part(c), scratch[1]));
            apply_missed(missed, work, part(c));
            if (c == 0) {
                factor = kernel.row_wise->factor(kernel.coefficients, sum / double(size), work[t_.row_buffer]);
                // The row's number is updated once.
                work[t_.row_buffer] = nullptr;
            }
            kernel.row_wise->update(kernel.coefficients, factor, work, part(c));
            store(scratch, row, c, part(c));
        }
    }

    // The usual case of embeddings: everything is of type T and in place, and a row is no longer than a tile. The sums
    // have the bits of sum_of_row().
    void step_in_place(const RowKernel& kernel, std::size_t begin, std::size_t end, std::int64_t c0,
                       std::size_t n) const {
        alignas(cache_line) T sum[tile], leaf[tile];
        T* base[max_buffers] = {};
        for (std::size_t b = 0; b < buffers_; ++b)
            if (b != 1) base[b] = static_cast<T*>(t_.buffer[b]) + c0;
        const std::size_t number = t_.row_buffer == 0 ? max_buffers : t_.row_buffer;
        const T* const values = static_cast<const T*>(r_.values().data) + c0;
        const std::int64_t row_size = r_.row_size();
        const std::size_t row_bytes = std::min(n * sizeof(T), max_prefetched), occurrences = r_.occurrences();
        const auto at_occurrence = [&](std::size_t o) { return values + r_.place(o) * row_size; };
        const auto add = adder<T>(k_, n);
        const auto sum_leaf = [&](std::size_t o, std::size_t last, T* to) {
            std::memcpy(to, at_occurrence(o), n * sizeof(T));
            while (++o < last) add(to, at_occurrence(o));
        };
        std::size_t first = begin < end ? r_.first(begin) : 0;
        for (std::size_t i = begin; i < end; ++i) {
            if (i + rows_ahead < end) {
                const std::int64_t row = r_.row(i + rows_ahead), element = row * row_size;
                for (std::size_t b = 0; b < buffers_; ++b) {
                    if (b == 1) continue;
                    if (b == number) {
                        prefetch_lines(reinterpret_cast<const std::byte*>(base[b] + row), sizeof(T));
                    } else {
                        prefetch_lines(reinterpret_cast<const std::byte*>(base[b] + element), row_bytes);
                    }
                }
            }
            const std::size_t last = r_.first(i + 1);
            for (std::size_t o = first + values_ahead; o < last + values_ahead && o < occurrences; ++o)
                prefetch_lines(reinterpret_cast<const std::byte*>(at_occurrence(o)), row_bytes);
            void* work[max_buffers] = {};
            const std::int64_t row = r_.row(i), element = row * row_size;
            for (std::size_t b = 0; b < buffers_; ++b)
                if (b != 1) work[b] = base[b] + (b == number ? row : element);
            if (last - first == 1) {
                work[1] = const_cast<T*>(at_occurrence(first));
            } else {
                for (std::size_t o = first; o < last; o += row_leaf) {
                    sum_leaf(o, std::min(o + row_leaf, last), o == first ? sum : leaf);
                    if (o != first) add(sum, leaf);
                }
                work[1] = sum;
            }
            kernel.kernel(kernel.coefficients, work, n);
            first = last;
        }
    }

    void step_gathered(const RowKernel& kernel, std::size_t begin, std::size_t end) const {
        alignas(cache_line) T scratch[max_buffers][tile];
        alignas(cache_line) T room[tile];
        const std::int64_t row_size = r_.row_size();
        const auto n = std::size_t(row_size);
        const std::size_t most = tile / n;
        for (std::size_t i = begin; i < end; i += most) {
            const std::size_t rows = std::min(most, end - i);
            for (std::size_t j = 0; j < rows; ++j) {
                ask(i + j, end, 0, n * sizeof(T));
                const std::int64_t row = r_.row(i + j);
                void* work[max_buffers] = {};
                for (std::size_t b = 0; b < buffers_; ++b) {
                    T* const to = scratch[b] + j * n;
                    const T* const from = b == 1 ? sum_of_row(k_, r_, i + j, 0, n, room)
                                                 : elements(k_, t_.slot(b), row * row_size, n, room);
                    std::memcpy(to, from, n * sizeof(T));
                    work[b] = to;
                }
                apply_missed(missed_steps(kernel.segment, row, kernel.segment.step - 1), work, n);
            }
            void* work[max_buffers] = {};
            for (std::size_t b = 0; b < buffers_; ++b) work[b] = scratch[b];
            kernel.kernel(kernel.coefficients, work, rows * n);
            for (std::size_t j = 0; j < rows; ++j) {
                const std::int64_t element = r_.row(i + j) * row_size;
                for (std::size_t b = 0; b < buffers_; ++b) {
                    if (b == 1) continue;
                    const T* const from = scratch[b] + j * n;
                    if (in_place_[b]) {
                        std::memcpy(at(t_, b, element), from, n * sizeof(T));
                    } else {
                        encode_tile(k_, from, t_, b, element, n, keys_[b]);
                    }
                }
            }
        }
    }

    // Prefetches rows and values: rows are at random addresses, which hardware prefetchers cannot predict.
    ADAPTK_HD void ask(std::size_t i, std::size_t end, std::int64_t c0, std::size_t row_bytes) const {
        if (i + rows_ahead < end) {
            const std::int64_t row = r_.row(i + rows_ahead);
            for (std::size_t b = 0; b < buffers_; ++b)
                if (b != 1) prefetch_lines(at(t_, b, row * of_row_[b] + c0), is_number(b) ? sizeof(T) : row_bytes);
        }
        for (std::size_t o = r_.first(i); o < r_.first(i + 1); ++o)
            if (o + values_ahead < r_.occurrences())
                prefetch_lines(at(r_.values(), r_.place(o + values_ahead) * r_.row_size() + c0), row_bytes);
    }

    IdleSteps missed_steps(const Segment& segment, std::int64_t row, std::int64_t steps) const {
        IdleSteps out;
        if (r_.mode != SparseMode::catch_up || r_.last_step[row] >= steps) return out;
        const RuleInfo& rule = *segment.rule;
        const double decay =
            rule.decoupled(segment.hyper) ? segment.hyper.value[0] * rule.weight_decay(segment.hyper) : 0.0;
        rule.idle_steps(segment.hyper, 1.0 - decay, steps - r_.last_step[row], out);
        return out;
    }
    void apply_missed(const IdleSteps& missed, void* const* work, std::size_t n) const {
        if (r_.mode != SparseMode::catch_up) return;
        T* const p = static_cast<T*>(work[0]);
        if (const T factor = T(missed.param); factor != T(1))
            for (std::size_t i = 0; i < n; ++i) p[i] = factor * p[i];
        for (std::size_t b = 2; b < buffers_; ++b) {
            T* const s = static_cast<T*>(work[b]);
            if (s == nullptr) continue;  // the row's number, which has caught up
            if (const T factor = T(missed.from_state[b - 2]); factor != T(0))
                for (std::size_t i = 0; i < n; ++i) p[i] = p[i] + factor * s[i];
            if (const T factor = T(missed.state[b - 2]); factor != T(1))
                for (std::size_t i = 0; i < (is_number(b) ? 1 : n); ++i) s[i] = factor * s[i];
        }
    }
};

template <class T>
void run_rows_of_type(const KernelTable& k, const RowKernel& kernel, const ParamUpdate& t, const RowUpdate& r) {
    const std::size_t rows = r.distinct();
    const auto weight = [&](std::size_t i) { return r.first(i) + 2 * i; };
    const std::size_t total = weight(rows);
    std::int64_t work = 0;
    if (product_overflows(std::int64_t(total), r.row_size(), work)) work = INT64_MAX;
    const int wanted = threads_for(work);
    // If rows are few and long, threads share each of them.
    const bool by_columns = t.row_buffer == 0 && rows < 4 * std::size_t(wanted) && r.row_size() >= 2 * cut_grain;
    in_parallel(wanted, [&](int thread, int threads) {
        const RowRun<T> run(k, t, r, kernel.buffers, kernel.key);
        if (by_columns) {
            const auto cut = [&](int of) {
                return of == threads ? r.row_size() : r.row_size() / threads * of / cut_grain * cut_grain;
            };
            run.step(kernel, 0, rows, cut(thread), cut(thread + 1));
            return;
        }
        const auto cut = [&](int of) {
            const std::size_t share = total / std::size_t(threads) * std::size_t(of);
            std::size_t begin = 0, end = rows;
            while (of < threads && begin < end) {
                const std::size_t middle = begin + (end - begin) / 2;
                if (weight(middle) < share) {
                    begin = middle + 1;
                } else {
                    end = middle;
                }
            }
            return end;
        };
        run.step(kernel, cut(thread), cut(thread + 1), 0, r.row_size());
    });
}

}  // namespace

bool has_values(const RowUpdate& rows, std::int64_t first, std::int64_t n) {
    if (n == 0 || rows.distinct() == 0) return false;
    const std::size_t i = rows.lower_bound(first / rows.row_size());
    return i < rows.distinct() && rows.row(i) * rows.row_size() < first + n;
}

template <class T>
void gradient_of_rows(const KernelTable& k, const RowUpdate& rows, std::int64_t first, std::size_t n, T* out) {
    std::fill_n(out, n, T(0));
    if (n == 0 || rows.distinct() == 0) return;
    const std::int64_t end = first + std::int64_t(n), size = rows.row_size();
    for (std::size_t i = rows.lower_bound(first / size); i < rows.distinct() && rows.row(i) * size < end; ++i) {
        const std::int64_t row = rows.row(i) * size, last = std::min(row + size, end);
        for (std::int64_t e = std::max(row, first); e < last; e += std::int64_t(tile)) {
            const auto m = std::size_t(std::min(last - e, std::int64_t(tile)));
            T* const to = out + (e - first);
            const T* const sum = sum_of_row(k, rows, i, e - row, m, to);
            if (sum != to) std::memcpy(to, sum, m * sizeof(T));
        }
    }
}
template void gradient_of_rows(const KernelTable&, const RowUpdate&, std::int64_t, std::size_t, float*);
template void gradient_of_rows(const KernelTable&, const RowUpdate&, std::int64_t, std::size_t, double*);

void run_rows(const KernelTable& k, const RowKernel& kernel, const ParamUpdate& t) {
    const RowUpdate& r = *t.rows;
    if (r.distinct() > 0) {
        if (t.compute() == 1) {
            run_rows_of_type<double>(k, kernel, t, r);
        } else {
            run_rows_of_type<float>(k, kernel, t, r);
        }
    }
    if (r.mode == SparseMode::catch_up)
        for (std::size_t i = 0; i < r.distinct(); ++i) r.last_step[r.row(i)] = kernel.segment.step;
}

namespace {

template <class T>
void run_all_rows_of_type(const KernelTable& k, const RowKernel& kernel, const ParamUpdate& t, const RowUpdate& r) {
    in_parallel(threads_for(t.size), [&](int thread, int threads) {
        const auto cut = [&](int of) { return of == threads ? r.rows() : r.rows() / threads * of; };
        RowRun<T>(k, t, r, kernel.buffers, kernel.key).step_all(kernel, cut(thread), cut(thread + 1));
    });
}

}  // namespace

void run_all_rows(const KernelTable& k, const RowKernel& kernel, const ParamUpdate& t) {
    if (t.size == 0) return;
    RowUpdate all;
    all.assign(t.row_count, t.size / t.row_count);
    const RowUpdate& r = t.buffer[1] == nullptr ? *t.rows : all;
    if (t.compute() == 1) {
        run_all_rows_of_type<double>(k, kernel, t, r);
    } else {
        run_all_rows_of_type<float>(k, kernel, t, r);
    }
}

void catch_up_rows(const KernelTable& k, const Segment& segment, const ParamUpdate& t, std::int64_t steps) {
    const RowUpdate& r = *t.rows;
    in_parallel(threads_for(t.size), [&](int thread, int threads) {
        const auto cut = [&](int of) { return of == threads ? r.rows() : r.rows() / threads * of; };
        const std::int64_t begin = cut(thread), end = cut(thread + 1);
        if (t.compute() == 1) {
            RowRun<double>(k, t, r, segment.rule->buffers(), segment.key()).catch_up(segment, begin, end, steps);
        } else {
            RowRun<float>(k, t, r, segment.rule->buffers(), segment.key()).catch_up(segment, begin, end, steps);
        }
        for (std::int64_t row = begin; row < end; ++row) r.last_step[row] = std::max(r.last_step[row], steps);
    });
}

void catch_up_rows(const Segment& segment, const ParamUpdate& t, std::int64_t steps) {
    const FloatingPointMode mode;
    catch_up_rows(*current_isa().kernels, segment, t, steps);
}

void run_row_probe(const ParamUpdate& t, std::size_t written, std::span<const std::int64_t> rows, std::int64_t row_size,
                   std::span<const float> values) {
    const KernelTable& k = *current_isa().kernels;
    const auto n = std::size_t(row_size), count = rows.size(), given = values.size() / n;
    in_parallel(threads_for(std::int64_t(values.size() + 2 * count * n)), [&](int thread, int threads) {
        alignas(cache_line) float sum[4096];
        constexpr double once = 1.0;
        const auto cut = [&](int of) { return count * std::size_t(of) / std::size_t(threads); };
        for (std::size_t i = cut(thread), end = cut(thread + 1); i < end; ++i) {
            if (i + rows_ahead < end)
                for (std::size_t b = 0; b < written; ++b)
                    prefetch_lines(at(t, b == 0 ? 0 : 1 + b, rows[i + rows_ahead] * row_size),
                                   std::min(n * sizeof(float), max_prefetched));
            std::size_t v = given * i / count;
            const float* grad = values.data() + v * n;
            if (const std::size_t last = given * (i + 1) / count; last - v > 1) {
                std::memcpy(sum, grad, n * sizeof(float));
                grad = sum;
                while (++v < last) {
                    void* const both[] = {sum, const_cast<float*>(values.data() + v * n)};
                    k.add_scaled[0](&once, both, n);
                }
            }
            void* work[max_buffers] = {};
            for (std::size_t b = 0; b <= written; ++b)
                if (b != 1) work[b] = at(t, b, rows[i] * row_size);
            work[1] = const_cast<float*>(grad);
            k.bandwidth_probe[written - 1][0](nullptr, work, n);
        }
    });
}

const char* why_no_rows(const ParamUpdate& t, std::size_t buffers, std::int64_t row_size, std::size_t& buffer) {
    for (std::size_t b = 0; b < buffers; ++b) {
        if (b == 1 || row_size % std::int64_t(info_of(t.format[b]).block) == 0 || row_size == 0) continue;
        buffer = b;
        return "its elements share a scale in blocks that rows of this size do not begin: rows cannot be stepped one "
               "by "
               "one; store it in a format without blocks, or use sparse='dense'";
    }
    return nullptr;
}

const char* why_never_rows(const RuleInfo& rule) {
    return rule.measures ? "reduces tensors to numbers, such as a norm, and a gradient of rows has values for some of "
                           "the rows alone; make it dense"
                         : nullptr;
}

const char* why_no_catch_up(const RuleInfo& rule, const HyperValues& hyper) {
    if (rule.idle_steps == nullptr)
        return "has no closed form for steps with a gradient of 0: use sparse='lazy' or sparse='dense'";
    if (rule.coupled_decay(hyper))
        return "has no closed form for steps with a gradient of 0 and coupled weight decay: use decoupled=True, "
               "sparse='lazy' or sparse='dense'";
    return nullptr;
}

}  // namespace adaptk::detail
