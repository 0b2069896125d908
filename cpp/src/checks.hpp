// Preconditions of the core, which builds for development check (ADAPTK_DEVELOPMENT_CHECKS): if one is violated, the
// program ends with its text.
#pragma once

#if defined(ADAPTK_DEVELOPMENT_CHECKS)

#include "rows.hpp"
#include "step.hpp"

#include <cstdio>
#include <cstdlib>
#include <span>

#define ADAPTK_CHECKS(call) (call)
#define ADAPTK_PROMISED(condition)                                                                                     \
    ((condition) ? void() : ::adaptk::detail::broken_promise(#condition, __FILE__, __LINE__))

namespace adaptk::detail {

[[noreturn]] inline void broken_promise(const char* text, const char* file, int line) {
    std::fprintf(stderr, "adaptk: %s:%d: not so: %s\n", file, line, text);
    std::abort();
}

inline void check_work(std::span<const ParamUpdate> tensors, std::span<const Segment> segments) {
    std::size_t tensor = 0;
    for (const Segment& s : segments) {
        ADAPTK_PROMISED(s.rule != nullptr && !s.rule->code.empty());
        ADAPTK_PROMISED(s.step >= 1);
        ADAPTK_PROMISED(tensor + s.count <= tensors.size());
        for (std::size_t i = 0; i < s.count; ++i, ++tensor) {
            const ParamUpdate& t = tensors[tensor];
            const Format compute = compute_format(t.param());
            ADAPTK_PROMISED(t.size >= 0);
            ADAPTK_PROMISED((t.row_buffer == 0) == !s.rule->is_row_wise());
            for (std::size_t b = 0; b < s.rule->buffers(); ++b) {
                if (b == 1 && t.rows != nullptr && !t.rows->whole) continue;
                const FormatInfo& f = info_of(t.format[b]);
                ADAPTK_PROMISED(t.size == 0 || t.buffer[b] != nullptr);
                ADAPTK_PROMISED(!has_side(f.id) || t.size == 0 || t.side[b] != nullptr);
                ADAPTK_PROMISED(b == 1 ? is_plain(t.format[b]) : f.compute == compute && (b == 0 || f.of_states));
                for (std::size_t a = 0; a < b; ++a) {
                    if (a == 1 && t.rows != nullptr && !t.rows->whole) continue;
                    const auto* const x = static_cast<const std::byte*>(t.buffer[a]);
                    const auto* const y = static_cast<const std::byte*>(t.buffer[b]);
                    ADAPTK_PROMISED(t.size == 0 || x + t.bytes(a) <= y || y + t.bytes(b) <= x);
                }
            }
        }
    }
    ADAPTK_PROMISED(tensor == tensors.size());
}

}  // namespace adaptk::detail

#else
#define ADAPTK_CHECKS(call) void()
#define ADAPTK_PROMISED(condition) void()
#endif
