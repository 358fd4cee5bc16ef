"""The modules are evaluated with the small lib of the tests, and with nixpkgs' own where it is at hand."""

import pytest

from tests.nix.modules import nixpkgs_lib


@pytest.fixture(params=["own", "nixpkgs"], scope="module")
def library(request: pytest.FixtureRequest) -> str:
    """Its path; "" for the small one."""
    if request.param == "own":
        return ""
    return nixpkgs_lib() or pytest.skip("FABSTIR_NIXPKGS_LIB does not name nixpkgs' lib")
