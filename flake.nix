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
      machine =
        modules:
        lib.nixosSystem {
          modules = [
            self.nixosModules.appliance
            {
              nixpkgs.hostPlatform = system;
              nixpkgs.config = unfreeConfig;
              fabstir.appliance.version = nodes.node.version;
              # Without a key no update is accepted: whoever publishes releases puts his own there.
              fabstir.appliance.releaseKeyring =
                let
                  keyring = ./image/keys/import-pubring.gpg;
                in
                if builtins.pathExists keyring then keyring else builtins.toFile "no-release-key" "";
            }
          ]
          ++ modules;
        };
      artefacts =
        name:
        import ./image {
          inherit pkgs;
          nixosConfiguration = self.nixosConfigurations.${name};
        };
    in
    {
      packages.${system} = nodes // {
        inherit (artefacts "appliance") image update;
        # For machines without a GPU; with CUDA's libraries it is several times as large.
        inherit (artefacts "appliance-test") oci;
        oci-cuda = (artefacts "appliance").oci;
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
        # A machine that sells on chain needs proofs, and an image is built by its owner: with both.
        appliance = withPackage ./nixos-modules/appliance.nix nodes.node-cuda-ezkl;
      };

      nixosConfigurations = {
        appliance = machine [ ];
        # The same machine without a GPU, for virtual machines and tests.
        appliance-test = machine [
          (
            { lib, ... }:
            {
              services.fabstir-node.package = lib.mkForce nodes.node-ezkl;
              fabstir.appliance.profile = "small";
            }
          )
        ];
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
