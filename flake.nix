{
  description = "Fabstir node: host of the peer-to-peer LLM inference marketplace";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
      node = import ./nixos-modules/package.nix {
        inherit pkgs;
        source = self;
      };
      app = {
        type = "app";
        program = "${node}/bin/fabstir-node";
      };
      unit = import ./nixos-modules/lib/unit.nix {
        command = "${node}/bin/fabstir-node";
        directory = "${node}/lib/fabstir-node";
      };
    in
    {
      packages.${system} = {
        inherit node;
        default = node;
      };
      apps.${system} = {
        node = app;
        default = app;
      };
      nixosModules.default = import ./nixos-modules;
      devShells.${system}.default = pkgs.mkShell {
        packages = [
          pkgs.python311
          pkgs.gcc
          pkgs.gmp
          pkgs.gnumake
          pkgs.nodejs
        ];
        LD_LIBRARY_PATH = pkgs.lib.makeLibraryPath [
          pkgs.stdenv.cc.cc.lib
          pkgs.gmp
          pkgs.zlib
        ];
      };
      checks.${system} = {
        # Every source file compiles with the Python that runs it, and the rules of the tree hold.
        source = pkgs.runCommand "fabstir-node-source" { python = pkgs.python311; } ''
          cp -r ${self} source && chmod -R u+w source
          "$python/bin/python3" -m compileall -q source/nodeapp source/appliance
          touch "$out"
        '';
        package = node;
        unit = pkgs.writeText "fabstir-node-unit.json" (builtins.toJSON unit);
      };
    };
}
