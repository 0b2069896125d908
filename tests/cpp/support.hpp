// Shared by the tests: numbers that are the same on every machine, 16-bit formats by their definition, buffers with
// guards, hyperparameters that differ from the defaults, and the caller's floating-point mode.
#pragma once

#include "dispatch.hpp"
#include "step.hpp"
#include "threads.hpp"

#include "adaptk/formats.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace adaptk::test {

using detail::Format;
using detail::HyperValues;
using detail::Isa;
using detail::ParamUpdate;
using detail::RuleInfo;
using detail::Segment;

// Sanitizers and emulators are slow: if ADAPTK_TEST_QUICK is set, tests run samples instead of every case.
inline bool quick() {
    static const bool set = std::getenv("ADAPTK_TEST_QUICK") != nullptr;
    return set;
}

// splitmix64 (Steele, Lea and Flood, OOPSLA 2014): integers only.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t bits() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    std::size_t below(std::size_t n) { return std::size_t(bits() % n); }
    // In [-1, 1), with as many digits as T has.
    template <class T> T uniform() {
        constexpr int digits = std::numeric_limits<T>::digits;
        const auto n = std::int64_t(bits() >> (63 - digits)) - (std::int64_t{1} << digits);
        return std::ldexp(T(n), -digits);
    }
    // The same, over some decimal orders of magnitude.
    template <class T> T value() {
        const T x = uniform<T>();
        return std::ldexp(x, 2 - int(below(12)));
    }

  private:
    std::uint64_t state_;
};

// A binary format of 16 or 8 bits (IEEE 754-2019, 3.4): its precision and its least exponent decide everything else.
// One without infinities has a single NaN, where all bits but the sign's are set, in their place.
struct SmallFloat {
    int bits, precision, least_exponent;
    bool infinities = true;
    int stored() const { return precision - 1; }
    std::uint32_t sign() const { return 1u << (bits - 1); }
    std::uint32_t infinity() const { return infinities ? (sign() - 1) >> stored() << stored() : sign() - 1; }
    std::uint32_t nan() const { return infinities ? infinity() | (1u << (stored() - 1)) : infinity(); }
};
inline constexpr SmallFloat bfloat16{16, 8, -126};
inline constexpr SmallFloat float16{16, 11, -14};
inline constexpr SmallFloat e4m3fn{8, 4, -6, false};
inline constexpr SmallFloat e5m2{8, 3, -14};
// Formats without an enumerator.
template <class F, class... G> constexpr Format place_of(FormatList<G...>) {
    std::uint8_t i = 0, found = 255;
    ((std::is_same_v<F, G> ? found = i++ : i++), ...);
    return Format(found);
}
inline constexpr Format float8_e4m3fn = place_of<Float8E4M3FN>(Formats{});
inline constexpr Format float8_e5m2 = place_of<Float8E5M2>(Formats{});
inline const SmallFloat& format_of(Format t) {
    return t == Format::bfloat16 ? bfloat16 : t == float8_e4m3fn ? e4m3fn : t == float8_e5m2 ? e5m2 : float16;
}

inline double widened(std::uint16_t h, const SmallFloat& f) {
    const std::uint32_t body = h & (f.sign() - 1);
    const int field = int(body >> f.stored());
    const auto fraction = int(body & ((1u << f.stored()) - 1));
    double x = 0.0;
    if (body > f.infinity() || (body == f.infinity() && !f.infinities)) {
        x = std::numeric_limits<double>::quiet_NaN();
    } else if (body == f.infinity()) {
        x = std::numeric_limits<double>::infinity();
    } else {
        const int significand = field == 0 ? fraction : fraction + (1 << f.stored());
        x = std::ldexp(double(significand), std::max(field, 1) - 1 + f.least_exponent - f.stored());
    }
    return std::copysign(x, (h & f.sign()) != 0 ? -1.0 : 1.0);
}

