// Random numbers from a counter: the numbers of block n depend on the key and on n alone, so any thread, device or part
// of an array can compute its own. There is no state, and no number depends on another.
//
// Bits: Philox4x32-10 of J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, Parallel random numbers: as easy as 1, 2,
// 3, SC 2011. Everything computed from the bits uses only + - * / sqrt and integers, and each operation is rounded
// separately, so results are the same bits on every machine. No loops and no branches, so that loops around these
// functions vectorise.
#pragma once

#include "adaptk/config.hpp"
#include "adaptk/math.hpp"

#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

// Four words of 32 bits.
struct RandomWords {
    std::uint32_t w0, w1, w2, w3;
};

namespace random_detail {

// The builtin, not std::bit_cast: see math.hpp on wrappers that are not inlined.
template <class To, class From> ADAPTK_HD To bits_as(From x) { return __builtin_bit_cast(To, x); }

ADAPTK_HD RandomWords philox_round(RandomWords c, std::uint32_t k0, std::uint32_t k1) {
    const std::uint64_t p0 = std::uint64_t(c.w0) * 0xD2511F53u;
    const std::uint64_t p1 = std::uint64_t(c.w2) * 0xCD9E8D57u;
    return {std::uint32_t(p1 >> 32) ^ c.w1 ^ k0, std::uint32_t(p1), std::uint32_t(p0 >> 32) ^ c.w3 ^ k1,
            std::uint32_t(p0)};
}

// Rounds Round ... 9; the key of a round is the first one plus a multiple of two constants.
template <int Round> ADAPTK_HD RandomWords philox_rounds(RandomWords c, std::uint32_t k0, std::uint32_t k1) {
    if constexpr (Round == 10) {
        return c;
    } else {
        const RandomWords next =
            philox_round(c, k0 + std::uint32_t(Round) * 0x9E3779B9u, k1 + std::uint32_t(Round) * 0xBB67AE85u);
        return philox_rounds<Round + 1>(next, k0, k1);
    }
}

// The binary64 number in [1, 2) whose 52 fraction bits are the upper ones of these 64 bits.
ADAPTK_HD double one_to_two(std::uint64_t bits) { return bits_as<double>((bits >> 12) | 0x3ff0000000000000u); }

ADAPTK_HD std::uint64_t joined(std::uint32_t high, std::uint32_t low) { return std::uint64_t(high) << 32 | low; }

// log(m) + exponent * ln(2) for m in [sqrt(1/2), sqrt(2)): log(m) = 2 artanh(s) with s = (m - 1)/(m + 1), by its Taylor
// series. |s| < 0.1716, so five terms are good to 2^-28 and ten to 2^-55.
ADAPTK_HD float log_of(float m, float exponent) {
    const float s = (m - 1.0f) / (m + 1.0f);
    const float z = s * s;
    float p = 1.0f / 9;
    p = p * z + 1.0f / 7;
    p = p * z + 1.0f / 5;
    p = p * z + 1.0f / 3;
    const float rest = s * z * p;
    // ln 2 in two parts, the first with so few digits that its multiples by exponents are exact.
    return exponent * 0x1.63p-1f + (2.0f * (s + rest) + exponent * -0x1.bd0106p-13f);
}

ADAPTK_HD double log_of(double m, double exponent) {
    const double s = (m - 1.0) / (m + 1.0);
    const double z = s * s;
    double p = 1.0 / 19;
    p = p * z + 1.0 / 17;
    p = p * z + 1.0 / 15;
    p = p * z + 1.0 / 13;
    p = p * z + 1.0 / 11;
    p = p * z + 1.0 / 9;
    p = p * z + 1.0 / 7;
    p = p * z + 1.0 / 5;
    p = p * z + 1.0 / 3;
    const double rest = s * z * p;
    return exponent * 0x1.62e42feep-1 + (2.0 * (s + rest) + exponent * 0x1.a39ef35793c76p-33);
}

}  // namespace random_detail

// The words of one block. `key` is the seed; `stream` and `block` are the upper and the lower half of the counter.
ADAPTK_HD RandomWords random_words(std::uint64_t key, std::uint64_t stream, std::uint64_t block) {
    return random_detail::philox_rounds<0>(
        {std::uint32_t(block), std::uint32_t(block >> 32), std::uint32_t(stream), std::uint32_t(stream >> 32)},
        std::uint32_t(key), std::uint32_t(key >> 32));
}

