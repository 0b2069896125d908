// The leaves of a reduction (reduce.hpp) over tensors: which thread sums which of them, and how their sums are added.
#pragma once

#include "parallel.hpp"
#include "reduce.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace adaptk::detail {

// How two numbers are combined, and the neutral element `none`. The operation is that of the kernels.
struct Addition {
    static constexpr double none = 0.0;
    static double of(double a, double b) { return a + b; }
};
struct Maximum {
    static constexpr double none = -std::numeric_limits<double>::infinity();
    static double of(double a, double b) { return larger(a, b); }
};

class Leaves {
  public:
    struct Place {
        std::size_t tensor;
        std::int64_t element;
    };

    Leaves(std::span<const ParamUpdate> tensors, std::vector<ReductionPart> parts)
        : tensors_(tensors), parts_(std::move(parts)) {
        for (const ReductionPart& p : parts_) elements_ += p.size;
        if (!parts_.empty()) count_ = parts_.back().first_leaf + leaves_of(parts_.back().size);
    }

    std::int64_t count() const { return count_; }
    std::span<const ReductionPart> parts() const { return parts_; }

    // Calls visit(leaf, place, elements) for each leaf, on as many threads as the work is worth. visit returns where
    // the leaf ends.
    template <class MakeVisit> void run(const MakeVisit& make_visit) const {
        in_parallel(threads_for(elements_), [&](int thread, int threads) {
            const std::int64_t begin = count_ * thread / threads;
            const std::int64_t end = count_ * (thread + 1) / threads;
            if (begin == end) return;
            auto&& visit = make_visit();
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
                place = visit(leaf, place, std::min(leaf_size, part->size - done));
            }
        });
    }

    Place after(Place p, std::int64_t n) const {
        while (p.tensor < tensors_.size() && n >= tensors_[p.tensor].size - p.element) {
            n -= tensors_[p.tensor].size - p.element;
            p = {p.tensor + 1, 0};
        }
        return {p.tensor, p.element + n};
    }

    // Calls visit(tensor, first element, elements) for n elements from a place on. Returns where they end.
    template <class Visit> Place for_each_chunk(Place p, std::int64_t n, const Visit& visit) const {
        while (n > 0) {
            const std::int64_t m = std::min(n, tensors_[p.tensor].size - p.element);
            if (m > 0) visit(p.tensor, p.element, m);
            n -= m;
            p.element += m;
            if (p.element == tensors_[p.tensor].size) p = {p.tensor + 1, 0};
        }
        return p;
    }

    // The sum of a leaf's accumulators. Only the first `used` of them, a power of two, have received elements.
    template <class Combine = Addition> static double fold(double* sums, std::size_t used = reduction_width) {
        for (std::size_t w = used / 2; w > 0; w /= 2)
            for (std::size_t i = 0; i < w; ++i) sums[i] = Combine::of(sums[i], sums[i + w]);
        return sums[0];
    }
    // The sum of each part from the sums of the leaves, sums[leaf * stride].
    template <class Combine = Addition> std::vector<double> totals(const double* sums, std::size_t stride = 1) const {
        std::vector<double> out;
        out.reserve(parts_.size());
        std::vector<double> level;
        for (const ReductionPart& p : parts_) {
            level.resize(std::size_t(leaves_of(p.size)));
            for (std::size_t i = 0; i < level.size(); ++i) level[i] = sums[(std::size_t(p.first_leaf) + i) * stride];
            out.push_back(pairwise<Combine>(level));
        }
        return out;
    }
    template <class Combine = Addition> static double pairwise(std::vector<double>& level) {
        std::size_t n = level.size();
        if (n == 0) return Combine::none;
        for (; n > 1; n = (n + 1) / 2) {
            for (std::size_t i = 0; i < n / 2; ++i) level[i] = Combine::of(level[2 * i], level[2 * i + 1]);
            if (n % 2 != 0) level[n / 2] = level[n - 1];
        }
        return level[0];
    }

  private:
    static constexpr auto leaf_size = std::int64_t(reduction_leaf);
    std::span<const ParamUpdate> tensors_;
    std::vector<ReductionPart> parts_;
    std::int64_t count_ = 0;
    std::int64_t elements_ = 0;
};

}  // namespace adaptk::detail
