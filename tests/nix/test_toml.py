"""lib/toml.nix: any table becomes TOML that says the same; what TOML cannot say is refused."""

import json
import random
from typing import Any

import pytest
import tomli

from tests.nix.expressions import ROOT, evaluated, needs_nix, refused

pytestmark = needs_nix


def random_value(rng: random.Random, depth: int) -> Any:
    kinds = ["text", "int", "float", "bool"] + ["list", "table"] * (depth > 0)
    match rng.choice(kinds):
        case "text":
            letters = "aé\"\\\n\t\r\x01\x1f\x7f$'#={}[]. \U0001f600\u2028"
            return "".join(rng.choices(letters, k=rng.randrange(6)))
        case "int":
            return rng.randint(-(2**62), 2**62)
        case "float":
            return rng.choice([0.5, 1.0, -2.0, 1e-9, 1e30, 0.1, 12345.678])
        case "bool":
            return rng.random() < 0.5
        case "list":
            return [random_value(rng, 0) for _ in range(rng.randrange(4))]
        case _:
            return random_table(rng, depth - 1)


def random_table(rng: random.Random, depth: int) -> dict[str, Any]:
    names = ["a", "b-c", "d_1", "with space", "dot.ted", "ü", '"', "$", "", "1"]
    return {name: random_value(rng, depth) for name in rng.sample(names, rng.randrange(5))}


def test_any_table_becomes_toml_that_says_the_same(tmp_path):
    rng = random.Random(20261123)
    tables = [random_table(rng, 3) for _ in range(150)]
    given = tmp_path / "tables.json"
    given.write_text(json.dumps(tables))
    texts = evaluated(
        f"map (import {ROOT}/nixos-modules/lib/toml.nix)"
        f" (builtins.fromJSON (builtins.readFile {given}))"
    )
    read = [tomli.loads(text) for text in texts]
    assert read == tables
    # In Python 1 == 1.0; in TOML they are two types.
    assert json.dumps(read, sort_keys=True) == json.dumps(tables, sort_keys=True)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{ a.b = ./x; }", "would be copied into the Nix store"),
        ("{ a = [ null ]; }", "null inside"),
    ],
)
def test_what_toml_cannot_say_is_refused(value, said):
    assert said in refused(f"import {ROOT}/nixos-modules/lib/toml.nix {value}")


def test_null_is_left_out_of_toml():
    text = evaluated(
        f"import {ROOT}/nixos-modules/lib/toml.nix {{ a = null; b = {{ c = null; }}; }}"
    )
    assert text == "[b]\n"
