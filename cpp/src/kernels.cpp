// The loops around the rules. This file is compiled once for each instruction set, with ADAPTK_TARGET naming it and
// the compiler's flags choosing it; it holds plain loops only, all of them internal to the object, and exports one
// function. A symbol that two such objects shared could be linked from the one that this processor cannot run.
#include "compiler.hpp"
#include "kernel_table.hpp"

#include "adaptk/dtypes.hpp"

#include <utility>

// MSVC has no macro of its own for these instructions; every processor with AVX2 has them.
#if defined(__F16C__) || (defined(_MSC_VER) && defined(__AVX2__))
#define ADAPTK_F16C 1
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define ADAPTK_CONCAT2(a, b) a##b
#define ADAPTK_CONCAT(a, b) ADAPTK_CONCAT2(a, b)

namespace adaptk::detail {
namespace {

using std::size_t;

template <size_t, class T> using Stream = T* ADAPTK_RESTRICT;

// Long loops ask for memory ahead of where they are. The processor's own prefetchers follow up to seven streams, but a
// root and a division for each element leave them too few requests under way: measured on two cores with 64M elements,
// Adam ran at 0.87 of the streams' bandwidth without and at 1.0 with it. Asked for in blocks, since a prefetch inside
// the loop would keep the compiler from vectorising it.
constexpr size_t block_bytes = 256;
constexpr size_t ahead_bytes = 2048;
constexpr size_t long_bytes = 16384;

// Calls run(offset, count, ...) over blocks with the memory ahead of them asked for, then over what is left.
template <class T, class Run, class... Streams> ADAPTK_HD void in_blocks(size_t n, const Run& run, Streams... stream) {
    constexpr size_t block = block_bytes / sizeof(T);
    size_t i = 0;
    if (n >= long_bytes / sizeof(T)) {
        for (; i + block <= n; i += block) {
            (prefetch(stream + i, ahead_bytes, block_bytes), ...);
            run(block, (stream + i)...);
        }
    }
    run(n - i, (stream + i)...);
}

template <class R, class T, bool Coupled, size_t... I>
ADAPTK_HD void rule_run(const StepScalars<R, T>& c, size_t n, T* ADAPTK_RESTRICT p, const T* ADAPTK_RESTRICT g,
                        Stream<I, T>... s) {
    ADAPTK_INDEPENDENT
    for (size_t i = 0; i < n; ++i) {
        T pi = p[i];
        T gi = g[i];
        prepare<Coupled>(c.before, pi, gi);
        R::update(c.rule, pi, gi, s[i]...);
        p[i] = pi;
    }
}

template <class R, class T, bool Coupled, size_t... I>
void rule_loop(StepScalars<R, T> c, size_t n, T* ADAPTK_RESTRICT p, const T* ADAPTK_RESTRICT g, Stream<I, T>... s) {
    in_blocks<T>(
        n,
        [&c](size_t m, T* pm, const T* gm, Stream<I, T>... sm) { rule_run<R, T, Coupled, I...>(c, m, pm, gm, sm...); },
        p, g, s...);
}

template <class R, class T, bool Coupled, size_t... I>
void unpack(const void* scalars, void* const* b, size_t n, std::index_sequence<I...>) {
    rule_loop<R, T, Coupled, I...>(*static_cast<const StepScalars<R, T>*>(scalars), n, static_cast<T*>(b[0]),
                                   static_cast<const T*>(b[1]), static_cast<T*>(b[2 + I])...);
}

template <class R, class T, bool Coupled> void step(const void* scalars, void* const* b, size_t n) {
    unpack<R, T, Coupled>(scalars, b, n, std::make_index_sequence<R::states.size()>{});
}

template <class T, size_t... I>
ADAPTK_HD void ceiling_run(size_t n, T* ADAPTK_RESTRICT p, const T* ADAPTK_RESTRICT g, Stream<I, T>... s) {
    ADAPTK_INDEPENDENT
    for (size_t i = 0; i < n; ++i) {
        const T gi = g[i];
        p[i] = p[i] + gi;
        ((s[i] = s[i] + gi), ...);
    }
}

template <class T, size_t... I>
void ceiling_loop(size_t n, T* ADAPTK_RESTRICT p, const T* ADAPTK_RESTRICT g, Stream<I, T>... s) {
    in_blocks<T>(
        n, [](size_t m, T* pm, const T* gm, Stream<I, T>... sm) { ceiling_run<T, I...>(m, pm, gm, sm...); }, p, g,
        s...);
}

template <class T, size_t... I> void ceiling_unpack(void* const* b, size_t n, std::index_sequence<I...>) {
    ceiling_loop<T, I...>(n, static_cast<T*>(b[0]), static_cast<const T*>(b[1]), static_cast<T*>(b[2 + I])...);
}

template <class T, size_t Written> void ceiling(const void*, void* const* b, size_t n) {
    ceiling_unpack<T>(b, n, std::make_index_sequence<Written - 1>{});
}

void widen_bf16(const void* from, float* to, size_t n) {
    const auto* ADAPTK_RESTRICT x = static_cast<const std::uint16_t*>(from);
    auto* ADAPTK_RESTRICT y = to;
    for (size_t i = 0; i < n; ++i) y[i] = adaptk::widen_bf16(x[i]);
}

void narrow_bf16(const float* from, void* to, size_t n) {
    const auto* ADAPTK_RESTRICT x = from;
    auto* ADAPTK_RESTRICT y = static_cast<std::uint16_t*>(to);
    for (size_t i = 0; i < n; ++i) y[i] = adaptk::narrow_bf16(x[i]);
}

void widen_f16(const void* from, float* to, size_t n) {
    const auto* ADAPTK_RESTRICT x = static_cast<const std::uint16_t*>(from);
    auto* ADAPTK_RESTRICT y = to;
    size_t i = 0;
#if defined(ADAPTK_F16C)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
#elif defined(__aarch64__)
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + i))));
#endif
    for (; i < n; ++i) y[i] = adaptk::widen_f16(x[i]);
}

