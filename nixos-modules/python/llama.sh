# shellcheck shell=bash
# Compile llama-cpp-python from its source archive into a wheel. Expects $src (folder), $tools,
# $targets (a CMake file), $kernels (what it compiles in), $cmakeFlagsOfLlama, $common (tools.sh).
# shellcheck source=tools.sh
source "${common:?}"
export CMAKE_GENERATOR=Ninja CMAKE_BUILD_PARALLEL_LEVEL="${NIX_BUILD_CORES:-1}"
export CMAKE_ARGS="${cmakeFlagsOfLlama:?} -DCMAKE_PROJECT_INCLUDE=${targets:?}"
CMAKE_ARGS+=" -DFABSTIR_BATCH_GEMM=${kernels:?}"
mkdir -p "${out:?}"
pip wheel --no-deps --no-build-isolation -w "$out" "${src:?}"/*.tar.gz
