# Installs the library, the headers and the files for CMake and pkg-config: under a prefix, or inside the Python
# package, which is then a prefix itself.
include(CMakePackageConfigHelpers)
if(ADAPTK_PYTHON)
  set(includes adaptk/include)
  set(libraries adaptk/lib)
  # A DLL is found in the folder of the module that needs it.
  set(programs adaptk)
else()
  include(GNUInstallDirs)
  set(includes "${CMAKE_INSTALL_INCLUDEDIR}")
  set(libraries "${CMAKE_INSTALL_LIBDIR}")
  set(programs "${CMAKE_INSTALL_BINDIR}")
endif()

install(DIRECTORY "${PROJECT_SOURCE_DIR}/cpp/include/adaptk" DESTINATION "${includes}")
set(exported adaptk_headers)
if(TARGET adaptk)
  list(APPEND exported adaptk)
  # A wheel holds no links: the file is installed once, with the name that programs load.
  if(ADAPTK_PYTHON)
    set(namelink NAMELINK_SKIP)
  endif()
endif()
install(TARGETS ${exported} EXPORT adaptk LIBRARY DESTINATION "${libraries}" ${namelink}
        RUNTIME DESTINATION "${programs}" ARCHIVE DESTINATION "${libraries}" INCLUDES DESTINATION "${includes}")
set_target_properties(adaptk_headers PROPERTIES EXPORT_NAME headers)

# Loaded on demand, and not linked by other programs.
if(TARGET adaptk_cuda AND TARGET adaptk)
  install(TARGETS adaptk_cuda LIBRARY DESTINATION "${libraries}" NAMELINK_SKIP RUNTIME DESTINATION "${programs}"
          ARCHIVE DESTINATION "${libraries}")
endif()

set(package "${libraries}/cmake/adaptk")
install(EXPORT adaptk NAMESPACE adaptk:: DESTINATION "${package}" FILE adaptk-targets.cmake)
configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/adaptk-config.cmake.in"
                              "${PROJECT_BINARY_DIR}/adaptk-config.cmake" INSTALL_DESTINATION "${package}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/adaptk-config-version.cmake" COMPATIBILITY SameMinorVersion)
configure_file("${CMAKE_CURRENT_LIST_DIR}/contraction.cmake" "${PROJECT_BINARY_DIR}/adaptk-contraction.cmake" COPYONLY)
install(FILES "${PROJECT_BINARY_DIR}/adaptk-config.cmake" "${PROJECT_BINARY_DIR}/adaptk-config-version.cmake"
              "${PROJECT_BINARY_DIR}/adaptk-contraction.cmake"
        DESTINATION "${package}")

if(TARGET adaptk AND NOT MSVC)
  if(ADAPTK_PYTHON AND WIN32)
    set(adaptk_link "-L\${libdir} -ladaptk")
    cmake_path(RELATIVE_PATH includes BASE_DIRECTORY "${libraries}/pkgconfig" OUTPUT_VARIABLE to_includes)
  elseif(ADAPTK_PYTHON)
    set(adaptk_link "\${libdir}/libadaptk${CMAKE_SHARED_LIBRARY_SUFFIX}.${adaptk_abi} -Wl,-rpath,\${libdir}")
    if(APPLE)
      set(adaptk_link "\${libdir}/libadaptk.${adaptk_abi}.dylib -Wl,-rpath,\${libdir}")
    endif()
    cmake_path(RELATIVE_PATH includes BASE_DIRECTORY "${libraries}/pkgconfig" OUTPUT_VARIABLE to_includes)
  else()
    set(adaptk_link "-L\${libdir} -ladaptk")
    cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR BASE_DIRECTORY "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig"
               OUTPUT_VARIABLE to_includes)
  endif()
  configure_file("${CMAKE_CURRENT_LIST_DIR}/adaptk.pc.in" "${PROJECT_BINARY_DIR}/adaptk.pc" @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/adaptk.pc" DESTINATION "${libraries}/pkgconfig")
endif()
