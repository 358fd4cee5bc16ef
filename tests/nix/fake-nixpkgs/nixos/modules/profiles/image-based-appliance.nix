# Declares what the image sets besides stubs.nix, loosely: their names and types are checked against
# NixOS itself, by `nix flake check` on a machine that has it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  option =
    type: default:
    lib.mkOption {
      inherit type default;
      description = "";
    };
  needed =
    type:
    lib.mkOption {
      inherit type;
      description = "";
    };
  loose = option (lib.types.attrsOf lib.types.anything) { };
  text = needed lib.types.str;
  switch = option lib.types.bool false;
in
{
  options = {
    boot = {
      extraModulePackages = option (lib.types.listOf lib.types.package) [ ];
      initrd = loose;
      kernelParams = option (lib.types.listOf lib.types.str) [ ];
      loader = loose;
      uki = loose;
    };
    environment.usrbinenv = option lib.types.anything null;
    fileSystems = loose;
    hardware.nvidia.package = option lib.types.package pkgs.nvidia;
    nix.enable = switch;
    nixpkgs = {
      config = loose;
      hostPlatform = text;
    };
    networking = {
      hostName = text;
      useDHCP = switch;
      useNetworkd = switch;
    };
    services.openssh = loose;
    services.resolved = loose;
    system = {
      activationScripts = loose;
      boot.loader.ukiFile = text;
      build = loose;
      image = {
        id = text;
        version = text;
      };
      nixos.release = text;
      stateVersion = text;
    };
    systemd = {
      package = option lib.types.package pkgs.systemd;
      targets = loose;
      enableEmergencyMode = switch;
      network.networks = loose;
      repart = loose;
      settings = loose;
      units = option (lib.types.attrsOf (
        lib.types.submodule {
          options = {
            text = option (lib.types.nullOr lib.types.str) null;
            wantedBy = option (lib.types.listOf lib.types.str) [ ];
            requiredBy = option (lib.types.listOf lib.types.str) [ ];
          };
        }
      )) { };
    };
    users.allowNoPasswordLogin = switch;
  };
  config = {
    boot.extraModulePackages = [ pkgs.nvidia-open ];
    system.nixos.release = "26.05";
    system.boot.loader.ukiFile = "${config.system.image.id}_${config.system.image.version}.efi";
    system.build = {
      uki = pkgs.writeText "uki" (builtins.toJSON config.boot.kernelParams);
      finalImage = pkgs.writeText "disk" (builtins.toJSON config.image);
      # As NixOS does: nothing is built where an assertion fails.
      toplevel =
        let
          failed = builtins.filter (one: !one.assertion) config.assertions;
          etc = builtins.mapAttrs (
            _: file: if file.text == null then file.source else file.text
          ) config.environment.etc;
          whole = builtins.toJSON {
            inherit etc;
            inherit (config) fileSystems users;
            inherit (config.systemd)
              network
              repart
              settings
              units
              ;
            services = builtins.mapAttrs (_: unit: unit.serviceConfig) config.systemd.services;
            sockets = builtins.mapAttrs (_: unit: unit.socketConfig) config.systemd.sockets;
          };
        in
        if failed != [ ] then
          throw (builtins.concatStringsSep "\n" (map (one: one.message) failed))
        else
          pkgs.writeText "nixos-system" whole;
    };
  };
}