// The natural logarithm of a positive normal number, within a few units in the last place.
ADAPTK_HD float log_of_normal(float x) {
    // The exponent field of x / sqrt(1/2), whose significand is then in [sqrt(1/2), sqrt(2)).
    const std::uint32_t moved = random_detail::bits_as<std::uint32_t>(x) + (0x3f800000u - 0x3f3504f3u);
    const float m = random_detail::bits_as<float>((moved & 0x7fffffu) + 0x3f3504f3u);
    return random_detail::log_of(m, float(std::int32_t(moved >> 23) - 127));
}

ADAPTK_HD double log_of_normal(double x) {
    const std::uint64_t moved = random_detail::bits_as<std::uint64_t>(x) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
    const double m = random_detail::bits_as<double>((moved & 0xfffffffffffffu) + 0x3fe6a09e667f3bcdu);
    // Few processors convert vectors of 64-bit integers. An integer below 2^52 in the fraction bits of 2^52 is read as
    // 2^52 plus that integer.
    const double exponent = random_detail::bits_as<double>((moved >> 52) | 0x4330000000000000u) - (0x1p52 + 1023);
    return random_detail::log_of(m, exponent);
}

// Uniform in [0, 1): multiples of 2^-24, and of 2^-52.
ADAPTK_HD float uniform_from(std::uint32_t w) { return float(std::int32_t(w >> 8)) * 0x1p-24f; }
ADAPTK_HD double uniform_from(std::uint32_t high, std::uint32_t low) {
    return random_detail::one_to_two(random_detail::joined(high, low)) - 1.0;
}

// Uniform in (0, 1), symmetric about 1/2: odd multiples of 2^-53.
ADAPTK_HD double open_uniform_from(std::uint32_t high, std::uint32_t low) {
    return random_detail::one_to_two(random_detail::joined(high, low)) - (1.0 - 0x1p-53);
}

template <class T> struct NormalPair {
    T first, second;
};

// Two independent standard normal numbers (G. E. P. Box, M. E. Muller, A note on the generation of random normal
// deviates, Annals of Mathematical Statistics 29, 1958). The largest results are sqrt(-2 log 2^-32) = 6.66.
ADAPTK_HD NormalPair<float> normal_pair(std::uint32_t radius, std::uint32_t angle) {
    // In [2^-32, 1].
    const float u = (float(std::int32_t(radius >> 1)) + 0.5f) * 0x1p-31f;
    const float r = sqrt(-2.0f * log_of_normal(u));
    // The angle is angle / 2^32 of a turn: quarters of a turn, and the rest in [-1/8, 1/8] of one.
    const std::uint32_t quarter = (angle + 0x20000000u) >> 30;
    const auto rest = std::int32_t(angle - (quarter << 30));
    const float x = (float(rest) + 0.5f) * float(0x1.921fb54442d18p+0 * 0x1p-30);
    const float z = x * x;
    // Taylor's series; the next terms are below 2^-28.
    float s = 1.0f / 362880;
    s = s * z - 1.0f / 5040;
    s = s * z + 1.0f / 120;
    s = s * z - 1.0f / 6;
    s = x + x * z * s;
    float c = 1.0f / 40320;
    c = c * z - 1.0f / 720;
    c = c * z + 1.0f / 24;
    c = c * z - 0.5f;
    c = 1.0f + z * c;
    const bool odd = (quarter & 1u) != 0;
    const float cosine = odd ? s : c;
    const float sine = odd ? c : s;
    const std::uint32_t cosine_sign = ((quarter + 1u) & 2u) << 30;
    const std::uint32_t sine_sign = (quarter & 2u) << 30;
    return {r * random_detail::bits_as<float>(random_detail::bits_as<std::uint32_t>(cosine) ^ cosine_sign),
            r * random_detail::bits_as<float>(random_detail::bits_as<std::uint32_t>(sine) ^ sine_sign)};
}

// The same from 52 bits each; the largest are sqrt(-2 log 2^-53) = 8.57.
ADAPTK_HD NormalPair<double> normal_pair(RandomWords w) {
    const double r = sqrt(-2.0 * log_of_normal(open_uniform_from(w.w0, w.w1)));
    const std::uint64_t angle = random_detail::joined(w.w2, w.w3) + 0x2000000000000000u;
    const std::uint64_t quarter = angle >> 62;
    const double x = (random_detail::one_to_two(angle << 2) - (1.5 - 0x1p-53)) * 0x1.921fb54442d18p+0;
    const double z = x * x;
    double s = -1.0 / 1307674368000;
    s = s * z + 1.0 / 6227020800;
    s = s * z - 1.0 / 39916800;
    s = s * z + 1.0 / 362880;
    s = s * z - 1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = s * z - 1.0 / 6;
    s = x + x * z * s;
    double c = 1.0 / 20922789888000;
    c = c * z - 1.0 / 87178291200;
    c = c * z + 1.0 / 479001600;
    c = c * z - 1.0 / 3628800;
    c = c * z + 1.0 / 40320;
    c = c * z - 1.0 / 720;
    c = c * z + 1.0 / 24;
    c = c * z - 0.5;
    c = 1.0 + z * c;
    const bool odd = (quarter & 1u) != 0;
    const double cosine = odd ? s : c;
    const double sine = odd ? c : s;
    const std::uint64_t cosine_sign = ((quarter + 1u) & 2u) << 62;
    const std::uint64_t sine_sign = (quarter & 2u) << 62;
    return {r * random_detail::bits_as<double>(random_detail::bits_as<std::uint64_t>(cosine) ^ cosine_sign),
            r * random_detail::bits_as<double>(random_detail::bits_as<std::uint64_t>(sine) ^ sine_sign)};
}

