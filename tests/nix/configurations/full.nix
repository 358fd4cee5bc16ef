# Every part of the module at once, on directories and an account of the machine's own.
{ package, ... }:
{
  services.fabstir-node = {
    enable = true;
    user = "hoster";
    group = "hosters";
    stateDir = "/data/fabstir";
    cacheDir = "/models/fabstir";
    writablePaths = [ "/models/shared" ];
    listenAddress = "203.0.113.7";
    ports.p2p = 4001;
    ports.portal = 8081;
    openFirewall = true;
    portal.listenAddress = "0.0.0.0";
    portal.openFirewall = true;
    firewallInterfaces = [
      "enp3s0"
      "wg0"
    ];
    wallet.keystoreFile = "/run/secrets/keystore";
    wallet.passwordFile = "/run/secrets/password";
    credentials = {
      keystore.encrypted = true;
      base-keystore.file = "/run/secrets/base-keystore";
      base-password.file = "/run/secrets/base-password";
    };
    deploymentFile = "/etc/fabstir/deployment.json";
    environmentFiles = [ "/run/secrets/fabstir-environment" ];
    environment.TZ = "Europe/Berlin";
    extraPackages = [ (package "rclone") ];
    processes = [
      "s5"
      "inference"
      "chain"
      "p2p"
      "updater"
    ];
    settings = {
      node.log_level = "warning";
      chain = {
        chain_id = 1;
        rpc_urls = [
          "https://a.example.org"
          "wss://b.example.org"
        ];
        proof = "off";
        confirmations_by_amount = [
          [
            1000000
            3
          ]
        ];
        withdraw_max_gas_percent = 2.5;
        listing_prices = [ "* 2.00 usd" ];
        listing_location = "Zürich \"Süd\" \\ 1";
      };
      chains.base = {
        chain_id = 8453;
        keystore_file = "credential:base-keystore";
        password_file = "credential:base-password";
        deployment_file = "/etc/fabstir/base.json";
        proof = "off";
      };
      inference.replicas = "auto";
      p2p.flush_seconds = 0;
      p2p.mdns = true;
      watchdog.misses = 5;
    };
    updates = {
      backend = "nixos";
      repositoryUrl = "https://releases.example.org/fabstir";
      trustedRootFile = "/etc/fabstir/trusted-root.json";
      releaseSource = "git+https://git.example.org/fabstir-node";
      flake = "/etc/nixos#gpu";
      channel = "testing";
      automatic = true;
    };
    monitoring = {
      metrics.enable = true;
      metrics.openFirewall = true;
      metrics.listenAddress = "10.0.0.5";
      prometheus.enable = true;
    };
    hardening.disable = [ "ProtectProc" ];
    hardening.extra = {
      IPAddressDeny = [ "192.168.0.0/16" ];
      RemoveIPC = null;
    };
    resources = {
      cpuQuota = "400%";
      cpuWeight = 50;
      memoryHigh = "28G";
      memoryMax = "32G";
      ioWeight = 20;
      tasksMax = 4096;
    };
  };
}
