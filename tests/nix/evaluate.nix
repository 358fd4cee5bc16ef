# A configuration of ours in a NixOS of stubs: all that it sets, forced and as JSON can hold it.
# `library`: nixpkgs' lib as a path, or "" for the small one beside this file.
{
  library ? "",
}:
configuration:
let
  lib = if library == "" then import ./lib.nix else import (/. + library);
  package = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/00000000000000000000000000000000-${name}";
    drvPath = "/nix/store/00000000000000000000000000000000-${name}.drv";
  };
  pkgs = lib.genAttrs [ "btrfs-progs" "gitMinimal" "openssh" "restic" ] package;
  machine = lib.evalModules {
    specialArgs = { inherit pkgs; };
    modules = [
      ./stubs.nix
      ../../nixos-modules
      { services.fabstir-node.package = lib.mkDefault (package "fabstir-node"); }
      (if builtins.isFunction configuration then configuration { inherit lib package; } else configuration)
    ];
  };
  inherit (machine) config;
  ini = import ../../nixos-modules/lib/ini.nix;

  # As NixOS writes a unit, but with [Install] in place of its links.
  words = list: if list == [ ] then null else builtins.concatStringsSep " " list;
  unitSection = unit: {
    name = "Unit";
    values = {
      Description = unit.description;
      Documentation = words unit.documentation;
      After = words unit.after;
      Wants = words unit.wants;
      # NixOS: a store path of the same text, so that another text restarts the unit.
      X-Restart-Triggers =
        if unit.restartTriggers == [ ] then
          null
        else
          builtins.hashString "sha256" (toString unit.restartTriggers);
      StartLimitBurst = unit.startLimitBurst;
      StartLimitIntervalSec = unit.startLimitIntervalSec;
    }
    // unit.unitConfig;
  };
  install = unit: {
    name = "Install";
    values = if unit.wantedBy == [ ] then { } else { WantedBy = words unit.wantedBy; };
  };
  opened = one: {
    tcp = one.allowedTCPPorts;
    udp = one.allowedUDPPorts;
  };
  path = unit: builtins.concatStringsSep ":" (map (one: "${one}/bin") unit.path);
  serviceText =
    unit:
    ini [
      (unitSection unit)
      {
        name = "Service";
        values =
          unit.serviceConfig
          // {
            Environment =
              (unit.serviceConfig.Environment or [ ])
              ++ lib.mapAttrsToList (name: value: "\"${name}=${value}\"") unit.environment
              ++ lib.optional (unit.path != [ ]) "\"PATH=${path unit}\"";
          };
      }
      (install unit)
    ];
  socketText =
    unit:
    ini [
      (unitSection unit)
      {
        name = "Socket";
        values = unit.socketConfig;
      }
      (install unit)
    ];

  found = {
    failed = map (one: one.message) (builtins.filter (one: !one.assertion) config.assertions);
    # Forced even where the assertion holds: a broken message must not wait for its day.
    messages = map (one: one.message) config.assertions;
    inherit (config) warnings;
    units =
      lib.mapAttrs' (name: unit: lib.nameValuePair "${name}.service" (serviceText unit)) config.systemd.services
      // lib.mapAttrs' (name: unit: lib.nameValuePair "${name}.socket" (socketText unit)) config.systemd.sockets;
    etc = builtins.mapAttrs (_: file: file.text) config.environment.etc;
    packages = map (one: one.name) config.environment.systemPackages;
    firewall = {
      all = opened config.networking.firewall;
      interfaces = builtins.mapAttrs (_: opened) config.networking.firewall.interfaces;
    };
    users = config.users.users;
    groups = builtins.attrNames config.users.groups;
    tmpfiles = config.systemd.tmpfiles.rules;
    prometheus = config.services.prometheus;
    driver = {
      inherit (config.services.xserver) videoDrivers;
      graphics = config.hardware.graphics.enable;
      inherit (config.hardware) nvidia;
    };
    nix = config.nix.settings.experimental-features;
    # Every option of ours has its type's word for its value, used or not.
    values = removeAttrs config.services.fabstir-node [ "package" ];
  };
in
builtins.deepSeq found found
