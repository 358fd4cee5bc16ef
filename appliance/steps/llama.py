"""llama-cpp-python, built for this processor: ninja, and only the libraries that are loaded.

A portable build (images) takes x86-64-v3 instead of this processor. The plain build also compiles
llama.cpp's command-line helpers (`llama-common`) and the multimodal library; nothing here loads
them. Optimisation stays as upstream sets it (-O3, -march=native): compile time is paid once, run
time at every token.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

from appliance.steps.console import SetupFailure, Status
from appliance.steps.environment import BUILD_LOCK, PIP_QUIET, download, ensure_build_tools
from appliance.steps.layout import (
    APPLIANCE,
    Layout,
    cpu_flags,
    digest,
    made_atomically,
    python_tag,
    split_lock,
)
from appliance.steps.run import ninja_progress, run

NAME = "llama-cpp-python"
TARGETS_FILE = APPLIANCE / "llama-targets.cmake"
KERNELS_FILE = APPLIANCE / "llama-batch-gemm.cpp"
"""Compiled into llama.cpp's library for processors by TARGETS_FILE."""
OWN_FILES = (TARGETS_FILE, KERNELS_FILE)
CMAKE_FLAGS = (
    "-DLLAVA_BUILD=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
PORTABLE_FLAGS = (
    "-DGGML_NATIVE=OFF",
    *(f"-DGGML_{name}=ON" for name in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")),
)
"""x86-64-v3: every x86-64 processor of 2015 and later that one would put beside a GPU."""
LIBRARIES = ("libllama.so", "libggml.so", "libggml-base.so", "libggml-cpu.so")


def wheel_directory(places: Layout, pinned: str) -> Path:
    """Where the wheel for this version, processor, compiler and these flags is cached."""
    return places.wheels / f"{NAME}-{_key(places, pinned)}"


def is_wheel_present(places: Layout, lock_text: str) -> bool:
    """It is in the cache for this machine."""
    return wheel_directory(places, split_lock(lock_text, (NAME,))[1]).exists()


def cmake_flags(places: Layout) -> tuple[str, ...]:
    """Of the whole build; CMake takes the last word on a flag."""
    return (*CMAKE_FLAGS, *PORTABLE_FLAGS) if places.portable else CMAKE_FLAGS


def _key(places: Layout, pinned: str) -> str:
    flags = " ".join(cmake_flags(places))
    processor = "" if places.portable else cpu_flags()
    return digest(pinned, flags, *OWN_FILES, BUILD_LOCK, python_tag(), processor, _compiler())


def _compiler() -> str:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return "none"
    done = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, check=False)
    return done.stdout.decode(errors="replace").strip()


def ensure_llama_wheel(places: Layout, status: Status, lock_text: str) -> Path:
    """Build the wheel once a key; returns its path.

    Raises:
        SetupFailure: the download or the compiler failed, or a library is missing in the wheel.
    """
    _, pinned = split_lock(lock_text, (NAME,))
    target = wheel_directory(places, pinned)
    if not target.exists():
        python = ensure_build_tools(places, status)
        with made_atomically(target) as temporary:
            _build(status, python, pinned, temporary, cmake_flags(places))
    return next(target.glob("*.whl"))


def _build(
    status: Status, python: Path, pinned: str, target: Path, flags_of_cmake: tuple[str, ...]
) -> None:
    sources = target / "source"
    sources.mkdir()
    status.update("downloading the sources")
    flags = ("--no-binary", NAME, "--no-build-isolation")
    archive = download(python, status, pinned, sources, *flags)
    command: list[str | Path] = [python, "-m", "pip", "wheel", "-v", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "-w", target, archive]
    environment = {
        **PIP_QUIET,
        "CMAKE_ARGS": " ".join((*flags_of_cmake, f"-DCMAKE_PROJECT_INCLUDE={TARGETS_FILE}")),
        "CMAKE_GENERATOR": "Ninja",
        "PATH": f"{python.parent}:{os.environ.get('PATH', os.defpath)}",
        "TMPDIR": str(sources),
    }
    what = f"building {NAME}"
    run(status, command, what=what, environment=environment, show=ninja_progress)
    shutil.rmtree(sources)
    _check(next(target.glob("*.whl")))


def _check(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = {Path(name).name for name in content.namelist() if "/lib/" in name}
    absent = [name for name in LIBRARIES if name not in names]
    if absent:
        raise SetupFailure(f"built {wheel.name} lacks {', '.join(absent)}")
