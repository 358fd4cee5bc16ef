# Numbers for Prometheus. The processes show theirs on Unix sockets; one small service, under the
# same account but with no secrets, gathers them on a TCP port that answers GET /metrics only.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkIf mkOption types;
  cfg = config.services.fabstir-node;
  metrics = cfg.monitoring.metrics;
  prometheus = cfg.monitoring.prometheus;
  target = "${metrics.listenAddress}:${toString metrics.port}";
in
{
  options.services.fabstir-node.monitoring = {
    metrics = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = "Show the metrics of all processes at `http://LISTENADDRESS:PORT/metrics`.";
        example = true;
      };
      listenAddress = mkOption {
        type = types.str;
        default = "127.0.0.1";
        description = "Address of the metrics. They tell earnings and load: keep them off the Internet.";
        example = "10.0.0.5";
      };
      port = mkOption {
        type = types.port;
        default = 9464;
        description = "TCP port of the metrics.";
        example = 9100;
      };
      openFirewall = mkOption {
        type = types.bool;
        default = false;
        description = "Let others through to the port of the metrics.";
        example = true;
      };
    };
    prometheus = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = "Let the Prometheus of this machine scrape the node, with alerts for what a person must look at.";
        example = true;
      };
      scrapeConfig = mkOption {
        type = types.attrsOf types.anything;
        readOnly = true;
        default = {
          job_name = "fabstir-node";
          static_configs = [ { targets = [ target ]; } ];
        };
        defaultText = lib.literalMD "job `fabstir-node` with the address of `monitoring.metrics`";
        description = "For `services.prometheus.scrapeConfigs` of another machine.";
        example.job_name = "fabstir-node";
      };
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = prometheus.enable -> metrics.enable;
        message = "services.fabstir-node.monitoring.metrics.enable: Prometheus is to scrape the node, but its metrics are off; turn them on";
      }
      {
        assertion = metrics.openFirewall -> metrics.enable;
        message = "services.fabstir-node.monitoring.metrics.openFirewall: the metrics are off; turn monitoring.metrics.enable on";
      }
    ];

    systemd.services.fabstir-metrics = mkIf metrics.enable {
      description = "Fabstir node: metrics for Prometheus";
      wantedBy = [ "multi-user.target" ];
      after = [ "fabstir-node.service" ];
      serviceConfig = import ./lib/metrics-unit.nix {
        command = "${cfg.package}/bin/fabstir-node";
        directory = "${cfg.package}/lib/fabstir-node";
        configFile = if cfg.configFile == null then "/etc/fabstir/node.toml" else cfg.configFile;
        inherit (cfg)
          user
          group
          stateDir
          cacheDir
          ;
        address = target;
      };
    };

    services.prometheus = mkIf prometheus.enable {
      scrapeConfigs = [ prometheus.scrapeConfig ];
      rules = [ (builtins.toJSON (import ./lib/alerts.nix)) ];
    };
  };
}
