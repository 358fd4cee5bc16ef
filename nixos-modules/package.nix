# The same code as a checkout, with a launcher that sets it up by the same hash-pinned lock files.
# Python packages are installed into the cache directory at the first start: nixpkgs lacks ezkl and
# libp2p, and versions there differ from the ones that are tested.
{ pkgs, source }:
let
  tools = [
    pkgs.python311
    pkgs.gcc
    pkgs.gmp
    pkgs.gnumake
    pkgs.nodejs
  ];
  libraries = [
    pkgs.stdenv.cc.cc.lib
    pkgs.gmp
    pkgs.zlib
  ];
in
pkgs.runCommand "fabstir-node-0.1.0"
  {
    inherit source;
    launcher = ../appliance/nix-launch.sh;
    shell = "${pkgs.bash}/bin/bash";
    toolPath = pkgs.lib.makeBinPath tools;
    libraryPath = pkgs.lib.makeLibraryPath libraries;
    anvil = "${pkgs.foundry}/bin/anvil";
    headerPath = "${pkgs.gmp.dev}/include";
    meta.mainProgram = "fabstir-node";
  }
  ''
    mkdir -p "$out/bin" "$out/lib/fabstir-node"
    cp -r "$source/." "$out/lib/fabstir-node"
    substitute "$launcher" "$out/bin/fabstir-node" \
      --subst-var-by shell "$shell" --subst-var-by root "$out/lib/fabstir-node" \
      --subst-var-by tools "$toolPath" --subst-var-by libraries "$libraryPath" \
      --subst-var-by headers "$headerPath" --subst-var-by anvil "$anvil"
    chmod +x "$out/bin/fabstir-node"
  ''
