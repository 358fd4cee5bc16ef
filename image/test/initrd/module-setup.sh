#!/bin/bash
# The root of the booted image is a tmpfs; it is filled from the verified /usr before the switch.
check() { return 0; }
depends() { echo systemd-initrd; }
install() {
    inst_simple "$moddir/fabstir-root.service" /usr/lib/systemd/system/fabstir-root.service
    inst_multiple cp mkfs.btrfs btrfs sync
    # The committed drop-ins: what does not come to its root starts anew.
    mkdir -p "$initdir/etc/systemd"
    cp -r "$moddir/system" "$initdir/etc/systemd/"
    $SYSTEMCTL -q --root "$initdir" add-wants initrd-fs.target fabstir-root.service
}
