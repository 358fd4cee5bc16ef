# The module's whole config for given options, forced to the last value.
options:
let
  lib = import ./lib.nix;
  module = import ../../../nixos-modules {
    inherit lib;
    pkgs = { };
    config = {
      services.fabstir-node = {
        package = "/nix/store/none";
        user = "fabstir";
        openFirewall = false;
        settings = { };
      } // options;
      environment.etc = module.config.environment.etc or { "fabstir/node.toml".text = ""; };
    };
  };
in
{
  inherit (module) config;
  undescribed = builtins.filter (
    name:
    let
      option = module.options.services.fabstir-node.${name};
    in
    !(option ? description)
  ) (builtins.attrNames module.options.services.fabstir-node);
}
