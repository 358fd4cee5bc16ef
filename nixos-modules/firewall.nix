# Where the node listens, and what the firewall lets through.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkDefault mkOption types;
  name = "services.fabstir-node";
  cfg = config.services.fabstir-node;
  own = import ./lib/types.nix { inherit lib; };
  written = cfg.finalSettings;

  address = types.strMatching "[0-9]{1,3}(\\.[0-9]{1,3}){3}";
  # [ "0.0.0.0" "9000" ], or null where the setting is no such address.
  listening =
    if written.p2p.listen == null then
      null
    else
      builtins.match "/ip4/([0-9.]+)/tcp/([0-9]+)(/.*)?" written.p2p.listen;
  p2pPort = lib.toInt (lib.elemAt listening 1);
  isLocal = lib.hasPrefix "127.";
  portalHost = if written.s5.listen_host == null then "127.0.0.1" else written.s5.listen_host;

  ports =
    lib.optional (cfg.openFirewall && listening != null) p2pPort
    ++ lib.optional (cfg.portal.openFirewall && written.s5.listen_port != null) written.s5.listen_port
    ++ lib.optional cfg.monitoring.metrics.openFirewall cfg.monitoring.metrics.port;
  # Multicast DNS, where the node tells the local network of itself.
  opened = {
    allowedTCPPorts = ports;
    allowedUDPPorts = lib.optional (cfg.openFirewall && written.p2p.mdns == true) 5353;
  };
in
{
  options.services.fabstir-node = {
    listenAddress = mkOption {
      type = address;
      default = "0.0.0.0";
      description = "IPv4 address that renters connect to by libp2p; sets `settings.p2p.listen` with `ports.p2p`.";
      example = "203.0.113.7";
    };
    ports = {
      p2p = mkOption {
        type = types.port;
        default = 9000;
        description = "TCP port of libp2p.";
        example = 4001;
      };
      portal = mkOption {
        type = types.port;
        default = 5050;
        description = "TCP port of the embedded S5 portal, where renters fetch proofs and transcripts.";
        example = 8081;
      };
    };
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Let renters through to the libp2p port, and with `settings.p2p.mdns` those of the local network to the port of multicast DNS.";
      example = true;
    };
    portal = {
      listenAddress = mkOption {
        type = address;
        default = "127.0.0.1";
        description = "IPv4 address of the S5 portal. It speaks plain HTTP: put a TLS proxy in front, or let renters fetch over libp2p.";
        example = "0.0.0.0";
      };
      openFirewall = mkOption {
        type = types.bool;
        default = false;
        description = "Let renters through to the portal's port.";
        example = true;
      };
    };
    firewallInterfaces = mkOption {
      type = types.listOf own.interface;
      default = [ ];
      description = "Open the ports on these interfaces only; empty: on all.";
      example = [ "enp3s0" ];
    };
  };

  config = lib.mkIf cfg.enable {
    services.fabstir-node.settings = {
      p2p.listen = mkDefault "/ip4/${cfg.listenAddress}/tcp/${toString cfg.ports.p2p}";
      s5.listen_host = mkDefault cfg.portal.listenAddress;
      s5.listen_port = mkDefault cfg.ports.portal;
    };

    networking.firewall =
      if cfg.firewallInterfaces == [ ] then
        opened
      else
        { interfaces = lib.genAttrs cfg.firewallInterfaces (_: opened); };

    assertions = [
      {
        assertion = listening != null;
        message = "${name}.settings.p2p.listen: ${toString written.p2p.listen} is not /ip4/ADDRESS/tcp/PORT; correct it, or set ${name}.listenAddress and ${name}.ports.p2p instead";
      }
      {
        assertion = lib.unique ports == ports;
        message = "${name}.ports: p2p, portal and metrics want the same port; give each its own";
      }
    ];
    warnings =
      lib.optional (cfg.openFirewall && listening != null && isLocal (lib.head listening))
        "${name}.openFirewall opens port ${lib.last (lib.take 2 listening)}, but ${name}.settings.p2p.listen is ${written.p2p.listen}, which no renter reaches; set ${name}.listenAddress"
      ++ lib.optional (cfg.portal.openFirewall && isLocal portalHost)
        "${name}.portal.openFirewall opens the portal's port, but it listens on ${portalHost}; set ${name}.portal.listenAddress";
  };
}
