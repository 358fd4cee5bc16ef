# nixpkgs' own first argument. `machine.nix` is written by the test: where the machine's Python and
# the files to "fetch" are.
{
  system,
  config ? { },
}:
let
  lib = import ./lib;
  machine = import ./machine.nix;
  unfree = package: !(config.allowUnfreePredicate or (_: false) package);

  derive =
    name: attributes:
    derivation (
      {
        inherit name system;
        builder = "/bin/sh";
        PATH = machine.path;
      }
      // attributes
    );
  # As in nixpkgs: an unfree licence is an error unless it was allowed.
  guarded =
    attributes: made:
    let
      licences = attributes.meta.license or [ ];
      list = if builtins.isList licences then licences else [ licences ];
    in
    if builtins.any (one: !(one.free or true)) list && unfree made then
      throw "${made.name} is unfree"
    else
      made;
  # The phases our packages use, run by bash; library paths of the machine need no patching.
  mkDerivation =
    attributes:
    let
      name = attributes.name or "${attributes.pname}-${attributes.version}";
      made =
        derive name (
          removeAttrs attributes [
            "meta"
            "passthru"
            "nativeBuildInputs"
            "buildInputs"
          ]
          // {
            builder = machine.bash;
            args = [
              ./stdenv.sh
            ];
            inputs = map toString (
              (attributes.nativeBuildInputs or [ ]) ++ (attributes.buildInputs or [ ])
            );
          }
        )
        // {
          meta = attributes.meta or { };
          pname = attributes.pname or name;
          version = attributes.version or "";
        }
        // attributes.passthru or { };
    in
    guarded attributes made;
  runCommand =
    name: attributes: script:
    mkDerivation (attributes // { inherit name; installPhase = script; });
  # A package nothing is taken from but its name and place.
  package =
    name:
    mkDerivation {
      pname = name;
      version = "0";
      installPhase = "mkdir -p $out/bin $out/lib";
      meta = {
        description = name;
        mainProgram = name;
      };
    };
  python = mkDerivation {
    pname = "python3";
    version = "3.11";
    installPhase = "mkdir -p $out/bin; ln -s ${machine.python} $out/bin/python3";
  };
  named = names: builtins.listToAttrs (map (name: { inherit name; value = package name; }) names);
in
named [
  "autoAddDriverRunpath"
  "autoPatchelfHook"
  "bash"
  "btrfs-progs"
  "cmake"
  "coreutils"
  "gcc"
  "gmp"
  "gnumake"
  "gnupg"
  "inetutils"
  "ninja"
  "nixfmt"
  "nixfmt-tree"
  "nodejs"
  "nvidia"
  "nvidia-open"
  "openssh"
  "python3"
  "restic"
  "shellcheck"
  "systemd"
  "tini"
  "util-linux"
  "xz"
  "zlib"
  "zstd"
]
// rec {
  inherit lib config system runCommand;
  python311 = python;
  # The machine's own anvil, where set-up put it.
  foundry = mkDerivation {
    pname = "foundry";
    version = "0";
    installPhase = "mkdir -p $out/bin; ln -s ${machine.anvil} $out/bin/anvil";
  };
  bash = mkDerivation {
    pname = "bash";
    version = "0";
    installPhase = "mkdir -p $out/bin; ln -s ${machine.bash} $out/bin/bash";
  };
  stdenv = {
    inherit mkDerivation;
    hostPlatform.efiArch = "x64";
    cc.cc = package "gcc" // {
      lib = package "gcc-lib";
    };
  };
  stdenvNoCC = stdenv;
  cudaPackages = named [
    "cuda_cccl"
    "cuda_cudart"
    "cuda_nvcc"
    "libcublas"
  ] // { backendStdenv = stdenv; };
  _cuda.lib.allowUnfreeCudaPredicate = _: false;
  cacert = package "cacert";
  dockerTools = {
    buildLayeredImage =
      {
        name,
        tag,
        contents,
        config,
        fakeRootCommands ? "",
      }:
      writeText "${name}-${tag}.json" (
        builtins.toJSON {
          inherit config contents fakeRootCommands;
        }
      );
  };
  mkShell = attributes: package "shell" // { inherit (attributes) packages; };
  writeText =
    name: text:
    mkDerivation {
      inherit name text;
      passAsFile = [ "text" ];
      installPhase = "cp $textPath $out";
    };
  writeTextDir =
    path: text:
    mkDerivation {
      inherit text;
      name = baseNameOf path;
      passAsFile = [ "text" ];
      installPhase = "mkdir -p $out/${dirOf path}; cp $textPath $out/${path}";
    };
  linkFarm =
    name: entries:
    runCommand name { } (
      "mkdir $out\n" + lib.concatMapStrings (one: "ln -s ${one.path} $out/${one.name}\n") entries
    );
  # A fixed-output derivation as in nixpkgs, so the hash of every pin is checked; only the far end,
  # the package index, is a folder.
  fetchPypi =
    {
      pname,
      version,
      hash,
      format ? "setuptools",
      dist ? "py2.py3",
      python ? "py2.py3",
      abi ? "none",
      platform ? "any",
    }:
    let
      file =
        if format == "wheel" then
          "${pname}-${version}-${python}-${abi}-${platform}.whl"
        else
          "${pname}-${version}.tar.gz";
    in
    derive file {
      args = [
        "-c"
        "cp ${machine.index}/${file} $out"
      ];
      inherit dist;
      outputHashMode = "flat";
      outputHash = hash;
    };
}
