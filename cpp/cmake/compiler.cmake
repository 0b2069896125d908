# The oldest compilers with the features of C++20 that are used and, on x86-64, the names of its levels.
set(adaptk_least_GNU 11)
set(adaptk_least_Clang 14)
set(adaptk_least_AppleClang 14)
set(adaptk_least_MSVC 19.30)

function(adaptk_check_compiler id version)
  if(DEFINED adaptk_least_${id} AND version VERSION_LESS adaptk_least_${id})
    message(FATAL_ERROR "adaptk needs GCC ${adaptk_least_GNU}, Clang ${adaptk_least_Clang}, AppleClang "
                        "${adaptk_least_AppleClang} or Visual Studio 2022 (MSVC ${adaptk_least_MSVC}), or newer. The C++ "
                        "compiler is ${id} ${version}: name another one in the environment variable CXX")
  endif()
endfunction()
