# Finds an nvcc that can build the kernels: the one that was named (CMAKE_CUDA_COMPILER, CUDACXX), one on the path, or
# the one that NVIDIA's wheels put beside the Python that builds. Sets adaptk_nvcc, or adaptk_nvcc_reason where there is
# none. CMake's own check_language() trusts a compiler that was named, knows nothing of wheels, and does not say what
# was wrong.

# The folder of libraries, where nvcc itself looks in another: wheels have lib and no lib64.
function(adaptk_nvcc_libraries nvcc out)
  set(${out} "" PARENT_SCOPE)
  cmake_path(GET nvcc PARENT_PATH bin)
  cmake_path(GET bin PARENT_PATH root)
  if(EXISTS "${root}/nvvm" AND EXISTS "${root}/lib" AND NOT EXISTS "${root}/lib64")
    set(${out} "${root}/lib" PARENT_SCOPE)
  endif()
endfunction()

# Compiles and links what the kernels need of a toolkit: C++20, the headers, a host compiler that it accepts, the
# runtime library.
function(adaptk_try_nvcc nvcc reason)
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/nvcc-check")
  file(REMOVE_RECURSE "${folder}")
  file(WRITE "${folder}/check.cu"
       "#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <concepts>
template <std::floating_point T> __global__ void kernel(const __grid_constant__ uint4 n, T* x) { *x = T(__half2float(__ushort_as_half(1)) + n.x); }
int main() {
    kernel<<<1, 1>>>(uint4{}, static_cast<float*>(nullptr));
    return int(cudaGetLastError());
}
")
  set(host "")
  foreach(named "${CMAKE_CUDA_HOST_COMPILER}" "$ENV{CUDAHOSTCXX}")
    if(named AND NOT host)
      set(host "-ccbin=${named}")
    endif()
  endforeach()
  adaptk_nvcc_libraries("${nvcc}" libraries)
  if(libraries)
    set(libraries "-L${libraries}")
  endif()
  string(TOLOWER "${ADAPTK_CUDA_RUNTIME}" runtime)
  separate_arguments(flags NATIVE_COMMAND "${CMAKE_CUDA_FLAGS} $ENV{CUDAFLAGS}")
  execute_process(
    COMMAND "${nvcc}" -std=c++20 ${flags} ${host} -cudart ${runtime} ${libraries} "${folder}/check.cu" -o "${folder}/check"
    WORKING_DIRECTORY "${folder}" RESULT_VARIABLE result OUTPUT_VARIABLE text ERROR_VARIABLE text TIMEOUT 120)
  if(result EQUAL 0 AND EXISTS "${folder}/check${CMAKE_EXECUTABLE_SUFFIX}")
    set(${reason} "" PARENT_SCOPE)
    return()
  endif()
  string(STRIP "${text}" text)
  string(SUBSTRING "${text}" 0 1000 text)
  if(text STREQUAL "")
    set(text "exit status ${result}")
  endif()
  string(REPLACE ";" "," text "${text}")
  set(${reason} "${nvcc} does not work: ${text}" PARENT_SCOPE)
endfunction()

function(adaptk_find_nvcc)
  set(candidates "")
  if(CMAKE_CUDA_COMPILER)
    set(candidates "${CMAKE_CUDA_COMPILER}")
  elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
    set(candidates "$ENV{CUDACXX}")
  else()
    find_program(on_path nvcc NO_CACHE NO_CMAKE_PATH NO_CMAKE_ENVIRONMENT_PATH NO_CMAKE_SYSTEM_PATH
                                       NO_CMAKE_INSTALL_PREFIX)
    if(on_path)
      list(APPEND candidates "${on_path}")
    endif()
    if(Python_EXECUTABLE)
      # An isolated build hides the environment's packages from sys.path, and not the place where they are.
      execute_process(
        COMMAND ${Python_EXECUTABLE} -c
                "import glob, os, sys, sysconfig
places = [*sys.path, sysconfig.get_path('platlib'), sysconfig.get_path('purelib')]
found = [n for p in places for n in sorted(glob.glob(os.path.join(p, 'nvidia', 'cu[1-9]*', 'bin', 'nvcc*')), reverse=True)]
print(next((n for n in found if os.path.basename(n) in ('nvcc', 'nvcc.exe')), ''))"
        OUTPUT_VARIABLE in_wheel OUTPUT_STRIP_TRAILING_WHITESPACE)
      if(in_wheel)
        list(APPEND candidates "${in_wheel}")
      endif()
    endif()
  endif()
  set(reasons "")
  foreach(candidate IN LISTS candidates)
    find_program(program NAMES "${candidate}" NO_CACHE)
    if(NOT program)
      string(APPEND reasons "\n  ${candidate} is no program")
    else()
      adaptk_try_nvcc("${program}" reason)
      if(reason STREQUAL "")
        set(adaptk_nvcc "${program}" PARENT_SCOPE)
        return()
      endif()
      string(APPEND reasons "\n  ${reason}")
    endif()
    unset(program)
  endforeach()
  if(reasons STREQUAL "")
    set(reasons "\n  no nvcc on the path or beside Python, and CUDACXX names none")
  endif()
  set(adaptk_nvcc "" PARENT_SCOPE)
  set(adaptk_nvcc_reason "${reasons}" PARENT_SCOPE)
endfunction()

# The architectures of this machine's GPUs, lowest first; none if there is none, or no driver.
function(adaptk_visible_gpus nvcc out)
  execute_process(COMMAND "${nvcc}" -arch=native --dryrun -cubin "${CMAKE_CURRENT_BINARY_DIR}/nvcc-check/check.cu"
                  OUTPUT_VARIABLE text ERROR_VARIABLE text)
  set(numbers "")
  if(NOT text MATCHES "[Nn]o GPU|[Cc]annot find")
    string(REGEX MATCHALL "-arch[= ]sm_[0-9]+" numbers "${text}")
    list(TRANSFORM numbers REPLACE "[^0-9]+" "")
    list(REMOVE_DUPLICATES numbers)
    list(SORT numbers COMPARE NATURAL)
  endif()
  set(${out} "${numbers}" PARENT_SCOPE)
endfunction()

# The architectures behind a name, as far as this nvcc knows them. Binaries run on later minor versions of their major
# version, and PTX on everything later.
function(adaptk_cuda_architectures nvcc wanted out)
  set(list "${wanted}")
  execute_process(COMMAND "${nvcc}" --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  string(REGEX MATCHALL "sm_[0-9]+" known "${known}")
  if(wanted STREQUAL "development")
    # The GPU of this machine, or one that most have.
    adaptk_visible_gpus("${nvcc}" seen)
    list(APPEND seen 80)
    list(GET seen 0 number)
    set(list "${number}-real")
  elseif(wanted STREQUAL "default")
    # PTX of Ampere, which the driver compiles once for every later GPU, some seconds for a rule's first step; and
    # binaries for this machine's own GPUs. A third of the time of a build without them.
    adaptk_visible_gpus("${nvcc}" seen)
    set(ampere 80)
    if(NOT sm_80 IN_LIST known)
      list(GET known 0 ampere)
      string(REPLACE "sm_" "" ampere "${ampere}")
    endif()
    set(least ${ampere})
    foreach(number IN LISTS seen)
      if(number LESS least)
        set(least ${number})
      endif()
    endforeach()
    set(list ${least}-virtual)
    foreach(number IN LISTS seen)
      if(number GREATER 80 AND number LESS 90)
        set(number 80)
      endif()
      list(APPEND list ${number}-real)
    endforeach()
    list(REMOVE_DUPLICATES list)
  elseif(wanted STREQUAL "release")
    # From the first that the newest nvcc knows. Not: 87, 88 and 89, which run what is built for 86 (for 88 and 89 the
    # same instructions); 121, for which the same comes out as for 120.
    set(numbers 75 80 86 90 100 103 110 120)
    set(list "")
    foreach(number IN LISTS numbers)
      if("sm_${number}" IN_LIST known)
        list(APPEND list "${number}-real")
      endif()
    endforeach()
    list(POP_BACK list newest)
    string(REPLACE "-real" "" newest "${newest}")
    list(APPEND list ${newest})
  endif()
  set(${out} "${list}" PARENT_SCOPE)
endfunction()
