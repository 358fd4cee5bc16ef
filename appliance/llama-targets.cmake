# Included at every project() of the llama-cpp-python build (CMAKE_PROJECT_INCLUDE).
# Its CMakeLists.txt forces LLAMA_BUILD_COMMON on in the cache; a normal variable set when
# llama.cpp's own project begins hides that entry (policy CMP0077), so llama-common, which costs
# half of the compile time and which nothing loads, is neither built nor installed.
if(PROJECT_NAME STREQUAL "llama.cpp")
    set(LLAMA_BUILD_COMMON OFF)
endif()
# The product's own kernels for small batches go into ggml-cpu, before llama.cpp's (see the file).
# Every product of a matrix with a batch asks llamafile_sgemm first, so that is the one place.
if(PROJECT_NAME STREQUAL "ggml" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    if(NOT FABSTIR_BATCH_GEMM)
        set(FABSTIR_BATCH_GEMM "${CMAKE_CURRENT_LIST_DIR}/llama-batch-gemm.cpp")
    endif()
    function(fabstir_add_batch_gemm source)
        if(GGML_LLAMAFILE AND TARGET ggml-cpu)
            target_sources(ggml-cpu PRIVATE "${source}")
            target_link_options(ggml-cpu PRIVATE "LINKER:--wrap=llamafile_sgemm")
        endif()
    endfunction()
    # When this directory is read to its end, the target is there.
    cmake_language(EVAL CODE
        "cmake_language(DEFER CALL fabstir_add_batch_gemm [[${FABSTIR_BATCH_GEMM}]])")
endif()
