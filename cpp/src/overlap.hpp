// Finds memory that is written and also belongs to another argument.
#pragma once

#include "export.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace adaptk::detail {

struct Extent {
    std::uintptr_t begin, end;
    std::uint32_t owner;  // the caller's number for the buffer
    bool operator==(const Extent&) const = default;
};

struct Clash {
    std::uint32_t first, second;  // owners
};

// The memory that a step writes, in the order of addresses. Searching it is cheap enough to be done for each gradient
// at every step; building it costs a sort, so callers keep it while the buffers stay.
class WrittenMemory {
  public:
    // Returns false and sets `clash` if two of them overlap. Empty extents are left out.
    ADAPTK_INTERNAL_API bool assign(std::vector<Extent> written, Clash& clash);

    // The owner of a written extent that overlaps [begin, end), or none.
    static constexpr std::uint32_t none = ~std::uint32_t{0};
    std::uint32_t find(std::uintptr_t begin, std::uintptr_t end) const;

  private:
    // The ends are stored separately, because the search reads nothing else.
    std::vector<std::uintptr_t> ends_;
    std::vector<std::uintptr_t> begins_;
    std::vector<std::uint32_t> owners_;
};

// Inline, because a step calls it for each gradient.
inline std::uint32_t WrittenMemory::find(std::uintptr_t begin, std::uintptr_t end) const {
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
