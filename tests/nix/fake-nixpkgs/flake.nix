# Stands in for nixpkgs where there is none: the packages the flake names, made of the machine's own
# programs, so that everything is evaluated and the node's derivations are really built.
{
  outputs =
    { self }:
    {
      lib = import ./lib // {
        nixosSystem = import ./nixos-system.nix;
      };
      legacyPackages.x86_64-linux = import self { system = "x86_64-linux"; };
    };
}
