# The node: sources, the environment of its pinned packages, and the commands.
# The same shape as a checkout that was set up: <root>/.venv beside the sources.
{
  pkgs,
  withCuda ? false,
  withEzkl ? false,
  cudaArchitectures ? (import ./python/files.nix).cudaArchitectures,
}:
let
  inherit (pkgs) lib;
  python = import ./python {
    inherit
      pkgs
      withCuda
      withEzkl
      cudaArchitectures
      ;
  };
  project = (builtins.fromTOML (builtins.readFile ../pyproject.toml)).project;
  kept = [
    "README.md"
    "appliance"
    # What the units' Documentation= names.
    "docs"
    "nodeapp"
    "pyproject.toml"
    "requirements.lock"
    "LICENSE"
  ];
in
pkgs.stdenvNoCC.mkDerivation {
  pname = project.name;
  inherit (project) version;
  src = builtins.path {
    name = "fabstir-node-source";
    path = ../.;
    filter =
      path: _type:
      let
        inside = lib.removePrefix "${toString ../.}/" path;
      in
      builtins.elem (builtins.head (builtins.split "/" inside)) kept
      && !(lib.hasSuffix ".pyc" path);
  };
  dontUnpack = true;
  dontConfigure = true;
  dontBuild = true;
  launcher = ../appliance/nix-launch.sh;
  inherit (python) environment model;
  python3 = python.environment.python;
  bashProgram = "${pkgs.bash}/bin/bash";
  anvil = "${pkgs.foundry}/bin/anvil";
  # Programs the node starts by name: backups (restic calls ssh for an SFTP repository), snapshots.
  tools = lib.makeBinPath [
    pkgs.btrfs-progs
    pkgs.coreutils
    pkgs.openssh
    pkgs.restic
  ];
  installPhase = "(source ${./package.sh})";
  passthru = {
    inherit python;
    # For modules: where the sources and the interpreter with everything in it are.
    root = "lib/fabstir-node";
    inherit withCuda withEzkl;
  };
  meta = {
    inherit (project) description;
    mainProgram = "fabstir-node";
    license = [
      lib.licenses.asl20
    ]
    ++ lib.optional withEzkl lib.licenses.unfree;
    platforms = [ "x86_64-linux" ];
  };
}
