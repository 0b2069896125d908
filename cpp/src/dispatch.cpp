#include "dispatch.hpp"

#if defined(ADAPTK_X86_KERNELS)
#include "x86_level.hpp"
#endif

#include <array>
#include <atomic>
#include <cstdlib>

namespace adaptk::detail {
namespace {

// Sets each number to the index in the table.
template <std::size_t N> std::array<Isa, N> numbered(std::array<Isa, N> isas) {
    for (std::size_t i = 0; i < N; ++i) isas[i].number = i;
    return isas;
}

const auto& table() {
#if defined(ADAPTK_X86_KERNELS)
    static const int level = x86_level(ThisProcessor{});
    static const auto isas = numbered(std::array{
        Isa{"portable", true, &kernels_portable(), &coefficients_portable(), &row_wise_portable()},
#if !defined(ADAPTK_NO_V2_KERNELS)
        Isa{"x86-64-v2", level >= 2, &kernels_v2(), &coefficients_portable(), &row_wise_v2()},
#endif
        Isa{"x86-64-v3", level >= 3, &kernels_v3(), &coefficients_v3(), &row_wise_v3()},
#if !defined(ADAPTK_NO_V4_KERNELS)
        Isa{"x86-64-v4", level >= 4, &kernels_v4(), &coefficients_v3(), &row_wise_v4()},
#endif
    });
#elif defined(ADAPTK_NEON_KERNELS)
    // Every such processor has these vectors, and the portable kernels use them.
    static const auto isas =
        numbered(std::array{Isa{"portable", true, &kernels_portable(), &coefficients_portable(), &row_wise_portable()},
                            Isa{"neon", true, &kernels_portable(), &coefficients_portable(), &row_wise_portable()}});
#else
    static const auto isas = numbered(
        std::array{Isa{"portable", true, &kernels_portable(), &coefficients_portable(), &row_wise_portable()}});
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
