# Included at every project() of the llama-cpp-python build (CMAKE_PROJECT_INCLUDE).
# Its CMakeLists.txt forces LLAMA_BUILD_COMMON on in the cache; a normal variable set when
# llama.cpp's own project begins hides that entry (policy CMP0077), so llama-common, which costs
# half of the compile time and which nothing loads, is neither built nor installed.
if(PROJECT_NAME STREQUAL "llama.cpp")
    set(LLAMA_BUILD_COMMON OFF)
endif()