// Round to nearest, ties to even, by the definition: x in units of its last place, as an integer.
inline std::uint16_t narrowed(double x, const SmallFloat& f) {
    const std::uint32_t sign = std::signbit(x) ? f.sign() : 0u;
    if (std::isnan(x)) return std::uint16_t(sign | f.nan());
    if (std::isinf(x)) return std::uint16_t(sign | f.infinity());
    int exponent = 0;
    std::frexp(x, &exponent);
    exponent = std::max(x == 0.0 ? f.least_exponent : exponent - 1, f.least_exponent);
    const double units = std::nearbyint(std::ldexp(std::fabs(x), f.stored() - exponent));
    // The hidden bit of a normal number, and a carry out of the significand, add to the exponent's field.
    const std::int64_t body = (std::int64_t(exponent - f.least_exponent) << f.stored()) + std::int64_t(units);
    return std::uint16_t(sign | std::uint32_t(std::min<std::int64_t>(body, f.infinity())));
}

// For the first buffers; states have the compute format.
inline ParamUpdate update_of(std::initializer_list<void*> buffers, std::size_t size, Format param, Format grad) {
    ParamUpdate t(std::int64_t(size), param, grad);
    std::copy(buffers.begin(), buffers.end(), t.buffer);
    return t;
}

// One element of storage as a value of the compute type, and back.
template <class T> T read_element(Format type, const std::byte* at) {
    if (type == Format::float64) {
        double x = 0.0;
        std::memcpy(&x, at, sizeof x);
        return T(x);
    }
    if (type == Format::float32) {
        float x = 0.0f;
        std::memcpy(&x, at, sizeof x);
        return T(x);
    }
    std::uint16_t h = 0;
    std::uint8_t b = 0;
    if (size_of(type) == 1) std::memcpy(&b, at, sizeof b);
    if (size_of(type) == 2) std::memcpy(&h, at, sizeof h);
    return T(widened(size_of(type) == 1 ? b : h, format_of(type)));
}

template <class T> void write_element(Format type, T x, std::byte* at) {
    if (type == Format::float64) {
        const auto y = double(x);
        std::memcpy(at, &y, sizeof y);
    } else if (type == Format::float32) {
        const auto y = float(x);
        std::memcpy(at, &y, sizeof y);
    } else {
        const std::uint16_t h = narrowed(double(x), format_of(type));
        const auto b = std::uint8_t(h);
        if (size_of(type) == 1) std::memcpy(at, &b, sizeof b);
        if (size_of(type) == 2) std::memcpy(at, &h, sizeof h);
    }
}

// Equal bits, any NaN being equal to any other.
inline bool same_element(Format type, const std::byte* a, const std::byte* b) {
    if (std::memcmp(a, b, size_of(type)) == 0) return true;
    return std::isnan(read_element<double>(type, a)) && std::isnan(read_element<double>(type, b));
}

inline constexpr std::size_t no_difference = ~std::size_t{0};

inline std::size_t first_difference(Format type, const std::byte* a, const std::byte* b, std::size_t n) {
    if (n == 0 || std::memcmp(a, b, n * size_of(type)) == 0) return no_difference;
    for (std::size_t i = 0; i < n; ++i)
        if (!same_element(type, a + i * size_of(type), b + i * size_of(type))) return i;
    return no_difference;
}

using Bytes = std::vector<std::byte>;

// Memory that begins `offset` bytes after a cache line and has guards on both sides.
class Buffer {
  public:
    Buffer(const std::byte* from, std::size_t bytes, std::size_t offset) : raw_(bytes + offset + 3 * guard, mark) {
        const auto address = reinterpret_cast<std::uintptr_t>(raw_.data());
        begin_ = guard + (guard - address % guard) % guard + offset;
        bytes_ = bytes;
        if (bytes > 0) std::memcpy(data(), from, bytes);
    }
    std::byte* data() { return raw_.data() + begin_; }
    const std::byte* data() const { return raw_.data() + begin_; }
    std::size_t bytes() const { return bytes_; }
    bool intact() const {
        const auto marked = [](std::byte b) { return b == mark; };
        return std::all_of(raw_.begin(), raw_.begin() + std::ptrdiff_t(begin_), marked) &&
               std::all_of(raw_.begin() + std::ptrdiff_t(begin_ + bytes_), raw_.end(), marked);
    }

  private:
    static constexpr std::size_t guard = 64;
    static constexpr std::byte mark{0xa5};
    Bytes raw_;
    std::size_t begin_, bytes_;
};

inline HyperValues default_hyper(const RuleInfo& rule) {
    HyperValues h{};
    for (std::size_t i = 0; i < rule.hyper_count(); ++i) h.value[i] = rule.hyper(i).value;
    return h;
}

