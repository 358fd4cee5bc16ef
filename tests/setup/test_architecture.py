"""The rules of the tree, read from the source: layers, owners of libraries, purity, file form.

Standard library only. Lengths over the aim are printed, never failed.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nodeapp"
PROCESSES = {
    "p2p", "inference", "chain", "prover", "updater", "console", "storage", "watchdog", "renter", "devnet",
    "provision",
}  # fmt: skip
ADAPTERS = {"network", "evm", "s5", "store", "security"}
LAYERS: tuple[set[str], ...] = (
    {"cli"},
    PROCESSES,
    {"rpc"},
    {"service"},
    ADAPTERS,
    {"wire"},
    {"core"},
)
"""An import goes to a later layer or stays inside its own package."""
OWNERS = {
    "libp2p": {"network"},
    "trio": {"network"},
    "web3": {"evm"},
    "llama_cpp": {"inference"},
    "llguidance": {"inference"},
    "pynvml": {"inference"},
    "ezkl": {"prover"},
    "sqlite3": {"store"},
    "zeroconf": {"network"},
    "ifaddr": {"network"},
    "miniupnpc": {"network"},
    "tuf": {"updater"},
}
IMPURE = {
    "aiohttp", "asyncio", "ezkl", "libp2p", "llama_cpp", "logging", "os", "pynvml", "random", "secrets",
    "socket", "sqlite3", "structlog", "subprocess", "threading", "time", "trio", "web3",
}  # fmt: skip
ENVIRONMENT_READERS = {"nodeapp/service/config.py"}


@dataclass(frozen=True)
class Module:
    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def package(self) -> str:
        parts = self.path.relative_to(PACKAGE).parts
        return parts[0] if len(parts) > 1 else ""

    def imports(self) -> Iterator[tuple[int, str]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}:{node.lineno} relative import"
                yield node.lineno, node.module or ""
                if node.module == "nodeapp":
                    for alias in node.names:
                        yield node.lineno, f"nodeapp.{alias.name}"


@cache
def modules() -> tuple[Module, ...]:
    paths = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
    return tuple(Module(path, ast.parse(path.read_text("utf-8"))) for path in paths)


def layer_of(package: str) -> int:
    return next((number for number, layer in enumerate(LAYERS) if package in layer), -1)


def test_every_package_has_a_layer():
    unplaced = {module.package for module in modules() if module.package} - set().union(*LAYERS)
    assert unplaced == {"decisions"} & unplaced


def test_imports_go_down_the_layers_only():
    broken = []
    for module in modules():
        for line, name in module.imports():
            parts = name.split(".")
            if parts[0] != "nodeapp" or len(parts) < 2 or not module.package:
                continue
            target = parts[1]
            if target == module.package or layer_of(target) < 0:
                continue
            if layer_of(target) <= layer_of(module.package):
                broken.append(f"{module.name}:{line} {module.package} imports {target}")
    assert broken == []


def test_libraries_are_imported_by_their_owner_only():
    broken = [
        f"{module.name}:{line} imports {name}"
        for module in modules()
        for line, name in module.imports()
        if module.package not in OWNERS.get(name.split(".")[0], {module.package})
    ]
    assert broken == []


def test_core_and_wire_are_pure():
    broken = [
        f"{module.name}:{line} imports {name}"
        for module in modules()
        if module.package in ("core", "wire")
        for line, name in module.imports()
        if name.split(".")[0] in IMPURE
    ]
    assert broken == []


def test_the_environment_is_read_in_one_file():
    broken = []
    for module in modules():
        if module.name in ENVIRONMENT_READERS:
            continue
        for node in ast.walk(module.tree):
            reads = isinstance(node, ast.Attribute) and node.attr in (
                "environ",
                "getenv",
                "environb",
            )
            if reads and isinstance(node.value, ast.Name) and node.value.id == "os":
                broken.append(f"{module.name}:{node.lineno}")
    assert broken == []


def test_a_broad_except_stands_in_main_or_is_waived_with_a_reason():
    broken = []
    for module in modules():
        if module.path.name == "main.py":
            continue
        lines = module.path.read_text("utf-8").splitlines()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node):
                waiver = lines[node.lineno - 1].partition("noqa: BLE001")[2]
                if len(waiver.strip(" #")) < 10:
                    broken.append(f"{module.name}:{node.lineno}")
    assert broken == []


def _is_broad(handler: ast.ExceptHandler) -> bool:
    """`except:`, or (Base)Exception that is not raised again at the end of the block."""
    if handler.type is None:
        return True
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(
        isinstance(name, ast.Name) and name.id in ("Exception", "BaseException") for name in names
    )
    return broad and not isinstance(handler.body[-1], ast.Raise)


def test_every_module_says_what_it_is():
    assert [module.name for module in modules() if not ast.get_docstring(module.tree)] == []


def test_nothing_unfinished_is_left_in_the_source():
    words = ("TO" + "DO", "FIX" + "ME", "XX" + "X ", "for" + " now")
    broken = [
        f"{module.name}: {word}"
        for module in modules()
        for word in words
        if word in module.path.read_text("utf-8")
    ]
    assert broken == []


def test_every_called_route_is_served():
    """A literal "/v1/…" of rpc/ appears in some process, as a literal or by its constant."""
    served = {
        node.value
        for module in modules()
        if module.package in PROCESSES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    used_names = {
        (imported.module, alias.name)
        for module in modules()
        if module.package in PROCESSES
        for imported in ast.walk(module.tree)
        if isinstance(imported, ast.ImportFrom)
        for alias in imported.names
    }
    missing = []
    for module in (item for item in modules() if item.package == "rpc"):
        dotted = f"nodeapp.rpc.{module.path.stem}"
        constants = {
            node.value.value: target.id
            for node in module.tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(module.tree):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            if not node.value.startswith("/v1/") or node.value in served:
                continue
            if (dotted, constants.get(node.value, "")) not in used_names:
                missing.append(f"{module.name}:{node.lineno} {node.value}")
    assert missing == []
