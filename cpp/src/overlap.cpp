#include "overlap.hpp"

#include <algorithm>

namespace adaptk::detail {

bool WrittenMemory::assign(std::vector<Extent> written, Clash& clash) {
    std::erase_if(written, [](const Extent& e) { return e.begin == e.end; });
    const auto before = [](const Extent& a, const Extent& b) { return a.begin < b.begin; };
    if (!std::is_sorted(written.begin(), written.end(), before)) std::sort(written.begin(), written.end(), before);
    for (std::size_t i = 1; i < written.size(); ++i) {
        if (written[i].begin < written[i - 1].end) {
            clash = {written[i - 1].owner, written[i].owner};
            return false;
        }
    }
    ends_.clear();
    begins_.clear();
    owners_.clear();
    for (const Extent& e : written) {
        ends_.push_back(e.end);
        begins_.push_back(e.begin);
        owners_.push_back(e.owner);
    }
    return true;
}

std::uint32_t WrittenMemory::find(std::uintptr_t begin, std::uintptr_t end) const {
    if (begin == end) return none;
    // The first extent that ends after `begin`, by a search without branches: the extents are disjoint, so their ends
    // are sorted too, and only that one can reach into [begin, end).
    const std::uintptr_t* base = ends_.data();
    std::size_t n = ends_.size();
    if (n == 0) return none;
    while (n > 1) {
        const std::size_t half = n / 2;
        base = base[half - 1] <= begin ? base + half : base;
        n -= half;
    }
    const std::size_t i = std::size_t(base - ends_.data()) + (*base <= begin ? 1 : 0);
    return i < begins_.size() && begins_[i] < end ? owners_[i] : none;
}

}  // namespace adaptk::detail
