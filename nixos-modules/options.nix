# What is set about the node itself; the other parts declare their own options.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkOption types;
  own = import ./lib/types.nix { inherit lib; };
  inherit (import ./lib/settings-types.nix { inherit lib; }) settings sections;

  credential = {
    options = {
      file = mkOption {
        type = own.absolutePath;
        description = "File outside the Nix store that root can read; the service sees a copy of it in memory only.";
        example = "/run/agenix/host-keystore";
      };
      encrypted = mkOption {
        type = types.bool;
        default = false;
        description = "The file was made by `systemd-creds encrypt --name=NAME`, so that only this machine can read it.";
        example = true;
      };
    };
  };
  secretFile =
    name: what:
    mkOption {
      type = types.nullOr own.absolutePath;
      default = null;
      description = "${what} Handed to the service as the credential `${name}`; root reads the file, the Nix store never holds it.";
      example = "/run/agenix/${name}";
    };
in
{
  options.services.fabstir-node = {
    enable = lib.mkEnableOption "the Fabstir node, a host of the peer-to-peer LLM inference marketplace";
    package = mkOption {
      type = types.package;
      default = throw "services.fabstir-node.package is not set: import the module by this project's flake (nixosModules.default), or set packages.x86_64-linux.node of it";
      defaultText = lib.literalExpression "inputs.fabstir-node.packages.x86_64-linux.node";
      description = "The node to run.";
      example = lib.literalExpression "inputs.fabstir-node.packages.x86_64-linux.node-cuda";
    };
    processes = mkOption {
      type = types.listOf (types.enum sections.node.keys.processes.default);
      inherit (sections.node.keys.processes) default;
      description = ''
        Processes that the supervisor runs. `prover` can be left out where
        `settings.chain.proof` is `"off"`, `updater` where there are no backups and no updates.
        `chain-NAME` and `inference-N` are added by themselves.
      '';
      example = [
        "s5"
        "inference"
        "chain"
        "p2p"
      ];
    };
    settings = mkOption {
      type = settings;
      default = { };
      description = ''
        The file node.toml, by section and key. Null leaves a key to the node's own default. It
        comes into the world-readable Nix store: name files of secrets, never secrets, and put
        addresses that hold an API key into `environmentFiles`.
      '';
      example = {
        chain = {
          chain_id = 8453;
          rpc_urls = [ "https://rpc.example.org" ];
          listing_prices = [ "* 2.00 usd" ];
        };
        inference.context_length = 8192;
      };
    };
    extraSettings = mkOption {
      type = types.attrsOf (types.attrsOf types.anything);
      default = { };
      description = "Added to `settings` unchecked: for keys of a `package` that is newer than this module.";
      example.inference.new_key = 1;
    };
    configFile = mkOption {
      type = types.nullOr own.absolutePath;
      default = null;
      description = "A node.toml that something else writes, e.g. the appliance's provisioning. Then `settings` and all that sets them are not used.";
      example = "/run/fabstir-config/node.toml";
    };
    deploymentFile = mkOption {
      type = types.nullOr (
        types.oneOf [
          types.path
          types.str
        ]
      );
      default = null;
      description = "JSON with the contract addresses of `settings.chain`. It is public, so it may come from the Nix store.";
      example = "/etc/fabstir/deployment.json";
    };

    user = mkOption {
      type = types.strMatching "[a-z_][a-z0-9_-]{0,30}";
      default = "fabstir";
      description = "Account the node runs as; made by the module when it is the default.";
      example = "fabstir";
    };
    group = mkOption {
      type = types.strMatching "[a-z_][a-z0-9_-]{0,30}";
      default = "fabstir";
      description = "Group of the account; made by the module when it is the default.";
      example = "fabstir";
    };
    stateDir = mkOption {
      type = own.absolutePath;
      default = "/var/lib/fabstir";
      description = "Journal, identity, logs and local copies: what must not be lost. Best a btrfs subvolume.";
      example = "/data/fabstir";
    };
    cacheDir = mkOption {
      type = own.absolutePath;
      default = "/var/cache/fabstir";
      description = "Models, proving keys and the like: large, and fetched again when it is lost.";
      example = "/models/fabstir";
    };

    wallet = {
      keystoreFile = secretFile "keystore" "Web3 keystore of the host account.";
      passwordFile = secretFile "password" "Password of the keystore.";
    };
    credentials = mkOption {
      type = types.attrsOf (types.submodule credential);
      default = { };
      description = ''
        Secrets handed to the service by systemd; a setting names one as `credential:NAME`.
        `wallet` and `backups` add theirs.
      '';
      example = {
        base-keystore.file = "/run/agenix/base-keystore";
        keystore.encrypted = true;
      };
    };

    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      description = "Further environment variables of the service; `FABSTIR_SECTION__KEY` overrides a setting.";
      example.TZ = "Europe/Berlin";
    };
    environmentFiles = mkOption {
      type = types.listOf own.absolutePath;
      default = [ ];
      description = "Files of `NAME=VALUE` lines outside the Nix store, for settings with a secret in them: `FABSTIR_CHAIN__RPC_URLS=[\"https://…/KEY\"]`.";
      example = [ "/run/agenix/fabstir-environment" ];
    };
    extraPackages = mkOption {
      type = types.listOf types.package;
      default = [ ];
      description = "Further programs on the service's PATH.";
      example = lib.literalExpression "[ pkgs.rclone ]";
    };

    hardening = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Take from the service all that the node does not need.";
        example = false;
      };
      disable = mkOption {
        type = types.listOf (types.enum (lib.attrNames (import ./lib/hardening.nix)));
        default = [ ];
        description = "Directives of the hardening that are left out.";
        example = [ "ProtectProc" ];
      };
      extra = mkOption {
        type = types.attrsOf own.directive;
        default = { };
        description = "Further directives of the service, which win; null removes one.";
        example.IPAddressDeny = [ "10.0.0.0/8" ];
      };
    };
    resources = {
      cpuQuota = mkOption {
        type = types.nullOr (types.strMatching "[1-9][0-9]*%");
        default = null;
        description = "Most processor time, 100% for each core.";
        example = "400%";
      };
      cpuWeight = mkOption {
        type = types.nullOr (types.ints.between 1 10000);
        default = null;
        description = "Share of the processor when others want it, too; others have 100.";
        example = 50;
      };
      memoryHigh = mkOption {
        type = types.nullOr own.memory;
        default = null;
        description = "From here on the service is slowed down and its memory taken back.";
        example = "28G";
      };
      memoryMax = mkOption {
        type = types.nullOr own.memory;
        default = null;
        description = "Most memory. The process that goes beyond is ended and restarted, the others go on.";
        example = "32G";
      };
      ioWeight = mkOption {
        type = types.nullOr (types.ints.between 1 10000);
        default = null;
        description = "Share of the disk when others want it, too; others have 100.";
        example = 50;
      };
      tasksMax = mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        description = "Most processes and threads together.";
        example = 4096;
      };
    };

    finalSettings = mkOption {
      type = types.attrsOf types.anything;
      readOnly = true;
      internal = true;
      default = lib.recursiveUpdate config.services.fabstir-node.settings config.services.fabstir-node.extraSettings;
      defaultText = lib.literalMD "`settings` and `extraSettings` together";
      description = "What node.toml is rendered of.";
      example = { };
    };
  };
}
