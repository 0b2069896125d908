// The C++ functions of libadaptk that the Python extensions call, besides the C interface. Everything else in the
// library is hidden. Other programs must not use these names, which change without notice.
#pragma once

#if !defined(_WIN32)
#define ADAPTK_INTERNAL_API __attribute__((visibility("default")))
#elif defined(ADAPTK_BUILDING)
#define ADAPTK_INTERNAL_API __declspec(dllexport)
#elif defined(ADAPTK_SHARED)
#define ADAPTK_INTERNAL_API __declspec(dllimport)
#else
#define ADAPTK_INTERNAL_API
#endif
