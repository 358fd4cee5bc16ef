# services.fabstir-node: the node on any NixOS machine.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.fabstir-node;
  port = address: lib.toInt (lib.last (lib.splitString "/" address));
  chainFiles = [
    "keystore_file"
    "password_file"
    "deployment_file"
  ];
in
{
  options.services.fabstir-node = {
    enable = lib.mkEnableOption "the Fabstir node";
    package = lib.mkOption {
      type = lib.types.package;
      description = "The node to run: packages.x86_64-linux.node of this flake.";
      example = lib.literalExpression "inputs.fabstir-node.packages.x86_64-linux.node";
    };
    user = lib.mkOption {
      type = lib.types.str;
      default = "fabstir";
      description = "Account and group the node runs as; made when it is the default.";
      example = "fabstir";
    };
    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Open the libp2p port of settings.p2p.listen.";
      example = true;
    };
    settings = lib.mkOption {
      type = lib.types.attrsOf (lib.types.attrsOf lib.types.anything);
      default = { };
      description = "node.toml by section and key; `fabstir-node config schema` lists them all.";
      example = {
        chain.chain_id = 8453;
        p2p.listen = "/ip4/0.0.0.0/tcp/9000";
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = map (key: {
      assertion = (cfg.settings.chain.${key} or "") != "";
      message = "services.fabstir-node.settings.chain.${key} must name a file outside the Nix store";
    }) chainFiles;
    environment.etc."fabstir/node.toml".text = import ./lib/toml.nix cfg.settings;
    environment.systemPackages = [ cfg.package ];
    networking.firewall.allowedTCPPorts = lib.optional cfg.openFirewall (
      port (cfg.settings.p2p.listen or "/ip4/127.0.0.1/tcp/9000")
    );
    users.users = lib.optionalAttrs (cfg.user == "fabstir") {
      fabstir = {
        isSystemUser = true;
        group = "fabstir";
        # The GPU's device files belong to these groups.
        extraGroups = [
          "video"
          "render"
        ];
      };
    };
    users.groups = lib.optionalAttrs (cfg.user == "fabstir") { fabstir = { }; };
    systemd.services.fabstir-node = {
      description = "Fabstir node: LLM inference for the peer-to-peer marketplace";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      startLimitIntervalSec = 300;
      startLimitBurst = 10;
      restartTriggers = [ config.environment.etc."fabstir/node.toml".text ];
      serviceConfig = import ./lib/unit.nix {
        command = "${cfg.package}/bin/fabstir-node";
        directory = "${cfg.package}/lib/fabstir-node";
        inherit (cfg) user;
      };
    };
  };
}
