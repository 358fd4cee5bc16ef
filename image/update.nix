# The files of a release from the finished image and its UKI: what `python -m appliance.release pack`
# makes, unsigned, since no key enters a build.
{ config, pkgs }:
let
  inherit (config.image.repart) imageFileBasename;
  inherit (config.system.boot.loader) ukiFile;
  version = config.system.image.version;
in
pkgs.runCommand "fabstir-node-release-${version}"
  {
    nativeBuildInputs = [
      pkgs.python3
      pkgs.xz
      pkgs.zstd
    ];
  }
  ''
    cp -r ${../appliance} appliance
    python3 -m appliance.release pack --version ${version} \
      --disk ${config.system.build.finalImage}/${imageFileBasename}.raw \
      --uki ${config.system.build.uki}/${ukiFile} --out $out
  ''
