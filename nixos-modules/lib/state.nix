# What outlives a reboot: one btrfs with these subvolumes; the rest of / is made anew at every boot.
# systemd-repart makes them with the partition, at the first boot.
let
  label = "fabstir-state";
  subvolumes = [
    {
      name = "@state";
      path = "/var/lib/fabstir";
    }
    {
      name = "@keys";
      path = "/var/lib/fabstir-keys";
    }
    {
      name = "@models";
      path = "/var/cache/fabstir";
    }
    {
      name = "@snapshots";
      path = "/var/lib/fabstir/.snapshots";
    }
  ];
  # Mounted by a unit of its own, lib/boot-units.nix; also on a disk that was flashed without it.
  log.name = "@log";
  # Journals are synced one record at a time: no compression there gains anything. The file system
  # follows its partition when that grows.
  options =
    subvolume:
    [ "subvol=/${subvolume.name}" ]
    ++ shared
    ++ [ "x-systemd.growfs" ];
  # The first mount of a file system decides on most of them.
  shared = [
    "noatime"
    "nosuid"
    "nodev"
    # The node's user deletes its own snapshots.
    "user_subvol_rm_allowed"
  ];
  device = "/dev/disk/by-partlabel/${label}";
  deviceUnit = "dev-disk-by\\x2dpartlabel-fabstir\\x2dstate.device";
  line =
    subvolume:
    "${device} ${subvolume.path} btrfs ${builtins.concatStringsSep "," (options subvolume)} 0 0\n";
in
{
  inherit
    device
    deviceUnit
    label
    log
    options
    shared
    subvolumes
    ;
  names = map (subvolume: "/${subvolume.name}") (subvolumes ++ [ log ]);
  fstab = builtins.concatStringsSep "" (map line subvolumes);
}
