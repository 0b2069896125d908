// Code that was compiled at run time, kept in files for other processes.
#pragma once

#include "export.hpp"

#include <string>
#include <string_view>

namespace adaptk::detail {

struct CacheError {
    int code = 0;  // errno
    std::string text;
};

// ADAPTK_CACHE, or `adaptk` in the user's folder for caches; created if it does not exist. Empty if that fails, or if
// other users may write to it or to a parent folder, because the code in it is executed.
ADAPTK_INTERNAL_API std::string cache_folder(CacheError& error);

// The code that store_code() has kept for this key. Empty if there is none, or if other users may change the file.
ADAPTK_INTERNAL_API std::string cached_code(std::string_view key);
// Fails silently: the code is compiled again next time. If several processes store code at the same time, the file is
// complete.
ADAPTK_INTERNAL_API void store_code(std::string_view key, std::string_view code);

}  // namespace adaptk::detail
