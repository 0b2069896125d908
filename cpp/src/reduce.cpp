#include "reduce.hpp"

#include "dispatch.hpp"
#include "leaves.hpp"
#include "rows.hpp"

#include <atomic>
#include <cmath>

namespace adaptk::detail {
namespace {

// The sums over one buffer of the tensors.
class Sums {
  public:
    Sums(std::span<const ParamUpdate> tensors, const Reduction& what)
        : tensors_(tensors), what_(what), leaves_(tensors, reduction_parts(tensors, what)),
          sums_(std::size_t(leaves_.count())) {}

    // May be called again with another scale. `added`: if it is not null, buffer 1 times *added is added to buffer 0
    // first.
    void run(const KernelTable& k, double scale, const double* added = nullptr) {
        leaves_.run([&] {
            return [&](std::int64_t leaf, Leaves::Place place, std::int64_t n) {
                return sum_leaf(k, place, n, scale, added, sums_[std::size_t(leaf)]);
            };
        });
    }

    std::vector<double> totals() const { return leaves_.totals(sums_.data()); }

    // Whether a leaf's squares underflowed to 0 although its values are not all 0.
    bool vanished() const { return vanished_.load(std::memory_order_relaxed); }

  private:
    using Place = Leaves::Place;

    std::span<const ParamUpdate> tensors_;
    const Reduction& what_;
    Leaves leaves_;
    std::vector<double> sums_;
    std::atomic<bool> vanished_{false};

    // Whether n elements of one tensor have no values, because its gradient has values for other rows only: a large
    // table has many such leaves.
    bool is_empty(Place p, std::int64_t n) const {
        const ParamUpdate& t = tensors_[p.tensor];
        return is_of_rows(t) && n <= t.size - p.element && !has_values(*t.rows, p.element, n);
    }

    Place sum_leaf(const KernelTable& k, Place place, std::int64_t n, double scale, const double* added, double& sum) {
        if (is_empty(place, n)) {
            sum = 0.0;
            return leaves_.after(place, n);
        }
        alignas(cache_line) double sums[reduction_width] = {};
        std::size_t phase = 0;
        const Place end = leaves_.for_each_chunk(place, n, [&](std::size_t i, std::int64_t first, std::int64_t m) {
            const double factor = what_.factors.empty() ? scale : scale * what_.factors[i];
            if (added != nullptr) add_scaled(k, tensors_[i], first, m, *added);
            add_piece(k, tensors_[i], first, m, phase, factor, sums);
            phase += std::size_t(m);
        });
        sum = Leaves::fold(sums);
        if (sum == 0.0 && what_.term == Term::square) check_underflow(k, place, n);
        return end;
    }

    void add_piece(const KernelTable& k, const ParamUpdate& t, std::int64_t first, std::int64_t n, std::size_t phase,
                   double scale, double* sums) const {
        const AddTerms* add = k.reduction[std::size_t(what_.term)].add;
        const std::size_t b = what_.buffer;
        const Format format = t.format[b];
        const std::size_t native = format == Format::float64 ? 1 : 0;
        const AddTerms direct = format == Format::bfloat16                               ? add[2]
                                : format == Format::float32 || format == Format::float64 ? add[native]
                                                                                         : nullptr;
        if (!is_of_rows(t) && direct != nullptr && aligned(t.buffer[b], size_of(format))) {
            direct(at(t, b, first), std::size_t(n), phase % reduction_width, scale, sums);
            return;
        }
        // Decoding begins at a multiple of a tile, so that blocks of a format are whole.
        for (std::int64_t done = 0; done < n;) {
            const std::int64_t from = first + done;
            const std::int64_t begin = from / std::int64_t(tile) * std::int64_t(tile);
            const std::int64_t m = std::min(n - done, begin + std::int64_t(tile) - from);
            const std::size_t row = (phase + std::size_t(done)) % reduction_width;
            const auto skipped = std::size_t(from - begin);
            if (native == 1) {
                alignas(cache_line) double decoded[tile];
                load(k, t, begin, skipped + std::size_t(m), decoded);
                add[1](decoded + skipped, std::size_t(m), row, scale, sums);
            } else {
                alignas(cache_line) float decoded[tile];
                load(k, t, begin, skipped + std::size_t(m), decoded);
                add[0](decoded + skipped, std::size_t(m), row, scale, sums);
            }
            done += m;
        }
    }

