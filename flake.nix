{
  description = "Fabstir node: host of the peer-to-peer LLM inference marketplace";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      system = "x86_64-linux";
      inherit (nixpkgs) lib;
      pkgs = nixpkgs.legacyPackages.${system};
      # CUDA and NVIDIA's user-space driver are not free software, and EZKL states no licence. What
      # needs them is evaluated with these names allowed; everything else is refused as always.
      unfreeConfig.allowUnfreePredicate =
        package:
        pkgs._cuda.lib.allowUnfreeCudaPredicate package
        || builtins.elem (lib.getName package) [
          "fabstir-node"
          "nvidia-persistenced"
          "nvidia-settings"
          "nvidia-x11"
        ];
      unfreePkgs = import nixpkgs {
        inherit system;
        config = unfreeConfig;
      };
      build = lib.makeOverridable (import ./nixos-modules/package.nix);
      nodes = {
        node = build { inherit pkgs; };
        node-ezkl = build {
          pkgs = unfreePkgs;
          withEzkl = true;
        };
        node-cuda = build {
          pkgs = unfreePkgs;
          withCuda = true;
        };
        node-cuda-ezkl = build {
          pkgs = unfreePkgs;
          withCuda = true;
          withEzkl = true;
        };
      };
      app = package: command: {
        type = "app";
        program = "${package}/bin/${command}";
        meta.description = package.meta.description;
      };
      withPackage =
        module: package:
        { lib, ... }:
        {
          imports = [ module ];
          services.fabstir-node.package = lib.mkDefault package;
        };
    in
    {
      packages.${system} = nodes // {
        supervisord-conf = import ./nixos-modules/supervisord-conf.nix {
          inherit pkgs;
          inherit (nodes) node;
        };
        default = nodes.node;
      };

      apps.${system} = {
        node = app nodes.node "fabstir-node";
        node-ezkl = app nodes.node-ezkl "fabstir-node";
        update-helper = app nodes.node "fabstir-update-helper";
        default = app nodes.node "fabstir-node";
      };

      nixosModules = {
        default = withPackage ./nixos-modules nodes.node;
      };

      checks.${system} = import ./nixos-modules/checks.nix {
        inherit pkgs self;
        inherit (nodes) node;
      };

      devShells.${system}.default = pkgs.mkShell {
        packages = [
          pkgs.python311
          pkgs.gcc
          pkgs.gmp
          pkgs.gnumake
          pkgs.nixfmt
          pkgs.nodejs
          pkgs.shellcheck
        ];
        LD_LIBRARY_PATH = lib.makeLibraryPath [
          pkgs.stdenv.cc.cc.lib
          pkgs.gmp
          pkgs.zlib
        ];
      };

      formatter.${system} = pkgs.nixfmt-tree;
    };
}
