"""Build the OCI image: `python3 -m appliance.oci --out DIRECTORY` (root; mmdebstrap and buildah).

From a Debian root tree and this checkout, without any image registry. The result is an OCI layout
that every engine reads: `podman pull oci:DIRECTORY:TAG`, `skopeo copy oci:DIRECTORY:TAG …`.
All times in it are the one of the last commit; with the same Debian packages and the same cached
llama.cpp two builds are the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.steps.console import SetupFailure, Status, step
from appliance.steps.layout import ROOT, digest, layout, only_one
from appliance.steps.run import run
from appliance.steps.sources import copy_files, product_files

SUITE = "trixie"
PACKAGES = (
    "ca-certificates",
    "libgmp10",
    "libgomp1",
    "libstdc++6",
    "python3",
    "restic",
    "tini",
)
"""What runs the node; the compiler is in the build stage only."""
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
NAME = "fabstir-node"


@dataclass(frozen=True, slots=True)
class Image:
    """A finished layout; bytes of the one layer, packed and unpacked."""

    directory: Path
    tag: str
    manifest: str
    packed_bytes: int
    unpacked_bytes: int


def moment(root: Path = ROOT) -> int:
    """SOURCE_DATE_EPOCH, else the time of the last commit; Unix seconds."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdigit():
        return int(given)
    done = subprocess.run(
        ["git", "-C", root, "log", "-1", "--format=%ct"], capture_output=True, check=False
    )
    return int(done.stdout or b"0")


def write_context(directory: Path, base: Path) -> None:
    """The two things the Containerfile asks for."""
    (directory / "base.tar").hardlink_to(base)
    copy_files(product_files(), directory / "source")


def ensure_base(cache: Path, status: Status, mirror: str) -> Path:
    """The Debian root tree as an archive, made once a package list and mirror.

    Raises:
        SetupFailure: mmdebstrap failed.
    """
    target = cache / "oci" / f"base-{digest(SUITE, mirror, *PACKAGES, *LEFT_OUT)}.tar"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        part = Path(directory) / "base.tar"
        command: list[str | Path] = ["mmdebstrap", "--variant=minbase", "--skip=output/dev"]
        command += [f"--include={','.join(PACKAGES)}"]
        command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        command += [SUITE, part, *((mirror,) if mirror else ())]
        epoch = {"SOURCE_DATE_EPOCH": str(moment())}
        run(status, command, what="mmdebstrap", environment=epoch)
        part.replace(target)
    return target


def build(out: Path, tag: str, *, mirror: str = "") -> Image:
    """Write the layout; an older one in the same place is replaced.

    Raises:
        SetupFailure: a tool is missing or failed; its last lines are in the text.
    """
    for program in ("mmdebstrap", "buildah", "git"):
        if shutil.which(program) is None:
            raise SetupFailure(f"{program} is not installed: apt-get install {program}")
    if os.geteuid() != 0:
        raise SetupFailure("root is needed to make a Debian root tree and to build in it")
    cache = layout().cache
    with only_one(cache / "oci"), tempfile.TemporaryDirectory(dir=cache / "oci") as name:
        place = Path(name)
        with step("Debian root tree of the image") as status:
            base = ensure_base(cache, status, mirror)
        context = place / "context"
        context.mkdir()
        write_context(context, base)
        with step("image") as status:
            _build(status, place, cache / "oci" / "parts", tag)
        with step("OCI layout") as status:
            made = place / "layout"
            _buildah(status, place, "push", f"{NAME}:{tag}", f"oci:{made}:{tag}")
        if out.exists():
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, out)
    return describe(out, tag)


def _build(status: Status, place: Path, parts: Path, tag: str) -> None:
    parts.mkdir(exist_ok=True)
    options = ["--isolation", "chroot", "--format", "oci", "--squash"]
    options += ["--timestamp", str(moment()), "--volume", f"{parts}:/var/cache/fabstir-build"]
    if CERTIFICATES.exists():
        # A company's own root certificate is needed to fetch; it does not become part of the image.
        options += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    file = ROOT / "image" / "Containerfile"
    _buildah(status, place, "bud", *options, "-f", file, "-t", f"{NAME}:{tag}", place / "context")


def _buildah(status: Status, place: Path, verb: str, *arguments: str | Path) -> None:
    run(
        status,
        [*_storage(place), verb, *arguments],
        what=f"buildah {verb}",
        environment={"TMPDIR": str(place)},
    )


def _storage(place: Path) -> list[str | Path]:
    """Images of this build only: nothing is left in the machine's own store."""
    return ["buildah", "--storage-driver=vfs", "--root", place / "root", "--runroot", place / "run"]


def describe(out: Path, tag: str) -> Image:
    """Of a layout with one image."""
    index = json.loads((out / "index.json").read_text("utf-8"))
    manifest = str(index["manifests"][0]["digest"])
    layers = json.loads(_blob(out, manifest).read_text("utf-8"))["layers"]
    unpacked = 0
    for layer in layers:
        with tarfile.open(_blob(out, layer["digest"])) as content:
            unpacked += sum(member.size for member in content)
    return Image(out, tag, manifest, sum(int(layer["size"]) for layer in layers), unpacked)


def _blob(out: Path, name: str) -> Path:
    return out / "blobs" / name.replace(":", "/")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m appliance.oci", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the OCI layout")
    parser.add_argument("--tag", default="latest")
    parser.add_argument("--mirror", default="", help="Debian mirror, e.g. of a snapshot")
    chosen = parser.parse_args(arguments)
    try:
        image = build(chosen.out.absolute(), chosen.tag, mirror=chosen.mirror)
    except (SetupFailure, OSError) as failure:
        sys.stderr.write(f"oci: {failure}\n")
        return 1
    sys.stdout.write(
        f"{image.directory}:{image.tag} {image.manifest}\n"
        f"  {image.unpacked_bytes / 1e6:.0f} MB, {image.packed_bytes / 1e6:.0f} MB to download\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