// A value of the same range that takes the other branch wherever a hyperparameter selects one.
inline double other_value(const Hyperparameter& h) {
    switch (h.range) {
    case Range::flag: return 1.0 - h.value;
    case Range::fraction:
    case Range::unit_interval:
    case Range::open_fraction: return 0.1875 + 0.5 * h.value;
    case Range::above_one: return 2.0 * h.value - 1.0;
    case Range::upper_bound: return std::isinf(h.value) ? 0.0625 : 0.5 * h.value;
    case Range::finite: return 0.375 * h.value;
    default: break;
    }
    if (h.value > 1000.0) return 1.0;  // a number of steps, to be reached
    return h.value == 0.0 ? 0.01 : 3.0 * h.value;
}

inline HyperValues other_hyper(const RuleInfo& rule) {
    HyperValues h = default_hyper(rule);
    for (std::size_t i = 0; i < rule.own.size(); ++i) h.value[i] = other_value(rule.own[i]);
    h.value[rule.own.size() + 3] = 0.375;
    return h;
}

enum class Decay { none, coupled, decoupled };
inline constexpr std::array all_decays{Decay::none, Decay::coupled, Decay::decoupled};

inline const char* name_of(Decay d) {
    return d == Decay::none ? "none" : d == Decay::coupled ? "coupled" : "decoupled";
}

inline void set_options(const RuleInfo& rule, HyperValues& h, Decay decay, bool maximize) {
    double* common = h.value + rule.own.size();
    common[0] = decay == Decay::none ? 0.0 : 0.0625 + 1e-3;
    common[1] = decay == Decay::decoupled ? 1.0 : 0.0;
    common[2] = maximize ? 1.0 : 0.0;
}

inline std::vector<const Isa*> supported_isas() {
    std::vector<const Isa*> all;
    for (const Isa& isa : detail::built_isas())
        if (isa.supported) all.push_back(&isa);
    return all;
}

// f.template operator()<R, index>() for every rule of the list.
template <class F, class... R> void for_each_rule(RuleList<R...>, const F& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
        (f.template operator()<R, I>(), ...);
    }(std::index_sequence_for<R...>{});
}
template <class F> void for_each_rule(const F& f) { for_each_rule(Rules{}, f); }

// The floating-point control register of the calling thread: MXCSR or FPCR.
#if defined(__SSE2__) || defined(_M_X64)
using ModeBits = unsigned;
inline ModeBits get_mode() { return _mm_getcsr(); }
inline void set_mode(ModeBits m) { _mm_setcsr(m); }
// Without the flags that operations raise.
inline ModeBits control_bits(ModeBits m) { return m & ~0x3fu; }
struct NamedMode {
    const char* name;
    ModeBits bits;
};
inline constexpr std::array caller_modes{
    NamedMode{"default", 0x1f80},
    NamedMode{"round down", 0x3f80},
    NamedMode{"round up", 0x5f80},
    NamedMode{"round to zero", 0x7f80},
    NamedMode{"flush to zero", 0x9f80},
    NamedMode{"denormals are zero", 0x1fc0},
    NamedMode{"flush, denormals are zero, round up", 0xdfc0},
    NamedMode{"overflow, division by zero and invalid operations trap", 0x1900},
};
#elif defined(__aarch64__)
using ModeBits = std::uint64_t;
inline ModeBits get_mode() {
    ModeBits m = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(m) : : "memory");
    return m;
}
inline void set_mode(ModeBits m) { __asm__ volatile("msr fpcr, %0" : : "r"(m) : "memory"); }
inline ModeBits control_bits(ModeBits m) { return m; }
struct NamedMode {
    const char* name;
    ModeBits bits;
};
inline constexpr std::array caller_modes{
    NamedMode{"default", 0},
    NamedMode{"round up", 1u << 22},
    NamedMode{"round down", 2u << 22},
    NamedMode{"round to zero", 3u << 22},
    NamedMode{"flush to zero", 1u << 24},
    NamedMode{"default NaN, flush float16", (1u << 25) | (1u << 19)},
};
#else
using ModeBits = int;
inline ModeBits get_mode() { return 0; }
inline void set_mode(ModeBits) {}
inline ModeBits control_bits(ModeBits m) { return m; }
struct NamedMode {
    const char* name;
    ModeBits bits;
};
inline constexpr std::array caller_modes{NamedMode{"default", 0}};
#endif

}  // namespace adaptk::test
