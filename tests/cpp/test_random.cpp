// The random generator and its distributions: known answers, and the same bits for every instruction set and thread.
#include "adaptk/random.hpp"

#include "check.hpp"
#include "dispatch.hpp"
#include "random.hpp"
#include "threads.hpp"

#include <cinttypes>
#include <cstddef>
#include <cstring>
#include <vector>

namespace adaptk::test {
namespace {

using detail::Distributed;
using detail::Format;
using detail::RandomFill;

void test_known_answers() {
    // kat_vectors of Random123, philox4x32 with 10 rounds.
    const auto same = [](RandomWords w, std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
        return w.w0 == a && w.w1 == b && w.w2 == c && w.w3 == d;
    };
    CHECK(same(random_words(0, 0, 0), 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
    CHECK(same(random_words(UINT64_MAX, UINT64_MAX, UINT64_MAX), 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
    CHECK(same(random_words(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u), 0xd16cfe09u, 0x94fdccebu,
               0x5001e420u, 0x24126ea1u));
}

std::uint64_t hash_of(const std::vector<std::byte>& bytes) {
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (const std::byte b : bytes) hash = (hash ^ std::uint64_t(b)) * 0x100000001b3u;
    return hash;
}

struct Case {
    Distributed kind;
    Format format;
    std::uint64_t hash;
};

constexpr Case cases[] = {{Distributed::uniform, Format::float32, 0x5ce9d303f2026c40},
                          {Distributed::uniform, Format::float64, 0xef1c2653bc934019},
                          {Distributed::uniform, Format::bfloat16, 0xc3b0d25f217bde29},
                          {Distributed::normal, Format::float32, 0x54da681433bb627a},
                          {Distributed::normal, Format::float64, 0x35c8ea440a18539e},
                          {Distributed::normal, Format::float16, 0x59bb2fd7cd069f88},
                          {Distributed::truncated, Format::float32, 0x0b87f5e746183a6c},
                          {Distributed::truncated, Format::float64, 0xb692bfdef417893c},
                          {Distributed::truncated, Format::bfloat16, 0x239acf18a1c7398e}};

// The hashes are the same on every machine; parts with another alignment have the same numbers.
void test_bits(const char* isa, int threads) {
    constexpr std::int64_t size = 70001;
    for (const Case& c : cases) {
        RandomFill fill{c.kind, 0x123456789abcdefu};
        fill.shift = 0.25;
        fill.scale = 3;
        fill.low = 0.5;
        fill.high = 5;
        const std::size_t each = detail::size_of(c.format);
        std::vector<std::byte> whole(std::size_t(size) * each);
        detail::fill_random(fill, c.format, whole.data(), size);
        CHECK_THAT(hash_of(whole) == c.hash, "%s, %d threads, case %d: %016" PRIx64, isa, threads, int(&c - cases),
                   hash_of(whole));
        constexpr std::int64_t from = 1337, part = 5000;
        std::vector<std::byte> moved(std::size_t(part) * each + 1);
        fill.offset = std::uint64_t(from);
        detail::fill_random(fill, c.format, moved.data() + 1, part);
        CHECK(std::memcmp(moved.data() + 1, whole.data() + std::size_t(from) * each, std::size_t(part) * each) == 0);
    }
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk;
    test::test_known_answers();
    for (const detail::Isa& isa : detail::built_isas()) {
        if (!isa.supported) continue;
        CHECK_THAT(detail::choose_isa(isa.name).empty(), "%s", isa.name);
        for (const int threads : {1, 3}) {
            CHECK(detail::set_num_threads(threads).empty());
            test::test_bits(isa.name, threads);
        }
    }
    return test::finish();
}
