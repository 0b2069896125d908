// Checks that count, print what failed, and decide the program's exit status.
#pragma once

#include <atomic>
#include <cstdio>

namespace adaptk::test {

inline std::atomic<long> checks{0};
inline std::atomic<long> failures{0};

// A wrong kernel fails thousands of checks in the same way: print only the first.
inline constexpr long most_printed = 30;

inline bool record(bool ok, const char* file, int line) {
    ++checks;
    if (ok) return true;
    const long n = ++failures;
    if (n <= most_printed) std::printf("%s:%d: ", file, line);
    return false;
}

inline int finish() {
    std::printf("%ld checks, %ld failed\n", checks.load(), failures.load());
    return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace adaptk::test

// CHECK_THAT(condition, format, values...) prints a message if it fails.
#define CHECK_THAT(condition, ...)                                                                                     \
    do {                                                                                                               \
        if (!adaptk::test::record(bool(condition), __FILE__, __LINE__) &&                                              \
            adaptk::test::failures <= adaptk::test::most_printed) {                                                    \
            std::printf("%s: ", #condition);                                                                           \
            std::printf(__VA_ARGS__);                                                                                  \
            std::printf("\n");                                                                                         \
            std::fflush(stdout);                                                                                       \
        }                                                                                                              \
    } while (false)
#define CHECK(condition) CHECK_THAT(condition, "is false")