    bool is_of_rows(const ParamUpdate& t) const { return what_.buffer == 1 && t.rows != nullptr && !t.rows->whole; }
    template <class T>
    void load(const KernelTable& k, const ParamUpdate& t, std::int64_t first, std::size_t n, T* out) const {
        if (is_of_rows(t)) {
            gradient_of_rows(k, *t.rows, first, n, out);
        } else {
            decode_tile(k, t, what_.buffer, first, n, out);
        }
    }

    // Squares of other formats underflow only if a group has its own factor.
    void check_underflow(const KernelTable& k, Place place, std::int64_t n) {
        if (vanished()) return;
        leaves_.for_each_chunk(place, n, [&](std::size_t i, std::int64_t first, std::int64_t m) {
            const ParamUpdate& t = tensors_[i];
            if (t.format[what_.buffer] != Format::float64 && what_.factors.empty()) return;
            const std::int64_t begin = first / std::int64_t(tile) * std::int64_t(tile);
            for (std::int64_t from = begin; from < first + m && !vanished(); from += std::int64_t(tile)) {
                double decoded[tile];
                const auto count = std::size_t(std::min(first + m - from, std::int64_t(tile)));
                load(k, t, from, count, decoded);
                for (std::size_t e = 0; e < count; ++e)
                    if (decoded[e] != 0.0 && from + std::int64_t(e) >= first)
                        vanished_.store(true, std::memory_order_relaxed);
            }
        });
    }
};

}  // namespace

std::vector<ReductionPart> reduction_parts(std::span<const ParamUpdate> tensors, const Reduction& what) {
    std::vector<ReductionPart> parts;
    std::int64_t leaf = 0;
    const auto add = [&](std::size_t tensor, std::int64_t first, std::int64_t begin, std::int64_t size) {
        parts.push_back({tensor, first, begin, size, leaf});
        leaf += leaves_of(size);
    };
    std::size_t tensor = 0;
    std::int64_t begin = 0;
    const auto add_tensors = [&](std::size_t count) {
        const std::int64_t size = total_size(tensors.subspan(tensor, count));
        add(tensor, 0, begin, size);
        tensor += count;
        begin += size;
    };
    switch (what.scope) {
    case Scope::all: add_tensors(tensors.size()); break;
    case Scope::group:
        for (const std::size_t count : what.groups) add_tensors(count);
        break;
    case Scope::tensor:
        while (tensor < tensors.size()) add_tensors(1);
        break;
    case Scope::row:
        for (; tensor < tensors.size(); begin += tensors[tensor++].size)
            for (std::int64_t at = 0; at < tensors[tensor].size; at += what.row_sizes[tensor])
                add(tensor, at, begin + at, what.row_sizes[tensor]);
        break;
    }
    return parts;
}

std::vector<double> reduce(std::span<const ParamUpdate> tensors, const Reduction& what) {
    const FloatingPointMode mode;
    Sums sums(tensors, what);
    sums.run(*current_isa().kernels, what.scale);
    return sums.totals();
}

namespace {

StepReport norm_of_buffers(std::span<const ParamUpdate> tensors, std::size_t buffer, double scale,
                           std::span<const double> factors, const double* added = nullptr) {
    const FloatingPointMode mode;
    const KernelTable& k = *current_isa().kernels;
    Reduction squares;
    squares.buffer = buffer;
    squares.factors = factors;
    Sums sums(tensors, squares);
    sums.run(k, 1.0, added);
    const double sum = sums.totals()[0];
    StepReport report;
    report.has_norm = true;
    report.finite = std::isfinite(sum);
    double norm = std::sqrt(sum);
    const bool beyond = std::isinf(sum) || (sum < 0x1p-900 && (sum != 0.0 || sums.vanished()));
    // Other formats cannot overflow or underflow, except by a group's own factor.
    const bool can = !factors.empty() || std::any_of(tensors.begin(), tensors.end(), [&](const ParamUpdate& t) {
        return t.format[buffer] == Format::float64;
    });
    if (beyond && can) {
        const double rescale = sum < 1.0 ? 0x1p600 : 0x1p-600;
        sums.run(k, rescale);
        const double again = sums.totals()[0];
        report.finite = std::isfinite(again);
        norm = std::sqrt(again) / rescale;
    }
    report.grad_norm = std::fabs(scale) * norm;
    return report;
}

}  // namespace

StepReport norm_of_gradients(std::span<const ParamUpdate> tensors, double scale, std::span<const double> factors) {
    return norm_of_buffers(tensors, 1, scale, factors);
}

StepReport accumulate(std::span<const ParamUpdate> tensors, double scale) {
    return norm_of_buffers(tensors, 0, 1.0, {}, &scale);
}

}  // namespace adaptk::detail
