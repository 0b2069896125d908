#include "format.hpp"

#include "adaptk/formats.hpp"

#include <array>

namespace adaptk::detail {
namespace {

template <class F> constexpr FormatInfo info(std::size_t place) {
    constexpr bool wide = sizeof(typename F::Compute) == 8;
    return {Format(place),
            F::name,
            F::dlpack.code,
            F::dlpack.bits,
            wide ? Format::float64 : Format::float32,
            std::uint16_t(sizeof(typename F::Element)),
            std::uint16_t(block_of<F>()),
            std::uint16_t(alignof(typename F::Element)),
            random_bits_of<F>() > 0,
            Format(place)};
}

template <class... F> constexpr auto make_table(FormatList<F...>) {
    std::size_t place = 0;
    std::array table{info<F>(place++)...};
    for (FormatInfo& f : table)
        for (const FormatInfo& other : table)
            if (other.stochastic && other.block == 1 && other.dlpack_code == f.dlpack_code &&
                other.dlpack_bits == f.dlpack_bits)
                f.stochastic_twin = other.id;
    return table;
}

constexpr auto list = make_table(Formats{});
static_assert(Formats::size <= max_formats);
static_assert(list[std::size_t(Format::float32)].name == std::string_view("float32") &&
              list[std::size_t(Format::float64)].name == std::string_view("float64") &&
              list[std::size_t(Format::bfloat16)].name == std::string_view("bfloat16") &&
              list[std::size_t(Format::float16)].name == std::string_view("float16"));

}  // namespace

const FormatInfo* const format_table = list.data();

std::span<const FormatInfo> formats() { return list; }

const FormatInfo* find_format(std::string_view name) {
    for (const FormatInfo& f : list)
        if (name == f.name) return &f;
    return nullptr;
}

}  // namespace adaptk::detail
