# The disk, as systemd-repart's definitions: file name → settings, and as text.
#
# build   the flash image: boot loader, slot A with its hashes, the operator's CONFIG. No slot B:
#         a flashed disk would be written twice as long for nothing.
#         Disks have 512-byte sectors for firmware: --sector-size=512, or the ESP's file system
#         gets 4096, and some do not read that.
# device  on the node, at every boot: makes slot B and the state once, then finds all as it should
#         be. The slots of both letters have one size, or an update that fits A would not fit B.
{
  name ? "fabstir-node",
  # %A is IMAGE_VERSION of the os-release of the root that is packed.
  version ? "%A",
  sizes,
}:
let
  state = import ./state.nix;
  mebibytes = count: "${toString count}M";
  fixed = count: {
    SizeMinBytes = mebibytes count;
    SizeMaxBytes = mebibytes count;
  };
  esp = {
    Type = "esp";
    Label = "esp";
    Format = "vfat";
  } // fixed sizes.esp;
  verity = {
    Type = "usr-x86-64-verity";
    ReadOnly = "yes";
  } // fixed sizes.verity;
  store = {
    Type = "usr-x86-64";
    ReadOnly = "yes";
  } // fixed sizes.store;
  slotA = {
    Label = "${name}_${version}";
    VerityMatchKey = "store";
    # The hashes cover the contents and not the rest of the slot, so an update carries no more.
    Minimize = "best";
  };
  empty.Label = "_empty";
  sets = {
    build = {
      "10-esp" = esp // { SplitName = "-"; };
      "20-verity-a" = verity // slotA // {
        Verity = "hash";
        SplitName = "verity";
        # Not the disk's sectors, which would make eight times as many hashes.
        VerityDataBlockSizeBytes = "4096";
        VerityHashBlockSizeBytes = "4096";
      };
      "21-store-a" = store // slotA // { Verity = "data"; Format = "erofs"; SplitName = "store"; };
      "50-config" = {
        # Microsoft's basic data: any desktop shows it.
        Type = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7";
        Label = "CONFIG";
        Format = "vfat";
        SplitName = "-";
      } // fixed sizes.config;
    };
    device = {
      "20-verity-a" = verity // empty;
      "21-store-a" = store // empty;
      "30-verity-b" = verity // empty;
      "31-store-b" = store // empty;
      "60-state" = {
        Type = "linux-generic";
        Label = state.label;
        Format = "btrfs";
        MakeDirectories = builtins.concatStringsSep " " state.names;
        Subvolumes = builtins.concatStringsSep " " state.names;
        SizeMinBytes = mebibytes sizes.state;
      };
    };
  };
  text =
    settings:
    "[Partition]\n"
    + builtins.concatStringsSep "" (
      map (key: "${key}=${settings.${key}}\n") (builtins.attrNames settings)
    );
in
sets
// {
  files = builtins.mapAttrs (
    _: definitions:
    builtins.listToAttrs (
      map (file: {
        name = "${file}.conf";
        value = text definitions.${file};
      }) (builtins.attrNames definitions)
    )
  ) sets;
}
