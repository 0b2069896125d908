// The loops around the rules. This file is compiled once for each instruction set, whose name is ADAPTK_TARGET and
// which the compiler's flags select. All loops have internal linkage; one function is exported. If two such objects
// shared a symbol, the linker could choose the one that this processor cannot run.
#include "compiler.hpp"
#include "format_kernels.hpp"
#include "kernel_table.hpp"
#include "program_kernels.hpp"
#include "stored_kernels.hpp"

#include "adaptk/prefetch.hpp"
#include "adaptk/rule_loop.hpp"

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define ADAPTK_CONCAT2(a, b) a##b
#define ADAPTK_CONCAT(a, b) ADAPTK_CONCAT2(a, b)

namespace adaptk::detail {
namespace {

using std::size_t;

template <class T, size_t... I>
ADAPTK_HD void probe_run(size_t n, T* ADAPTK_RESTRICT p, const T* ADAPTK_RESTRICT g, Stream<I, T>... s) {
    ADAPTK_INDEPENDENT
    for (size_t i = 0; i < n; ++i) {
        const T gi = g[i];
        p[i] = p[i] + gi;
        ((s[i] = s[i] + gi), ...);
    }
}

template <class T, size_t... I>
void probe_loop(size_t n, T* ADAPTK_RESTRICT p, const T* ADAPTK_RESTRICT g, Stream<I, T>... s) {
    in_blocks<T>(
        n, [](size_t m, T* pm, const T* gm, Stream<I, T>... sm) { probe_run<T, I...>(m, pm, gm, sm...); }, p, g, s...);
}

template <class T, size_t... I> void probe_unpack(void* const* b, size_t n, std::index_sequence<I...>) {
    probe_loop<T, I...>(n, static_cast<T*>(b[0]), static_cast<const T*>(b[1]), static_cast<T*>(b[2 + I])...);
}

template <class T, size_t Written> void bandwidth_probe(const void*, void* const* b, size_t n) {
    probe_unpack<T>(b, n, std::make_index_sequence<Written - 1>{});
}

std::uint64_t read_probe(const void* lines, size_t count) {
    constexpr size_t words = cache_line / sizeof(std::uint64_t), ahead = 8192;
    const auto* ADAPTK_RESTRICT x = static_cast<const std::uint64_t*>(lines);
    std::uint64_t seen[words] = {};
    for (; count > 0; --count, x += words) {
        prefetch<CacheLevel::second>(x, ahead, cache_line);
        for (size_t i = 0; i < words; ++i) seen[i] |= x[i];
    }
    std::uint64_t all = 0;
    for (const std::uint64_t word : seen) all |= word;
    return all;
}

template <class T> void add_scaled(const void* coefficients, void* const* b, size_t n) {
    const T factor = T(*static_cast<const double*>(coefficients));
    auto* ADAPTK_RESTRICT p = static_cast<T*>(b[0]);
    const auto* ADAPTK_RESTRICT x = static_cast<const T*>(b[1]);
    for (size_t i = 0; i < n; ++i) p[i] = p[i] + factor * x[i];
}

template <class T> void add_to_average(void* average, const void* values, double weight, size_t n) {
    auto* ADAPTK_RESTRICT a = static_cast<T*>(average);
    const auto* ADAPTK_RESTRICT x = static_cast<const T*>(values);
    const T w = T(weight), rest = T(1) - w;
    if (w < T(0.5)) {
        for (size_t i = 0; i < n; ++i) a[i] = a[i] + w * (x[i] - a[i]);
    } else {
        for (size_t i = 0; i < n; ++i) a[i] = x[i] - (x[i] - a[i]) * rest;
    }
}

struct Square {
    static ADAPTK_HD double with(double sum, double v) { return sum + v * v; }
    // The same for v of at most 26 bits: its square is exact, so FMA gives the same bits.
    static ADAPTK_HD double with_short(double sum, double v) {
#if defined(ADAPTK_GNU) && (defined(__FMA__) || defined(__ARM_FEATURE_FMA))
        return __builtin_fma(v, v, sum);
#else
        return with(sum, v);
#endif
    }
};
struct Value {
    static ADAPTK_HD double with(double sum, double v) { return sum + v; }
};
struct Largest {
    static ADAPTK_HD double with(double most, double v) { return larger(most, v); }
};

// A stored bfloat16, and its conversion to double.
struct BFloat16Bits {
    std::uint16_t bits;
    ADAPTK_HD explicit operator double() const { return double(std::bit_cast<float>(std::uint32_t(bits) << 16)); }
};

template <class Op, bool Scaled, class T> ADAPTK_HD double add_term(double sum, const T& value, double scale) {
    if constexpr (Scaled) {
        return Op::with(sum, scale * double(value));
    } else if constexpr (std::is_same_v<Op, Square> && sizeof(T) <= sizeof(float)) {
        return Op::with_short(sum, double(value));
    } else {
        return Op::with(sum, double(value));
    }
}

// Adds n elements of a row, and those below them in the following rows, to their accumulators. Each accumulator adds
// its elements in the order of rows, so the width of a vector changes no bit. With several rows at once, an accumulator
// stays in a register between its additions.
template <class Op, bool Scaled, class T, size_t... Row>
ADAPTK_HD void add_rows(const T* ADAPTK_RESTRICT x, size_t n, double scale, double* ADAPTK_RESTRICT sums,
                        std::index_sequence<Row...>) {
    for (size_t i = 0; i < n; ++i) {
        double sum = sums[i];
        ((sum = add_term<Op, Scaled>(sum, x[i + Row * reduction_width], scale)), ...);
        sums[i] = sum;
    }
}

// Memory is prefetched line by line, between the sums. A core reads 13 GB/s with prefetches into L2, 10 with prefetches
// into L1, which allows fewer requests at once, and 6 with its own prefetchers alone (64M floats).
constexpr size_t rows_at_once = 2;
constexpr size_t sum_ahead_bytes = 8192;
using RowsAtOnce = std::make_index_sequence<rows_at_once>;

template <size_t... Row> ADAPTK_HD void prefetch_rows(const void* x, size_t row_bytes, std::index_sequence<Row...>) {
    (prefetch<CacheLevel::second>(x, sum_ahead_bytes + Row * row_bytes, cache_line), ...);
}

template <class Op, bool Scaled, class T> void add_whole_rows(const T* x, size_t n, double scale, double* sums) {
    constexpr size_t in_line = cache_line / sizeof(T);
    for (; n > 0; n -= rows_at_once * reduction_width, x += rows_at_once * reduction_width)
        for (size_t i = 0; i < reduction_width; i += in_line) {
            prefetch_rows(x + i, reduction_width * sizeof(T), RowsAtOnce{});
            add_rows<Op, Scaled>(x + i, in_line, scale, sums + i, RowsAtOnce{});
        }
}

// Two neighbouring elements are loaded as one 32-bit word, and one operation makes each of them a float32. Loaded
// singly, they would have to be widened first. So the accumulators of even and odd elements are in two arrays during
// this loop.
struct Pair {
    BFloat16Bits half[2];
};
struct First {
    Pair pair;
    ADAPTK_HD explicit operator double() const {
        return double(std::bit_cast<float>(std::bit_cast<std::uint32_t>(pair) << 16));
    }
};
struct Second {
    Pair pair;
    ADAPTK_HD explicit operator double() const {
        return double(std::bit_cast<float>(std::bit_cast<std::uint32_t>(pair) & 0xFFFF0000U));
    }
};

template <class Op, bool Scaled, size_t... Row>
ADAPTK_HD void add_pairs(const BFloat16Bits* x, double scale, double* ADAPTK_RESTRICT even, double* ADAPTK_RESTRICT odd,
                         std::index_sequence<Row...>) {
    for (size_t i = 0; i < cache_line / sizeof(Pair); ++i) {
        double e = even[i], o = odd[i];
        const auto add = [&](const BFloat16Bits* at) {
            Pair pair;
            std::memcpy(&pair, at, sizeof pair);
            e = add_term<Op, Scaled>(e, First{pair}, scale);
            o = add_term<Op, Scaled>(o, Second{pair}, scale);
        };
        (add(x + 2 * i + Row * reduction_width), ...);
        even[i] = e;
        odd[i] = o;
    }
}

template <class Op, bool Scaled> void add_whole_rows(const BFloat16Bits* x, size_t n, double scale, double* sums) {
    constexpr size_t in_line = cache_line / sizeof(BFloat16Bits), half = reduction_width / 2;
    alignas(cache_line) double even[half], odd[half];
    for (size_t i = 0; i < half; ++i) {
        even[i] = sums[2 * i];
        odd[i] = sums[2 * i + 1];
    }
    for (; n > 0; n -= rows_at_once * reduction_width, x += rows_at_once * reduction_width)
        for (size_t i = 0; i < reduction_width; i += in_line) {
            prefetch_rows(x + i, reduction_width * sizeof(BFloat16Bits), RowsAtOnce{});
            add_pairs<Op, Scaled>(x + i, scale, even + i / 2, odd + i / 2, RowsAtOnce{});
        }
    for (size_t i = 0; i < half; ++i) {
        sums[2 * i] = even[i];
        sums[2 * i + 1] = odd[i];
    }
}

// Never inline: a test looks for fused operations in each instance.
template <class Op, bool Scaled, class T>
[[gnu::noinline]] void add_scaled_terms(const T* x, size_t n, size_t phase, double scale, double* sums) {
    if constexpr (std::is_floating_point_v<T>) {
        // A block of a program, whose number of elements the compiler knows.
        constexpr size_t block = block_elements<T>;
        if (n == block && phase + block <= reduction_width) {
            add_rows<Op, Scaled>(x, block, scale, sums + phase, std::make_index_sequence<1>{});
            return;
        }
    }
    while (n > 0) {
        constexpr size_t together = rows_at_once * reduction_width;
        if (phase == 0 && n >= together) {
            const size_t whole = n / together * together;
            add_whole_rows<Op, Scaled>(x, whole, scale, sums);
            x += whole;
            n -= whole;
            continue;
        }
        const size_t row = reduction_width - phase;
        const size_t run = n < row ? n : row;
        add_rows<Op, Scaled>(x, run, scale, sums + phase, std::make_index_sequence<1>{});
        x += run;
        n -= run;
        phase = 0;
    }
}

template <class Op, class T> void add_terms(const void* values, size_t n, size_t phase, double scale, double* sums) {
    const auto* x = static_cast<const T*>(values);
    if (scale == 1.0) {
        add_scaled_terms<Op, false>(x, n, phase, scale, sums);
    } else {
        add_scaled_terms<Op, true>(x, n, phase, scale, sums);
    }
}

template <class... R, class... F> constexpr KernelTable make_table(RuleList<R...>, FormatList<F...>) {
    return {
        {{{{step<kernel_of_t<R>, float, false>, step<kernel_of_t<R>, float, true>},
           {step<kernel_of_t<R>, double, false>, step<kernel_of_t<R>, double, true>}},
          stored_kernel_of<R>()}...},
        {kernels_of<F>()...},
        {{{add_terms<Square, float>, add_terms<Square, double>, add_terms<Square, BFloat16Bits>}},
         {{add_terms<Value, float>, add_terms<Value, double>, nullptr}},
         {{add_terms<Largest, float>, add_terms<Largest, double>, nullptr}}},
        {{bandwidth_probe<float, 1>, bandwidth_probe<double, 1>},
         {bandwidth_probe<float, 2>, bandwidth_probe<double, 2>},
         {bandwidth_probe<float, 3>, bandwidth_probe<double, 3>},
         {bandwidth_probe<float, 4>, bandwidth_probe<double, 4>},
         {bandwidth_probe<float, 5>, bandwidth_probe<double, 5>}},
        read_probe,
        {add_scaled<float>, add_scaled<double>},
        {add_to_average<float>, add_to_average<double>},
        {run_program<float>, run_program<double>},
        {block_elements<float>, block_elements<double>},
    };
}

constexpr KernelTable table = make_table(Rules{}, Formats{});

}  // namespace

const KernelTable& ADAPTK_CONCAT(kernels_, ADAPTK_TARGET)() { return table; }

}  // namespace adaptk::detail
