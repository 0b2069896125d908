// The choices of threads and instruction set, which live in the extension _core, for the other extensions: it keeps a
// pointer to this in a capsule.
#pragma once

namespace adaptk::detail {

inline constexpr const char* machine_capsule = "adaptk._core.machine";

struct Machine {
    int (*threads)();
    const char* (*isa)();
};

}  // namespace adaptk::detail
