# The NixOS side of the unified kernel image; nixpkgs' image/repart-verity-store.nix builds it a
# second time with the usrhash of the finished store.
{ config, ... }:
let
  uki = import ../nixos-modules/lib/uki.nix {
    name = config.system.image.id;
    version = config.system.image.version;
  };
in
{
  boot = {
    inherit (uki) kernelParams;
    uki = {
      name = config.system.image.id;
      version = config.system.image.version;
      tries = null;
    };
    # systemd-boot lies on the ESP as a file; nothing installs boot entries on a running node.
    loader.grub.enable = false;
  };
  assertions = [
    {
      assertion = config.system.boot.loader.ukiFile == uki.file;
      message = "the UKI is called ${config.system.boot.loader.ukiFile}, but updates look for ${uki.file}";
    }
  ];
}
