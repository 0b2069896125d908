// Numbers in messages.
#pragma once

#include <cstdio>
#include <string>

namespace adaptk::detail {

// With enough digits to distinguish it from every other double. NaN has no sign.
inline std::string number_text(double x) {
    if (x != x) return "nan";
    char text[32];
    std::snprintf(text, sizeof text, "%.17g", x);
    return text;
}

}  // namespace adaptk::detail
