// The formats that rules compute in.
#pragma once

#include "adaptk/format.hpp"

ADAPTK_NAMESPACE_BEGIN

struct Float32 {
    static constexpr const char* name = "float32";
    static constexpr DlpackType dlpack{dlpack_float, 32};
    using Element = float;
    using Compute = float;
    ADAPTK_HD static float decode(float x) { return x; }
    ADAPTK_HD static float encode(float x) { return x; }
};

struct Float64 {
    static constexpr const char* name = "float64";
    static constexpr DlpackType dlpack{dlpack_float, 64};
    using Element = double;
    using Compute = double;
    ADAPTK_HD static double decode(double x) { return x; }
    ADAPTK_HD static double encode(double x) { return x; }
};

ADAPTK_NAMESPACE_END
