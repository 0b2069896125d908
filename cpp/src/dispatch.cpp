#include "dispatch.hpp"

#if defined(ADAPTK_X86_KERNELS) && defined(_MSC_VER)
#include "x86_level.hpp"
#endif

#include <array>
#include <atomic>
#include <cstdlib>

namespace adaptk::detail {
namespace {

#if defined(ADAPTK_X86_KERNELS) && defined(_MSC_VER)
[[maybe_unused]] bool has_v2() { return x86_level(ThisProcessor{}) >= 2; }
bool has_v3() { return x86_level(ThisProcessor{}) >= 3; }
bool has_v4() { return x86_level(ThisProcessor{}) >= 4; }
#elif defined(ADAPTK_X86_KERNELS)
// By features, not by level names, which older compilers do not know. The builtin asks the operating system too
// whether it saves the wide registers.
bool has_v2() {
    return __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("sse4.2") &&
           __builtin_cpu_supports("popcnt");
}
bool has_v3() {
    return has_v2() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("movbe");
}
bool has_v4() {
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

const auto& table() {
#if defined(ADAPTK_X86_KERNELS)
    static const std::array isas{
        Isa{"portable", true, &kernels_portable(), &scalars_portable()},
#if !defined(ADAPTK_NO_V2_KERNELS)
        Isa{"x86-64-v2", has_v2(), &kernels_v2(), &scalars_portable()},
#endif
        Isa{"x86-64-v3", has_v3(), &kernels_v3(), &scalars_v3()},
        Isa{"x86-64-v4", has_v4(), &kernels_v4(), &scalars_v3()},
    };
#elif defined(ADAPTK_NEON_KERNELS)
    static const std::array isas{Isa{"portable", true, &kernels_portable(), &scalars_portable()},
                                 Isa{"neon", true, &kernels_neon(), &scalars_portable()}};
#else
    static const std::array isas{Isa{"portable", true, &kernels_portable(), &scalars_portable()}};
#endif
    return isas;
}

const Isa* best() {
    const Isa* b = nullptr;
    for (const Isa& isa : table())
        if (isa.supported) b = &isa;
    return b;
}

std::atomic<const Isa*>& chosen() {
    static std::atomic<const Isa*> isa{best()};
    return isa;
}

}  // namespace

std::span<const Isa> built_isas() { return table(); }

const Isa& current_isa() { return *chosen().load(std::memory_order_relaxed); }

std::string choose_isa(std::string_view name) {
    std::string usable;
    for (const Isa& isa : table()) {
        if (name == isa.name && isa.supported) {
            chosen().store(&isa, std::memory_order_relaxed);
            return {};
        }
        if (isa.supported) usable += std::string(usable.empty() ? "" : ", ") + isa.name;
    }
    for (const Isa& isa : table())
        if (name == isa.name) return "this processor does not have " + std::string(name) + "; it has " + usable;
    return "unknown instruction set '" + std::string(name) + "'; this machine has " + usable;
}

std::string choose_isa_from_environment() {
    const char* name = std::getenv("ADAPTK_ISA");
    if (name == nullptr || *name == '\0') return {};
    const std::string error = choose_isa(name);
    return error.empty() ? error : "ADAPTK_ISA: " + error;
}

}  // namespace adaptk::detail
