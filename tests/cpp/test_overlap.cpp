// The search for aliasing memory (written twice, or written and read) against comparing every pair.
#include "overlap.hpp"

#include "check.hpp"
#include "support.hpp"

namespace adaptk::test {
namespace {

using detail::Clash;
using detail::Extent;
using detail::WrittenMemory;

bool overlap(const Extent& a, std::uintptr_t begin, std::uintptr_t end) {
    return a.begin < a.end && begin < end && a.begin < end && begin < a.end;
}

const Extent* owned(const std::vector<Extent>& all, std::uint32_t owner) {
    for (const Extent& e : all)
        if (e.owner == owner) return &e;
    return nullptr;
}

bool any_pair(const std::vector<Extent>& all) {
    for (std::size_t i = 0; i < all.size(); ++i)
        for (std::size_t j = i + 1; j < all.size(); ++j)
            if (overlap(all[i], all[j].begin, all[j].end)) return true;
    return false;
}

void check_searches(const WrittenMemory& memory, const std::vector<Extent>& all, std::uintptr_t space, Random& random) {
    for (int q = 0; q < 60; ++q) {
        const std::uintptr_t begin = random.below(space + 10);
        const std::uintptr_t end = begin + (random.below(4) == 0 ? random.below(space) : random.below(6));
        const std::uint32_t found = memory.find(begin, end);
        if (found == WrittenMemory::none) {
            for (const Extent& e : all) CHECK(!overlap(e, begin, end));
        } else {
            const Extent* e = owned(all, found);
            CHECK(e != nullptr && overlap(*e, begin, end));
        }
    }
    for (const Extent& e : all) {
        if (e.begin == e.end) continue;
        CHECK(memory.find(e.begin, e.end) == e.owner);
        CHECK(memory.find(e.begin, e.begin + 1) == e.owner);
        CHECK(memory.find(e.end - 1, e.end) == e.owner);
        CHECK(memory.find(e.begin, e.begin) == WrittenMemory::none);
    }
}

// Random extents, in a space so small that about half of the lists overlap.
void test_random() {
    Random random(1);
    const int rounds = quick() ? 2000 : 20000;
    int clashes = 0;
    for (int round = 0; round < rounds; ++round) {
        const std::size_t count = random.below(12);
        const std::uintptr_t space = 16 + random.below(200);
        std::vector<Extent> all;
        for (std::size_t i = 0; i < count; ++i) {
            const std::uintptr_t begin = random.below(space);
            all.push_back({begin, begin + random.below(7), std::uint32_t(100 + 3 * i)});
        }
        WrittenMemory memory;
        Clash clash{};
        const bool fits = memory.assign(all, clash);
        CHECK(fits == !any_pair(all));
        if (fits) {
            check_searches(memory, all, space, random);
        } else {
            ++clashes;
            const Extent* a = owned(all, clash.first);
            const Extent* b = owned(all, clash.second);
            CHECK(a != nullptr && b != nullptr && a != b && overlap(*a, b->begin, b->end));
        }
    }
    CHECK(clashes > rounds / 10 && clashes < rounds * 9 / 10);
}

// Disjoint extents of every number, touching or with gaps, in any order: each length of the search.
void test_disjoint() {
    Random random(2);
    for (std::size_t count = 0; count < 140; ++count) {
        std::vector<Extent> all;
        std::uintptr_t at = random.below(5);
        for (std::size_t i = 0; i < count; ++i) {
            const std::uintptr_t size = random.below(5);
            all.push_back({at, at + size, std::uint32_t(i)});
            at += size + (random.below(2) == 0 ? 0 : random.below(9));
        }
        for (std::size_t i = count; i > 1; --i) std::swap(all[i - 1], all[random.below(i)]);
        WrittenMemory memory;
        Clash clash{};
        CHECK(memory.assign(all, clash));
        check_searches(memory, all, at + 1, random);
        // Every address, one by one.
        for (std::uintptr_t a = 0; a < at + 3; ++a) {
            const std::uint32_t found = memory.find(a, a + 1);
            std::uint32_t wanted = WrittenMemory::none;
            for (const Extent& e : all)
                if (overlap(e, a, a + 1)) wanted = e.owner;
            CHECK(found == wanted);
        }
    }
}

void test_edges() {
    const std::uintptr_t last = ~std::uintptr_t{0};
    WrittenMemory memory;
    Clash clash{};
    CHECK(memory.find(0, last) == WrittenMemory::none);
    CHECK(memory.assign({}, clash) && memory.find(0, last) == WrittenMemory::none);
    CHECK(memory.assign({{5, 5, 1}, {5, 5, 2}}, clash) && memory.find(0, last) == WrittenMemory::none);
    CHECK(memory.assign({{last - 8, last, 7}, {0, 8, 9}}, clash));
    CHECK(memory.find(last - 1, last) == 7 && memory.find(0, 1) == 9 &&
          memory.find(8, last - 8) == WrittenMemory::none);
    // One inside another, one that is the same, one that contains all.
    CHECK(!memory.assign({{10, 100, 1}, {20, 30, 2}}, clash));
    CHECK(!memory.assign({{10, 20, 1}, {10, 20, 2}}, clash));
    CHECK(!memory.assign({{10, 20, 1}, {30, 40, 2}, {0, 50, 3}}, clash));
    // An empty extent inside a written one is not an overlap.
    CHECK(memory.assign({{10, 20, 1}, {15, 15, 2}}, clash) && memory.find(15, 16) == 1);
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    test_random();
    test_disjoint();
    test_edges();
    return finish();
}
