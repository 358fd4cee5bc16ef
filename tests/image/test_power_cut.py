"""Power is cut at every point of an update: there is always a slot that boots, and the same update
again ends in the new release.
"""

import random

import pytest

from tests.image.flashed import bootable_on, copied, entries, flashed
from tests.image.write_log import epochs, logged, read_log, rebuilt

pytestmark = [pytest.mark.usefixtures("fuse"), pytest.mark.timeout(180)]
A = "fabstir-node_0.1.0.efi"
B = "fabstir-node_0.2.0+3-0.efi"
SEED = 6
LEAST_POINTS = 200


@pytest.fixture(scope="module")
def log(factory, release):
    """All that the update of first.raw to after.raw wrote."""
    base = factory.base
    copied(base / "first.raw", "after.raw")
    with logged(factory, "after.raw", "writes") as served, flashed(factory, served) as machine:
        machine.offer(release.relative_to(base))
        machine.update("0.2.0")
    assert bootable_on(base / "after.raw") == {A, B}
    return read_log(base / "writes")


@pytest.fixture
def disk(factory):
    made = copied(factory.base / "first.raw", "cut.raw")
    yield made
    made.unlink()


def check(cut, final, where):
    """A boots; the new entry is not there, or it is whole and so is its slot."""
    boots = cut.bootable()
    assert A in boots, where
    kernel = cut.kernels().get(B)
    assert (kernel is None and B not in boots) or (kernel == final and B in boots), where


def test_at_every_point_of_an_update_a_slot_boots_and_no_half_one_is_offered(factory, log, disk):
    final = entries(factory.base / "after.raw")[B]
    points = 0
    with rebuilt(disk) as cut:
        assert cut.bootable() == {A}
        for write in log:
            for offset, data in write.pieces():
                cut.write(offset, data)
                points += 1
                check(cut, final, f"after {points} pieces, at {offset}")
        assert cut.bootable() == {A, B}
    print(f"{points} points, {len(log)} writes")
    assert points >= LEAST_POINTS


def test_whatever_was_not_flushed_may_be_lost(factory, log, disk):
    final = entries(factory.base / "after.raw")[B]
    chance = random.Random(SEED)
    between, tried = epochs(log), 0
    each = -(-LEAST_POINTS // len(between))
    with rebuilt(disk) as cut:
        for pieces in between:
            old = [(offset, cut.read(offset, len(data))) for offset, data in pieces]
            for _ in range(each):
                kept = chance.random()
                for offset, data in pieces:
                    if chance.random() < kept:
                        cut.write(offset, data)
                tried += 1
                check(cut, final, f"seed {SEED}, try {tried}")
                for offset, data in reversed(old):
                    cut.write(offset, data)
            for offset, data in pieces:
                cut.write(offset, data)
        assert cut.bootable() == {A, B}
    print(f"{tried} cuts in {len(between)} epochs")
    assert tried >= LEAST_POINTS


def resume(factory, log, disk, count):
    """Play `count` pieces, then update again."""
    left = count
    with rebuilt(disk) as cut:
        for write in log:
            for offset, data in write.pieces():
                if left == 0:
                    break
                cut.write(offset, data)
                left -= 1
    with flashed(factory, disk.name) as machine:
        machine.offer((factory.base / "0.2.0/release").relative_to(factory.base))
        machine.update("0.2.0")
    assert bootable_on(disk) == {A, B}, f"resumed after {count} pieces"


def test_the_same_update_after_a_cut_ends_in_the_new_release(factory, log, disk):
    total = sum(1 for write in log for _ in write.pieces())
    resume(factory, log, disk, random.Random(SEED).randrange(total // 4, total))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(24))
def test_the_same_update_after_any_cut_ends_in_the_new_release(factory, log, disk, part):
    total = sum(1 for write in log for _ in write.pieces())
    resume(factory, log, disk, total * part // 24 + random.Random(part).randrange(total // 24))
