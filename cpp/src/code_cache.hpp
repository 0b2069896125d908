// Code that was made at run time, kept in files for other processes.
#pragma once

#include "export.hpp"

#include <string>
#include <string_view>

namespace adaptk::detail {

struct CacheError {
    int code = 0;  // errno
    std::string text;
};

// ADAPTK_CACHE, or `adaptk` in the user's folder for caches; made if it is not there. Empty where it cannot be, and if
// others may write to it or to one above it, since what it holds is run.
ADAPTK_INTERNAL_API std::string cache_folder(CacheError& error);

// What store_code() has kept for this key; empty if it has not, or if the file is not this user's alone.
ADAPTK_INTERNAL_API std::string cached_code(std::string_view key);
// Fails silently: the code is made again next time. Processes that do so at the same time all leave a whole file.
ADAPTK_INTERNAL_API void store_code(std::string_view key, std::string_view code);

}  // namespace adaptk::detail
