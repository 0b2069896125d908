#include "reduce.hpp"

#include "dispatch.hpp"
#include "parallel.hpp"
#include "rows.hpp"

#include <atomic>
#include <cmath>

namespace adaptk::detail {
namespace {

constexpr auto leaf_size = std::int64_t(reduction_leaf);

class Leaves {
  public:
    Leaves(std::span<const ParamUpdate> tensors, const Reduction& what) : tensors_(tensors), what_(what) {
        parts_ = reduction_parts(tensors, what);
        for (const ReductionPart& p : parts_) elements_ += p.size;
        if (!parts_.empty()) leaf_count_ = parts_.back().first_leaf + leaves_of(parts_.back().size);
        sums_.resize(std::size_t(leaf_count_));
    }

    // Several times, with another scale. `added`: if it is not null, buffer 1 times it is added to buffer 0 first.
    void run(const KernelTable& k, double scale, const double* added = nullptr) {
        in_parallel(threads_for(elements_), [&](int thread, int threads) {
            const std::int64_t begin = leaf_count_ * thread / threads;
            const std::int64_t end = leaf_count_ * (thread + 1) / threads;
            if (begin == end) return;
            auto part =
                std::upper_bound(parts_.begin(), parts_.end(), begin,
                                 [](std::int64_t leaf, const ReductionPart& p) { return leaf < p.first_leaf; }) -
                1;
            Place place{part->tensor, part->first};
            if (begin > part->first_leaf) place = after(place, (begin - part->first_leaf) * leaf_size);
            for (std::int64_t leaf = begin; leaf < end; ++leaf) {
                while (part + 1 != parts_.end() && (part + 1)->first_leaf <= leaf) {
                    ++part;
                    place = {part->tensor, part->first};
                }
                const std::int64_t done = (leaf - part->first_leaf) * leaf_size;
                place =
                    sum_leaf(k, place, std::min(leaf_size, part->size - done), scale, added, sums_[std::size_t(leaf)]);
            }
        });
    }

    std::vector<double> totals() const {
        std::vector<double> out;
        out.reserve(parts_.size());
        std::vector<double> level;
        for (const ReductionPart& p : parts_) {
            level.assign(sums_.begin() + p.first_leaf, sums_.begin() + p.first_leaf + leaves_of(p.size));
            out.push_back(pairwise_sum(level));
        }
        return out;
    }

    // Whether a leaf's squares vanished although its values are not all 0.
    bool vanished() const { return vanished_.load(std::memory_order_relaxed); }

  private:
    struct Place {
        std::size_t tensor;
        std::int64_t element;
    };

    std::span<const ParamUpdate> tensors_;
    const Reduction& what_;
    std::vector<ReductionPart> parts_;
    std::vector<double> sums_;
    std::int64_t leaf_count_ = 0;
    std::int64_t elements_ = 0;
    std::atomic<bool> vanished_{false};

    Place after(Place p, std::int64_t n) const {
        while (p.tensor < tensors_.size() && n >= tensors_[p.tensor].size - p.element) {
            n -= tensors_[p.tensor].size - p.element;
            p = {p.tensor + 1, 0};
        }
        return {p.tensor, p.element + n};
    }

    // Calls visit(tensor, first element, elements) for n elements from a place on; returns where they end.
    template <class Visit> Place for_pieces(Place p, std::int64_t n, const Visit& visit) const {
        while (n > 0) {
            const std::int64_t m = std::min(n, tensors_[p.tensor].size - p.element);
            if (m > 0) visit(p.tensor, p.element, m);
            n -= m;
            p.element += m;
            if (p.element == tensors_[p.tensor].size) p = {p.tensor + 1, 0};
        }
        return p;
    }

    // Whether n elements of a gradient of rows, all of one tensor, have no values: a large table has many such leaves.
    bool is_empty(Place p, std::int64_t n) const {
        const ParamUpdate& t = tensors_[p.tensor];
        return is_of_rows(t) && n <= t.size - p.element && !has_values(*t.rows, p.element, n);
    }

