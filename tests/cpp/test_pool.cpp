// The thread pool: every share runs once, the first on the calling thread, also with concurrent callers.
#include "pool.hpp"
#include "threads.hpp"

#include "check.hpp"
#include "support.hpp"

#include <atomic>
#include <thread>
#include <vector>

namespace adaptk::test {
namespace {

// Runs counting shares and returns how many there were.
int run_shares(int threads) {
    std::vector<int> seen(std::size_t(threads), 0);
    std::atomic<int> team{0}, wrong_team{0};
    bool first_is_mine = false;
    const std::thread::id caller = std::this_thread::get_id();
    detail::run_on_threads(threads, [&](int k, int n) {
        // Not atomic: two threads with the same share would be a race.
        ++seen[std::size_t(k)];
        if (k == 0) first_is_mine = std::this_thread::get_id() == caller;
        const int before = team.exchange(n);
        if (before != 0 && before != n) ++wrong_team;
    });
    const int n = team;
    CHECK(wrong_team == 0 && first_is_mine);
    CHECK_THAT(n >= 1 && n <= threads, "%d of %d threads", n, threads);
    for (int k = 0; k < threads; ++k) CHECK_THAT(seen[std::size_t(k)] == (k < n ? 1 : 0), "share %d of %d", k, n);
    return n;
}

void test_shares() {
    CHECK(run_shares(1) == 1);
    for (int round = 0; round < (quick() ? 200 : 2000); ++round) {
        const int threads = 2 + round % 7;
        CHECK(run_shares(threads) == threads);
    }
    // More than there are processors, then fewer again.
    CHECK(run_shares(100) == 100);
    CHECK(run_shares(2) == 2);
}

// Nested work runs on the calling thread.
void test_within() {
    std::atomic<int> inner{0};
    detail::run_on_threads(4, [&](int, int) {
        for (int i = 0; i < 20; ++i) inner += run_shares(3);
    });
    CHECK(inner == 4 * 20);
}

// Several callers at once: those that find the pool busy run their work alone.
void test_callers() {
    std::vector<std::thread> callers;
    for (int c = 0; c < 6; ++c) {
        callers.emplace_back([] {
            for (int i = 0; i < 200; ++i) run_shares(2 + i % 3);
        });
    }
    for (std::thread& t : callers) t.join();
}

}  // namespace
}  // namespace adaptk::test

int main() {
    adaptk::test::test_shares();
    adaptk::test::test_within();
    adaptk::test::test_callers();
    CHECK(adaptk::detail::set_num_threads(7).empty() && adaptk::detail::num_threads() == 7);
    return adaptk::test::finish();
}
