# The NixOS side of the disk: nixpkgs builds the image by the same definitions that are committed
# for other userlands, adding only what goes into a partition and what it sets itself.
{
  config,
  lib,
  modulesPath,
  pkgs,
  ...
}:
let
  repart = import ../nixos-modules/lib/repart.nix {
    name = config.system.image.id;
    version = config.system.image.version;
    sizes = (import ./sizes.nix).${config.fabstir.appliance.profile};
  };
  ids = config.image.repart.verityStore.partitionIds;
  # Set by image/repart-verity-store.nix, for the machine's own architecture.
  withoutVerity =
    settings:
    removeAttrs settings [
      "Type"
      "Verity"
    ];
  arch = pkgs.stdenv.hostPlatform.efiArch;
  bootLoader = "${pkgs.systemd}/lib/systemd/boot/efi/systemd-boot${arch}.efi";
in
{
  imports = [ "${modulesPath}/image/repart.nix" ];

  image.repart = {
    name = config.system.image.id;
    version = config.system.image.version;
    # Of this project: a seed makes the same identifiers in every build.
    seed = "b5a0f7fc-5d0f-4b43-9c1e-0d1f2b6ee7a4";
    verityStore = {
      enable = true;
      ukiPath = "/EFI/Linux/${config.system.boot.loader.ukiFile}";
      partitionIds = {
        esp = "10-esp";
        store-verity = "20-verity-a";
        store = "21-store-a";
      };
    };
    mkfsOptions.erofs = [ "-zlz4hc" ];
    partitions = {
      ${ids.esp} = {
        repartConfig = repart.build."10-esp";
        contents = {
          "/EFI/BOOT/BOOT${lib.toUpper arch}.EFI".source = bootLoader;
          "/EFI/systemd/systemd-boot${arch}.efi".source = bootLoader;
          "/loader/loader.conf".source = pkgs.writeText "loader.conf" ''
            timeout 3
            editor no
          '';
        };
      };
      ${ids.store-verity}.repartConfig = withoutVerity repart.build."20-verity-a";
      ${ids.store}.repartConfig = withoutVerity repart.build."21-store-a";
      "50-config".repartConfig = repart.build."50-config";
    };
  };

  # At every boot, before the state is mounted: makes slot B and the state once.
  systemd.repart.partitions = repart.device;
  boot.initrd.systemd.repart.enable = true;
  # The disk is the one /usr comes from: / is a tmpfs.
  boot.initrd.systemd.services.systemd-repart.after = [ "sysroot-usr.mount" ];
  boot.initrd.supportedFilesystems.btrfs = true;
}