    Place sum_leaf(const KernelTable& k, Place place, std::int64_t n, double scale, const double* added, double& sum) {
        if (is_empty(place, n)) {
            sum = 0.0;
            return after(place, n);
        }
        alignas(cache_line) double sums[reduction_width] = {};
        std::size_t phase = 0;
        const Place end = for_pieces(place, n, [&](std::size_t i, std::int64_t first, std::int64_t m) {
            const double factor = what_.factors.empty() ? scale : scale * what_.factors[i];
            if (added != nullptr) add_scaled(k, tensors_[i], first, m, *added);
            add_piece(k, tensors_[i], first, m, phase, factor, sums);
            phase += std::size_t(m);
        });
        for (std::size_t w = reduction_width / 2; w > 0; w /= 2)
            for (std::size_t i = 0; i < w; ++i) sums[i] = sums[i] + sums[i + w];
        sum = sums[0];
        if (sum == 0.0 && what_.term == Term::square) look_for_vanished(k, place, n);
        return end;
    }

    void add_piece(const KernelTable& k, const ParamUpdate& t, std::int64_t first, std::int64_t n, std::size_t phase,
                   double scale, double* sums) const {
        const AddTerms* add = k.reduction[std::size_t(what_.term)].add;
        const std::size_t b = what_.buffer;
        const Format format = t.format[b];
        const std::size_t native = format == Format::float64 ? 1 : 0;
        if (!is_of_rows(t) && (format == Format::float32 || format == Format::float64) &&
            aligned(t.buffer[b], size_of(format))) {
            add[native](at(t, b, first), std::size_t(n), phase % reduction_width, scale, sums);
            return;
        }
        // From a multiple of a tile on: blocks of a format are whole.
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

    // Of float64 alone: the squares of other formats' numbers do not vanish.
    void look_for_vanished(const KernelTable& k, Place place, std::int64_t n) {
        if (vanished()) return;
        for_pieces(place, n, [&](std::size_t i, std::int64_t first, std::int64_t m) {
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

    static double pairwise_sum(std::vector<double>& level) {
        std::size_t n = level.size();
        if (n == 0) return 0.0;
        for (; n > 1; n = (n + 1) / 2) {
            for (std::size_t i = 0; i < n / 2; ++i) level[i] = level[2 * i] + level[2 * i + 1];
            if (n % 2 != 0) level[n / 2] = level[n - 1];
        }
        return level[0];
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
    Leaves leaves(tensors, what);
    leaves.run(*current_isa().kernels, what.scale);
    return leaves.totals();
}

namespace {

StepReport norm_of_buffers(std::span<const ParamUpdate> tensors, std::size_t buffer, double scale,
                           std::span<const double> factors, const double* added = nullptr) {
    const FloatingPointMode mode;
    const KernelTable& k = *current_isa().kernels;
    Reduction squares;
    squares.buffer = buffer;
    squares.factors = factors;
    Leaves leaves(tensors, squares);
    leaves.run(k, 1.0, added);
    const double sum = leaves.totals()[0];
    StepReport report;
    report.has_norm = true;
    report.finite = std::isfinite(sum);
    double norm = std::sqrt(sum);
    const bool beyond = std::isinf(sum) || (sum < 0x1p-900 && (sum != 0.0 || leaves.vanished()));
    // The other formats cannot get there, unless a group's own factor takes them.
    const bool can = !factors.empty() || std::any_of(tensors.begin(), tensors.end(), [&](const ParamUpdate& t) {
        return t.format[buffer] == Format::float64;
    });
    if (beyond && can) {
        const double rescale = sum < 1.0 ? 0x1p600 : 0x1p-600;
        leaves.run(k, rescale);
        const double again = leaves.totals()[0];
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
