# What is made of a machine with nixos-modules/appliance.nix:
#   update  the files of a release, unsigned: UKI, store, hashes, flash image, SHA256SUMS
#   image   the flash image alone: zstd -dc image/*.raw.zst | dd of=/dev/…
#   oci     the node as a container image
{ nixosConfiguration, pkgs }:
let
  inherit (nixosConfiguration) config;
  update = import ./update.nix { inherit config pkgs; };
  version = config.system.image.version;
in
{
  inherit update;
  image = pkgs.runCommand "fabstir-node-image-${version}" { } ''
    mkdir $out
    ln -s ${update}/fabstir-node_${version}.raw.zst ${update}/SHA256SUMS $out/
  '';
  oci = import ./oci.nix { inherit config pkgs; };
}
