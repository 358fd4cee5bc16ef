"""The appliance, booted: `make slow-appliance` writes build/reports/appliance.json.

    build      the test image of this commit, releases 0.1.0, 0.2.0 and a broken 0.3.0 (image/test)
    container  the image under a real systemd: full tree, paid request, backup, a blank disk
    machine    the flashed disk under QEMU without hardware help: firmware, verity, partitions,
               update, bless, fall-back

Chain, renters and the release channel run outside. Serial lines and journals are kept below
build/reports/appliance/. ARGS="--stages container" repeats what was built before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.steps.console import Status, step
from appliance.steps.layout import layout
from image.test.release import (
    Image,
    Workshop,
    make_data_disk,
    make_disk,
    make_image,
    make_key,
    make_release,
)
from image.test.roots import base_root, initrd_directory, node_directory
from image.test.tree import Parts, break_process, compile_tree, make_tree, name_version
from nodeapp.prover.profile import cached_profile_dir
from tests.benchmarks.appliance_container import container_rows
from tests.benchmarks.appliance_machine import machine_rows
from tests.benchmarks.report import ROOT, Row, kept_rows, machine, row, table, write
from tests.image.toolroot import qemu_root, room

STAGES = ("build", "container", "machine")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0")
DISK_BYTES = 8 << 30
BROKEN = "storage"
"""The program that release 0.3.0 cannot start."""
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class Built:
    """What the other stages boot."""

    shop: Workshop
    tree: Path
    data: Path

    def image(self, version: str) -> Image:
        """A version made by the build stage."""
        place = self.shop.job / "images" / version
        root = (place / "roothash").read_text().strip()
        uki = place / f"fabstir-node_{version}.efi"
        return Image(version, root, place / "disk.store.raw", place / "disk.verity.raw", uki)

    def release(self, version: str) -> Path:
        """Its packed update."""
        return self.shop.job / "releases" / version


def build(built: Built) -> list[Row]:
    """All three versions; only what differs is made again."""
    places = layout(portable=True)
    shop, tree, began = built.shop, built.tree, time.monotonic()
    with step("roots of the image", sys.stdout) as status:
        parts = _parts(shop, status)
    with step("files of the image", sys.stdout):
        make_tree(tree, parts, shop.tools, shop.job)
        compile_tree(tree, parts.base)
    for version in VERSIONS:
        with step(f"image {version}", sys.stdout) as status:
            name_version(tree, version)
            if version == VERSIONS[-1]:
                break_process(tree, BROKEN)
            image = make_image(shop, tree, parts.initrd, version)
            image.store.with_name("roothash").write_text(image.roothash)
            make_disk(shop, image, DISK_BYTES)
            if version != VERSIONS[0]:
                status.update("packing")
                make_release(image, built.release(version), shop.job / "gpg")
                image.store.with_name("disk.raw").unlink()
    with step("disk with model and proof profile", sys.stdout):
        profile = cached_profile_dir(places.cache, "kzg")
        files = [(places.cache / "models" / MODEL, "model.gguf"), (profile, "kzg")]
        make_data_disk(shop, built.data, files)
    size = sum(path.stat().st_size for path in built.release("0.2.0").iterdir())
    return [
        row("build: three images and two releases", time.monotonic() - began, "s"),
        row("build: update to download", size / 2**20, "MiB", "", "xz of /usr, its hashes, UKI"),
    ]


def _parts(shop: Workshop, status: Status) -> Parts:
    places = layout(portable=True)
    return Parts(
        base_root(places, status),
        node_directory(places, status),
        initrd_directory(places, status),
        make_key(shop, shop.job / "gpg"),
    )


@contextmanager
def workshop(job: Path) -> Iterator[Built]:
    """The tools, with the campaign's directory."""
    job.mkdir(parents=True, exist_ok=True)
    with room(qemu_root(), {"/job": job}) as tools:
        yield Built(Workshop(tools, job), job / "tree", job / "data.raw")


def main() -> int:
    """Run the stages; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=ROOT / "build/reports/appliance.json")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of these, by commas")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="times as long on a busy machine"
    )
    parser.add_argument("--job", type=Path, default=layout().cache / "appliance" / "job")
    given = parser.parse_args()
    stages = given.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"unknown stage {min(unknown)}; known: {', '.join(STAGES)}")
    facts, logs = machine(), given.out.with_suffix("")
    rows = kept_rows(given.out, _names(given.out, stages))
    with workshop(given.job) as built:
        runs = {
            "build": lambda: build(built),
            "container": lambda: container_rows(
                built.shop, built.image("0.1.0"), built.tree, built.data, logs
            ),
            "machine": lambda: machine_rows(
                built.shop,
                built.image("0.1.0"),
                {version: built.release(version) for version in VERSIONS[1:]},
                built.data,
                logs,
                patience=given.patience,
            ),
        }
        for stage in STAGES:
            if stage in stages:
                began = time.monotonic()
                rows += runs[stage]()
                rows.append(row(f"{stage}: all of the stage", time.monotonic() - began, "s"))
                write(given.out, facts, rows)
    table("appliance", rows)
    return 1 if any(one.ok is False for one in rows) else 0


def _names(report: Path, stages: list[str]) -> list[str]:
    """Rows of the stages that are not run again."""
    import json

    if not report.exists():
        return []
    found = json.loads(report.read_text("utf-8"))["rows"]
    return [one["name"] for one in found if one["name"].partition(":")[0] not in stages]


if __name__ == "__main__":
    sys.exit(main())
