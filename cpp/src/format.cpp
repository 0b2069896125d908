#include "format.hpp"

#include "adaptk/formats.hpp"

#include <array>
#include <bit>

namespace adaptk::detail {
namespace {

template <class F> constexpr DlpackType side_of() {
    if constexpr (SplitFormat<F>) {
        return F::side_dlpack;
    } else if constexpr (BlockFormat<F>) {
        return Float32::dlpack;
    } else {
        return {};
    }
}

template <class F> constexpr FormatInfo info(std::size_t place) {
    constexpr bool wide = sizeof(typename F::Compute) == 8;
    FormatInfo f{};
    f.id = f.dtype = Format(place);
    f.name = F::name;
    f.dlpack_code = F::dlpack.code;
    f.dlpack_bits = F::dlpack.bits;
    f.compute = wide ? Format::float64 : Format::float32;
    f.bytes = std::uint16_t(sizeof(typename F::Element));
    f.block = std::uint16_t(block_of<F>());
    f.side_code = side_of<F>().code;
    f.side_bits = side_of<F>().bits;
    f.packed_bits = std::uint8_t(std::bit_width(packed_of<F>()) - 1);
    static_assert(std::has_single_bit(packed_of<F>()));
    f.alignment = std::uint16_t(alignof(typename F::Element));
    f.stochastic = random_bits_of<F>() > 0;
    f.split = SplitFormat<F>;
    f.of_states = is_of_states<F>();
    return f;
}

// "bfloat16_sr": "bfloat16", "sr"
constexpr bool is_called(std::string_view name, std::string_view dtype, std::string_view as) {
    return name.size() == dtype.size() + 1 + as.size() && name.starts_with(dtype) && name[dtype.size()] == '_' &&
           name.ends_with(as);
}

template <class... F> constexpr auto make_table(FormatList<F...>) {
    std::size_t place = 0;
    std::array table{info<F>(place++)...};
    for (FormatInfo& f : table)
        for (const FormatInfo& other : table)
            if (other.side_bits == 0 && !other.stochastic && other.dlpack_code == f.dlpack_code &&
                other.dlpack_bits == f.dlpack_bits)
                f.dtype = other.id;
    for (FormatInfo& f : table) {
        for (std::size_t p = 0; p < param_format_count; ++p) {
            f.as_param[p] = f.id;
            for (const FormatInfo& other : table)
                if (p > 0 && other.dtype == f.id && is_called(other.name, f.name, param_format_names[p]))
                    f.as_param[p] = other.id;
        }
    }
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
