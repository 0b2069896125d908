// The level of x86-64 that a processor and its operating system support, from the instruction CPUID: compilers differ
// in the features that their __builtin_cpu_supports knows (Clang 14: not F16C, LZCNT and MOVBE). Leaves and bits: Intel
// 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID and XGETBV; levels: x86-64 psABI, 1.0, table
// 3.1.
#pragma once

#include <cstdint>

#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

namespace adaptk::detail {

struct CpuidRegisters {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// The processor that runs this.
struct ThisProcessor {
    CpuidRegisters cpuid(std::uint32_t leaf) const {
        CpuidRegisters r;
#if defined(_MSC_VER)
        int values[4];
        __cpuidex(values, int(leaf), 0);
        r = {std::uint32_t(values[0]), std::uint32_t(values[1]), std::uint32_t(values[2]), std::uint32_t(values[3])};
#else
        __cpuid_count(leaf, 0, r.eax, r.ebx, r.ecx, r.edx);
#endif
        return r;
    }
    // The registers that the operating system saves. Only valid if CPUID reports OSXSAVE.
    std::uint64_t saved() const {
#if defined(_MSC_VER)
        return _xgetbv(0);
#else
        std::uint32_t low = 0, high = 0;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        return std::uint64_t(high) << 32 | low;
#endif
    }
};

// 1 to 4.
template <class Processor> int x86_level(const Processor& processor) {
    const auto has = [](std::uint32_t bits, auto... wanted) { return (((bits >> wanted) & 1u) && ...); };
    const std::uint32_t most = processor.cpuid(0).eax;
    const std::uint32_t basic = processor.cpuid(1).ecx;
    // CMPXCHG16B, POPCNT, SSE3, SSE4.1, SSE4.2, SSSE3.
    if (!has(basic, 13, 23, 0, 19, 20, 9)) return 1;
    const std::uint32_t structured = most >= 7 ? processor.cpuid(7).ebx : 0;
    const std::uint32_t extended =
        processor.cpuid(0x80000000u).eax > 0x80000000u ? processor.cpuid(0x80000001u).ecx : 0;
    // AVX, F16C, FMA, MOVBE, OSXSAVE; AVX2, BMI1, BMI2; LZCNT. The system saves XMM and YMM.
    if (!has(basic, 28, 29, 12, 22, 27) || !has(structured, 5, 3, 8) || !has(extended, 5)) return 2;
    const std::uint64_t saved = processor.saved();
    if ((saved & 0x06) != 0x06) return 2;
    // AVX512 F, BW, CD, DQ, VL. The system saves masks and ZMM.
    return has(structured, 16, 30, 28, 17, 31) && (saved & 0xe6) == 0xe6 ? 4 : 3;
}

}  // namespace adaptk::detail