// The quantile function of the standard normal distribution, for 0 < p < 1, to about 16 digits (M. J. Wichura,
// Algorithm AS 241: the percentage points of the normal distribution, Applied Statistics 37, 1988). All three of its
// ranges are computed, and one is selected.
ADAPTK_HD double normal_quantile(double p) {
    const double q = p - 0.5;
    const double tail = p < 0.5 ? p : 1.0 - p;
    const double centre = 0.180625 - q * q;
    double a = 2509.0809287301226727, b = 5226.495278852545925;
    a = a * centre + 33430.575583588128105, b = b * centre + 28729.085735721942674;
    a = a * centre + 67265.770927008700853, b = b * centre + 39307.89580009271061;
    a = a * centre + 45921.953931549871457, b = b * centre + 21213.794301586595867;
    a = a * centre + 13731.693765509461125, b = b * centre + 5394.1960214247511077;
    a = a * centre + 1971.5909503065514427, b = b * centre + 687.1870074920579083;
    a = a * centre + 133.14166789178437745, b = b * centre + 42.313330701600911252;
    a = a * centre + 3.387132872796366608, b = b * centre + 1.0;
    const double middle = q * a / b;

    const double r = sqrt(-log_of_normal(tail));
    const double near = r - 1.6;
    double c = 7.7454501427834140764e-4, d = 1.05075007164441684324e-9;
    c = c * near + 0.0227238449892691845833, d = d * near + 5.475938084995344946e-4;
    c = c * near + 0.24178072517745061177, d = d * near + 0.0151986665636164571966;
    c = c * near + 1.27045825245236838258, d = d * near + 0.14810397642748007459;
    c = c * near + 3.64784832476320460504, d = d * near + 0.68976733498510000455;
    c = c * near + 5.7694972214606914055, d = d * near + 1.6763848301838038494;
    c = c * near + 4.6303378461565452959, d = d * near + 2.05319162663775882187;
    c = c * near + 1.42343711074968357734, d = d * near + 1.0;

    const double far = r - 5.0;
    double e = 2.01033439929228813265e-7, f = 2.04426310338993978564e-15;
    e = e * far + 2.71155556874348757815e-5, f = f * far + 1.4215117583164458887e-7;
    e = e * far + 0.0012426609473880784386, f = f * far + 1.8463183175100546818e-5;
    e = e * far + 0.026532189526576123093, f = f * far + 7.868691311456132591e-4;
    e = e * far + 0.29656057182850489123, f = f * far + 0.0148753612908506148525;
    e = e * far + 1.7848265399172913358, f = f * far + 0.13692988092273580531;
    e = e * far + 5.4637849111641143699, f = f * far + 0.59983220655588793769;
    e = e * far + 6.6579046435011037772, f = f * far + 1.0;

    const double above = r > 5.0 ? e : c;
    const double below = r > 5.0 ? f : d;
    const double outer = above / below;
    const double signed_outer = q < 0.0 ? -outer : outer;
    return abs(q) <= 0.425 ? middle : signed_outer;
}

// shift + scale * z in [least, most], for a standard normal z in an interval of probability `between`; values below the
// interval have probability `below`. A `sign` of -1 mirrors z. By the inverse of the distribution function.
ADAPTK_HD double truncated_normal_from(std::uint32_t high, std::uint32_t low, double shift, double scale, double below,
                                       double between, double sign, double least, double most) {
    const double p = below + between * open_uniform_from(high, low);
    // The sum may be rounded to 1.
    const double inside = p < 1.0 - 0x1p-53 ? p : 1.0 - 0x1p-53;
    return clamp(shift + scale * (sign * normal_quantile(inside)), least, most);
}

ADAPTK_NAMESPACE_END
