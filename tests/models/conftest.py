from __future__ import annotations

import pytest

from nodeapp.service.paths import default_cache_dir


@pytest.fixture(scope="session")
def model_path():
    path = default_cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is missing: run `make setup`")
    return path
