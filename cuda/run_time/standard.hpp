// What the kernels use of C++'s standard library, for NVRTC, which comes without one. It stands for each of the
// standard headers that they include.
#pragma once

#define HUGE_VAL __longlong_as_double(0x7ff0000000000000)

namespace std {

using size_t = decltype(sizeof(0));
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned;
using int64_t = long long;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long long;
enum class byte : unsigned char {};

template <bool Value> struct bool_constant {
    static constexpr bool value = Value;
};
template <class A, class B> inline constexpr bool is_same_v = false;
template <class A> inline constexpr bool is_same_v<A, A> = true;
template <class T> inline constexpr bool is_trivially_copyable_v = __is_trivially_copyable(T);
template <class T> inline constexpr bool is_signed_v = T(-1) < T(0);
template <class T> inline constexpr bool is_floating_point_v = is_same_v<T, float> || is_same_v<T, double>;
template <class A, class B> inline constexpr bool is_convertible_v = __is_convertible_to(A, B);
template <class A, class B>
concept same_as = is_same_v<A, B>;
template <class A, class B>
concept convertible_to = is_convertible_v<A, B>;
template <bool First, class A, class B> struct conditional {
    using type = A;
};
template <class A, class B> struct conditional<false, A, B> {
    using type = B;
};
template <bool First, class A, class B> using conditional_t = typename conditional<First, A, B>::type;

template <size_t... I> struct index_sequence {
    static constexpr size_t size() { return sizeof...(I); }
};
template <class T, T... I> struct indices {
    using type = index_sequence<I...>;
};
template <size_t N> using make_index_sequence = typename __make_integer_seq<indices, size_t, N>::type;

template <class T, size_t N> struct array {
    T items[N > 0 ? N : 1];
    constexpr size_t size() const { return N; }
    constexpr T& operator[](size_t i) { return items[i]; }
    constexpr const T& operator[](size_t i) const { return items[i]; }
    constexpr const T* begin() const { return items; }
    constexpr const T* end() const { return items + N; }
};
template <class T, class... Rest> array(T, Rest...) -> array<T, 1 + sizeof...(Rest)>;

template <class To, class From> constexpr To bit_cast(const From& from) { return __builtin_bit_cast(To, from); }
constexpr int bit_width(unsigned x) {
    int n = 0;
    for (; x != 0; x >>= 1) ++n;
    return n;
}
template <class T> constexpr const T& max(const T& a, const T& b) { return a < b ? b : a; }
template <class T> constexpr const T& min(const T& a, const T& b) { return b < a ? b : a; }

using ::fabs;
using ::floor;
using ::fma;
using ::frexp;
using ::isfinite;
using ::isinf;
using ::isnan;
using ::ldexp;
using ::memcpy;
using ::nearbyint;
using ::pow;
using ::sqrt;

}  // namespace std

using std::size_t;
