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

}  // namespace adaptk::detail
