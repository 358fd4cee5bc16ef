# A machine of our modules and stub options; `stubs.nix` is tests/nix/stubs.nix.
{ modules }:
let
  lib = import ./lib;
  pkgs = import ./. { system = "x86_64-linux"; };
in
lib.evalModules {
  specialArgs = {
    inherit pkgs;
    modulesPath = toString ./nixos/modules;
  };
  modules = [ ./stubs.nix ] ++ modules;
}
