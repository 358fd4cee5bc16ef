"""What the booted test image takes over of the appliance's own files."""

from image.test.container import subvolumes
from image.test.tree import UNITS, write_settings


def test_the_test_image_has_the_appliances_units_and_no_name_server(tmp_path):
    keyring = tmp_path / "keyring"
    keyring.touch()
    tree = tmp_path / "tree"
    places = (
        "etc/systemd",
        "usr/lib/systemd/system",
        "usr/lib/systemd/network",
        "usr/lib/repart.d",
    )
    for place in places:
        (tree / place).mkdir(parents=True)
    (tree / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    write_settings(tree, keyring)
    units = tree / "usr/lib/systemd/system"
    for unit in UNITS.glob("*.*"):
        assert unit.is_dir() or (units / unit.name).read_text() == unit.read_text()
    dropins = {path.name for path in (units / "fabstir-node.service.d").iterdir()}
    # Not the one of an installation by releases.
    assert dropins == {"appliance.conf", "50-test.conf"}
    assert not (tree / "etc/resolv.conf").exists()


def test_the_container_mounts_the_state_as_the_appliance_does():
    found = {name: (place, options.split(",")) for name, place, options in subvolumes()}
    assert set(found) == {"@state", "@keys", "@models", "@snapshots"}
    for name, (_place, options) in found.items():
        assert f"subvol=/{name}" in options
        assert not [one for one in options if one.startswith("x-")]
    assert found["@snapshots"][0] == "/var/lib/fabstir/.snapshots"
    assert "user_subvol_rm_allowed" in found["@snapshots"][1]
