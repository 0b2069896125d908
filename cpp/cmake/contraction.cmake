# The option by which the C++ compiler in use rounds each operation on its own: no contraction of a product and a sum
# into FMA. Clang under the name clang-cl contracts with /fp:precise and takes other options behind /clang: only. MSVC's
# /fp:precise does not contract from Visual Studio 2022 (19.30) on; before, /fp:strict is what did not.
function(adaptk_without_contraction out)
  if(CMAKE_CXX_COMPILER_FRONTEND_VARIANT STREQUAL "MSVC" AND CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    set(${out} /clang:-ffp-contract=off PARENT_SCOPE)
  elseif(CMAKE_CXX_COMPILER_ID STREQUAL "MSVC")
    if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 19.30)
      set(${out} /fp:strict PARENT_SCOPE)
    else()
      set(${out} /fp:precise PARENT_SCOPE)
    endif()
  else()
    set(${out} -ffp-contract=off PARENT_SCOPE)
  endif()
endfunction()
