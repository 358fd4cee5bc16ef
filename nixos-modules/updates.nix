# Updates that the node itself asks for. On a plain NixOS machine a release is a generation.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkIf mkOption types;
  name = "services.fabstir-node";
  cfg = config.services.fabstir-node;
  own = import ./lib/types.nix { inherit lib; };
  updates = cfg.updates;
  # Else whoever writes the file knows.
  isOurs = cfg.configFile == null;
  isNixos = updates.backend == "nixos";
  units = import ./lib/update-units.nix {
    command = "${cfg.package}/bin/fabstir-update-helper";
    inherit (cfg) group;
    withNix = isNixos;
  };
  # The image has it of provision.nix, where the boot loader counts; here the update journal does.
  judge =
    (import ./lib/boot-units.nix {
      command = "${cfg.package}/bin/fabstir-node";
      directory = "${cfg.package}/lib/fabstir-node";
      configFile = if isOurs then "/etc/fabstir/node.toml" else cfg.configFile;
      inherit (cfg) user stateDir;
    }).units."fabstir-health.service";
  has = lib.flip lib.elem cfg.processes;
in
{
  options.services.fabstir-node.updates = {
    backend = mkOption {
      type = types.enum [
        "none"
        "nixos"
        "sysupdate"
      ];
      default = "none";
      description = ''
        How the node is updated. `"none"`: with the machine's own configuration. `"nixos"`: by
        nixos-rebuild, as a new generation that is only kept when the node is healthy in it; the
        machine's flake must have this project as its input `fabstir-node`. `"sysupdate"`: the
        slots of the flashed image; the appliance's profile sets it.
      '';
      example = "nixos";
    };
    repositoryUrl = mkOption {
      type = types.nullOr (types.strMatching "(https?|file)://.+");
      default = null;
      description = "Where releases are published.";
      example = "https://releases.example.org/fabstir";
    };
    trustedRootFile = mkOption {
      type = types.nullOr (
        types.oneOf [
          types.path
          types.str
        ]
      );
      default = null;
      description = "The root.json of the first release, which everything else is trusted through. It is public.";
      example = "/etc/fabstir/trusted-root.json";
    };
    releaseSource = mkOption {
      type = types.nullOr (types.strMatching "(git\\+https|github|git\\+file)[A-Za-z0-9:/._-]{1,200}");
      default = null;
      description = "For `\"nixos\"`: flake reference of this project without its tag. The updater can choose a version of it, nothing else.";
      example = "github:example/fabstir-node";
    };
    flake = mkOption {
      type = types.nullOr (types.strMatching "[A-Za-z0-9/][A-Za-z0-9/._:+?=&%-]{0,255}(#[A-Za-z0-9._-]{1,64})?");
      default = null;
      description = "For `\"nixos\"`: the machine's own flake and its name in there, as `nixos-rebuild --flake` takes it. Null: /etc/nixos and the host's name.";
      example = "/etc/nixos#gpu";
    };
    channel = mkOption {
      type = types.strMatching "[a-z][a-z0-9-]{0,31}";
      default = "stable";
      description = "Which releases are offered.";
      example = "testing";
    };
    automatic = mkOption {
      type = types.bool;
      default = false;
      description = "Install what is found, and restart the machine for it; else `fabstir-node update apply` does.";
      example = true;
    };
    checkSeconds = mkOption {
      type = own.positiveSeconds;
      default = 21600;
      description = "Time between two looks for a release.";
      example = 3600;
    };
  };

  config = mkIf (cfg.enable && updates.backend != "none") {
    services.fabstir-node.settings.updater = {
      backend = mkDefault updates.backend;
      repository_url = mkIf (updates.repositoryUrl != null) (mkDefault updates.repositoryUrl);
      trusted_root_file = mkIf (updates.trustedRootFile != null) (mkDefault "${updates.trustedRootFile}");
      channel = mkDefault updates.channel;
      apply_automatically = mkDefault updates.automatic;
      check_interval_seconds = mkDefault updates.checkSeconds;
    };

    environment.etc."fabstir/release-source" = mkIf (updates.releaseSource != null) {
      text = "${updates.releaseSource}\n";
    };
    environment.etc."fabstir/release-flake" = mkIf (isNixos && updates.flake != null) {
      text = "${updates.flake}\n";
    };
    environment.systemPackages = mkIf (
      updates.releaseSource != null && lib.hasPrefix "git+" updates.releaseSource
    ) [ pkgs.gitMinimal ];
    nix.settings.experimental-features = mkIf isNixos [
      "nix-command"
      "flakes"
    ];

    systemd.sockets.fabstir-update = {
      description = "Fabstir node: requests to the update helper";
      wantedBy = [ "sockets.target" ];
      inherit (units) socketConfig;
    };
    systemd.services."fabstir-update@" = {
      description = "Fabstir node: one step of an update";
      inherit (units) unitConfig serviceConfig;
      # A request that restarts the machine must not be cut off by the switch it is part of.
      restartIfChanged = false;
    };

    systemd.services.fabstir-health = mkIf isNixos {
      description = judge.Unit.Description;
      wantedBy = [ judge.Install.WantedBy ];
      # A switch waits for no verdict; only a boot has one.
      restartIfChanged = false;
      inherit (cfg) environment;
      unitConfig = { inherit (judge.Unit) Documentation WantsMountsFor; };
      serviceConfig =
        judge.Service
        // {
          Environment = [ judge.Service.Environment ];
          Group = cfg.group;
        }
        // lib.optionalAttrs (cfg.environmentFiles != [ ]) { EnvironmentFile = cfg.environmentFiles; };
    };

    assertions = [
      {
        assertion = has "updater";
        message = "${name}.processes: updater is missing, which ${name}.updates needs; add it, or set updates.backend = \"none\"";
      }
      {
        assertion = isOurs -> updates.repositoryUrl != null;
        message = "${name}.updates.repositoryUrl: say where releases are published";
      }
      {
        assertion = isOurs -> updates.trustedRootFile != null;
        message = "${name}.updates.trustedRootFile: set the root.json of the first release; without it no release can be trusted";
      }
      {
        assertion = isNixos -> updates.releaseSource != null;
        message = "${name}.updates.releaseSource: set the flake reference of this project, without a tag";
      }
    ];
  };
}
