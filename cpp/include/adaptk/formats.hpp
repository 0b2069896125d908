// All formats of the library, in the order of their numbers. To add one, change this file and write its header.
#pragma once

#include "adaptk/formats/dynamic.hpp"
#include "adaptk/formats/eight_bit.hpp"
#include "adaptk/formats/float8.hpp"
#include "adaptk/formats/four_bit.hpp"
#include "adaptk/formats/half.hpp"
#include "adaptk/formats/ieee.hpp"
#include "adaptk/formats/split.hpp"

ADAPTK_NAMESPACE_BEGIN

using Formats = FormatList<Float32, Float64, BFloat16, Float16, BFloat16Stochastic, Linear8, LogarithmicStochastic8,
                           LogarithmicNearest8, Float8E4M3, DynamicSigned8, DynamicUnsigned8, Float16Stochastic,
                           BFloat16Remainder16, BFloat16Remainder8, BFloat16Kahan, FourBitSigned, FourBitUnsigned,
                           Float8E4M3FN, Float8E5M2, Float8E4M3FNStochastic, Float8E5M2Stochastic>;

ADAPTK_NAMESPACE_END
