#include "code_cache.hpp"

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__unix__) || defined(__APPLE__)
#define ADAPTK_HAS_CACHE 1
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace adaptk::detail {
namespace {

#if defined(ADAPTK_HAS_CACHE)

std::string from_environment(const char* name) {
    const char* const value = std::getenv(name);
    return value == nullptr ? "" : value;
}

std::string path_of_folder() {
    std::string path = from_environment("ADAPTK_CACHE");
    if (path.empty()) {
        const std::string home = from_environment("HOME");
#if defined(__APPLE__)
        const std::string caches = home.empty() ? "" : home + "/Library/Caches";
#else
        std::string caches = from_environment("XDG_CACHE_HOME");
        if (caches.empty() && !home.empty()) caches = home + "/.cache";
#endif
        if (caches.empty()) return {};
        path = caches + "/adaptk";
    }
    if (path[0] != '/') {
        char here[4096];
        if (getcwd(here, sizeof here) == nullptr) return {};
        path = std::string(here) + "/" + path;
    }
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    return path;
}

// The parent of a folder; that of "/" is "/".
std::string above(const std::string& path) {
    const std::size_t end = path.rfind('/');
    return end == 0 ? "/" : path.substr(0, end);
}

// Creates a folder and missing parents, for this user alone.
bool make(const std::string& path) {
    if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return true;
    return errno == ENOENT && path != "/" && make(above(path)) && (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST);
}

// The first of this folder and its parents that a user other than this one and root can change.
std::string writable_by_others(const std::string& path) {
    for (std::string at = path;; at = above(at)) {
        struct stat s;
        if (stat(at.c_str(), &s) != 0) return at;
        const bool own = at == path;
        const bool others = (s.st_mode & (own ? S_IWOTH | S_IWGRP : S_IWOTH)) != 0;
        const bool apart = !own && (s.st_mode & S_ISVTX) != 0;  // as /tmp: only owners can change what is in it
        if (!S_ISDIR(s.st_mode) || (s.st_uid != geteuid() && (own || s.st_uid != 0)) || (others && !apart)) return at;
        if (at == "/") return {};
    }
}

// If two keys share a file name, no harm is done, because the file contains the key.
std::string file_of(const std::string& folder, std::string_view key) {
    std::uint64_t h = 0xcbf29ce484222325u;
    for (const char c : key) h = (h ^ std::uint8_t(c)) * 0x100000001b3u;
    char name[40];
    std::snprintf(name, sizeof name, "/%016llx.code", static_cast<unsigned long long>(h));
    return folder + name;
}

bool write_all(int file, std::string_view data) {
    while (!data.empty()) {
        const ssize_t n = write(file, data.data(), data.size());
        if (n < 0 && errno != EINTR) return false;
        if (n > 0) data.remove_prefix(std::size_t(n));
    }
    return true;
}

#endif

}  // namespace

#if defined(ADAPTK_HAS_CACHE)

std::string cache_folder(CacheError& error) {
    const std::string path = path_of_folder();
    if (path.empty()) {
        error = {ENOENT, "ADAPTK_CACHE: names no folder, and neither does HOME"};
        return {};
    }
    if (!make(path)) {
        error = {errno, "ADAPTK_CACHE: " + path + ": " + std::strerror(errno)};
        return {};
    }
    if (const std::string bad = writable_by_others(path); !bad.empty()) {
        error = {EACCES, "ADAPTK_CACHE: " + bad + " is not this user's alone, and what " + path +
                             " holds is run; name another folder by ADAPTK_CACHE, or take the others' right to write"};
        return {};
    }
    return path;
}

std::string cached_code(std::string_view key) {
    CacheError error;
    const std::string folder = cache_folder(error);
    if (folder.empty()) return {};
    const int file = open(file_of(folder, key).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0) return {};
    std::string data;
    struct stat s;
    if (fstat(file, &s) == 0 && S_ISREG(s.st_mode) && s.st_uid == geteuid() && (s.st_mode & (S_IWGRP | S_IWOTH)) == 0) {
        char part[65536];
        for (ssize_t n = 1; n > 0 || (n < 0 && errno == EINTR);) {
            n = read(file, part, sizeof part);
            if (n > 0) data.append(part, std::size_t(n));
        }
    }
    close(file);
    if (data.size() <= key.size() || data.compare(0, key.size(), key) != 0) return {};
    return data.substr(key.size());
}

void store_code(std::string_view key, std::string_view code) {
    CacheError error;
    const std::string folder = cache_folder(error);
    if (folder.empty()) return;
    std::string work = folder + "/making-XXXXXX";
    const int file = mkstemp(work.data());
    if (file < 0) return;
    const bool written = write_all(file, key) && write_all(file, code);
    const bool closed = close(file) == 0;
    if (!written || !closed || rename(work.c_str(), file_of(folder, key).c_str()) != 0) unlink(work.c_str());
}

#else

std::string cache_folder(CacheError& error) {
    error = {ENOSYS, "ADAPTK_CACHE: code is kept on Linux and macOS only"};
    return {};
}
std::string cached_code(std::string_view) { return {}; }
void store_code(std::string_view, std::string_view) {}

#endif

}  // namespace adaptk::detail
