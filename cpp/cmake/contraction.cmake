# The compiler option that disables contraction of products and sums into FMA, so that each operation is rounded.
# clang-cl contracts with /fp:precise and needs the prefix /clang: for other options. MSVC's /fp:precise does not
# contract from Visual Studio 2022 (19.30) on; older versions need /fp:strict.
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