void narrow_f16(const float* from, void* to, size_t n) {
    const auto* ADAPTK_RESTRICT x = from;
    auto* ADAPTK_RESTRICT y = static_cast<std::uint16_t*>(to);
    size_t i = 0;
#if defined(ADAPTK_F16C)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__aarch64__)
    for (; i + 4 <= n; i += 4) vst1_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
#endif
    for (; i < n; ++i) y[i] = adaptk::narrow_f16(x[i]);
}

void widen_f32(const float* from, double* to, size_t n) {
    const auto* ADAPTK_RESTRICT x = from;
    auto* ADAPTK_RESTRICT y = to;
    for (size_t i = 0; i < n; ++i) y[i] = double(x[i]);
}

// One run of elements that stay within a row of lanes: every lane gets one term, so the order of a lane's additions
// is the order of rows, whatever the width of a vector.
template <class T> void add_squares(const T* ADAPTK_RESTRICT x, size_t n, double scale, double* ADAPTK_RESTRICT lanes) {
    for (size_t i = 0; i < n; ++i) {
        const double v = scale * double(x[i]);
        lanes[i] = lanes[i] + v * v;
    }
}

template <class T> void squares(const T* x, size_t n, size_t phase, double scale, double* lanes) {
    while (n > 0) {
        const size_t row = norm_lanes - phase;
        const size_t run = n < row ? n : row;
        add_squares(x, run, scale, lanes + phase);
        x += run;
        n -= run;
        phase = 0;
    }
}

template <class... R> constexpr KernelTable make_table(RuleList<R...>) {
    return {
        {{{step<kernel_of_t<R>, float, false>, step<kernel_of_t<R>, float, true>},
          {step<kernel_of_t<R>, double, false>, step<kernel_of_t<R>, double, true>}}...},
        {{ceiling<float, 1>, ceiling<double, 1>},
         {ceiling<float, 2>, ceiling<double, 2>},
         {ceiling<float, 3>, ceiling<double, 3>},
         {ceiling<float, 4>, ceiling<double, 4>},
         {ceiling<float, 5>, ceiling<double, 5>}},
        widen_bf16,
        widen_f16,
        narrow_bf16,
        narrow_f16,
        widen_f32,
        squares<float>,
        squares<double>,
    };
}

constexpr KernelTable table = make_table(Rules{});

}  // namespace

const KernelTable& ADAPTK_CONCAT(kernels_, ADAPTK_TARGET)() { return table; }

}  // namespace adaptk::detail
