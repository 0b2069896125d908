// Finds memory that is written and also belongs to another argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace adaptk::detail {

struct Extent {
    std::uintptr_t begin, end;
    std::uint32_t owner;  // the caller's number for the buffer
};

struct Clash {
    std::uint32_t first, second;  // owners
};

// The memory that a step writes, in the order of addresses. Searching it is cheap enough to be done for each gradient
// at every step; building it costs a sort, so callers keep it while the buffers stay.
class WrittenMemory {
  public:
    // Returns false and says which two in `clash` if two of them overlap. Empty extents are left out.
    bool assign(std::vector<Extent> written, Clash& clash);

    // The owner of a written extent that overlaps [begin, end), or none.
    static constexpr std::uint32_t none = ~std::uint32_t{0};
    std::uint32_t find(std::uintptr_t begin, std::uintptr_t end) const;

  private:
    // The ends apart from the rest, since the search reads nothing else.
    std::vector<std::uintptr_t> ends_;
    std::vector<std::uintptr_t> begins_;
    std::vector<std::uint32_t> owners_;
};

}  // namespace adaptk::detail
