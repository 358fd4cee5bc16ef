# The service: its unit, its settings file, the secrets handed to it, and what cannot work.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkDefault mkIf;
  name = "services.fabstir-node";
  cfg = config.services.fabstir-node;
  own = import ./lib/types.nix { inherit lib; };

  written = cfg.finalSettings;
  isSomething = section: lib.filterAttrs (_: value: value != null) section != { };
  configFile = if cfg.configFile == null then "/etc/fabstir/node.toml" else cfg.configFile;
  optionalDirective = key: value: lib.optionalAttrs (value != null) { ${key} = value; };

  hardening = lib.optionalAttrs cfg.hardening.enable (
    removeAttrs (import ./lib/hardening.nix) cfg.hardening.disable
  );
  resources =
    optionalDirective "CPUQuota" cfg.resources.cpuQuota
    // optionalDirective "CPUWeight" cfg.resources.cpuWeight
    // optionalDirective "MemoryHigh" cfg.resources.memoryHigh
    // optionalDirective "MemoryMax" cfg.resources.memoryMax
    // optionalDirective "IOWeight" cfg.resources.ioWeight
    // optionalDirective "TasksMax" cfg.resources.tasksMax;

  # A node that computes on the processor needs none of the machine's devices.
  withoutDevices = lib.optionalAttrs (cfg.hardening.enable && cfg.gpu.devices == "none") {
    DeviceAllow = null;
    DevicePolicy = null;
    PrivateDevices = true;
  };

  handed =
    encrypted:
    lib.mapAttrsToList (name: one: "${name}:${one.file}") (
      lib.filterAttrs (_: one: one.encrypted == encrypted) cfg.credentials
    );
  serviceConfig = import ./lib/unit.nix {
    command = "${cfg.package}/bin/fabstir-node";
    directory = "${cfg.package}/lib/fabstir-node";
    inherit configFile hardening;
    inherit (cfg)
      user
      group
      stateDir
      cacheDir
      environmentFiles
      ;
    credentials = handed false;
    encryptedCredentials = handed true;
    writable = cfg.writablePaths;
    extra = withoutDevices // resources // cfg.hardening.extra;
  };

  ownDirectory = directory: "d '${directory}' 0700 ${cfg.user} ${cfg.group} - -";

  # Every chain of the settings, by the name of its option.
  chains = {
    "${name}.settings.chain" = written.chain;
  }
  // lib.mapAttrs' (
    chain: value: lib.nameValuePair "${name}.settings.chains.${chain}" value
  ) written.chains;
  set = value: value != null && value != "";
  has = lib.flip lib.elem cfg.processes;

  keyAssertions = lib.concatLists (
    lib.mapAttrsToList (option: chain: [
      {
        assertion =
          set chain.signer_url || (set chain.keystore_file && set chain.password_file);
        message = "${option}: the host's key is missing; set ${
          if lib.hasSuffix "settings.chain" option then
            "${name}.wallet.keystoreFile and ${name}.wallet.passwordFile"
          else
            "keystore_file and password_file of it (credential:NAME with ${name}.credentials.NAME.file)"
        }, or signer_url and signer_address for a remote signer";
      }
      {
        assertion = set chain.signer_url -> set chain.signer_address;
        message = "${option}.signer_address: set the address whose key the signer at signer_url holds";
      }
      {
        assertion = set chain.deployment_file;
        message = "${option}.deployment_file: set the JSON file with the contract addresses${lib.optionalString (lib.hasSuffix "settings.chain" option) ", or ${name}.deploymentFile"}";
      }
    ]) (lib.optionalAttrs (has "chain") chains)
  );

  # Files with secrets, by the option that names them.
  secretFiles =
    lib.mapAttrs' (one: value: lib.nameValuePair "${name}.credentials.${one}.file" value.file) cfg.credentials
    // lib.listToAttrs (
      lib.imap0 (
        index: file: lib.nameValuePair "${name}.environmentFiles.[${toString index}]" file
      ) cfg.environmentFiles
    )
    // lib.concatMapAttrs (
      option: chain: {
        "${option}.keystore_file" = chain.keystore_file;
        "${option}.password_file" = chain.password_file;
      }
    ) chains
    // lib.listToAttrs (
      map (key: lib.nameValuePair "${name}.settings.updater.${key}" written.updater.${key}) [
        "restic_password_file"
        "restic_environment_file"
        "restic_ssh_key_file"
        "recovery_password_file"
      ]
    );
  storeAssertions = lib.mapAttrsToList (option: file: {
    assertion = !(set file && own.inStore file);
    message = "${option}: ${toString file} lies in the Nix store, which everybody on this machine can read; name a file outside of it, e.g. one that agenix or sops-nix writes below /run";
  }) secretFiles;

  # credential:NAME must be one that systemd is told of.
  namedCredentials = lib.mapAttrs (_: lib.removePrefix "credential:") (
    lib.filterAttrs (_: file: set file && lib.hasPrefix "credential:" file) secretFiles
  );
  credentialAssertions =
    lib.mapAttrsToList (option: credential: {
      assertion = cfg.credentials ? ${credential};
      message = "${option}: no credential is called ${credential}; set ${name}.credentials.${credential}.file";
    }) namedCredentials
    ++ lib.mapAttrsToList (credential: _: {
      assertion = builtins.match "[A-Za-z0-9_.-]{1,64}" credential != null;
      message = "${name}.credentials: ${credential} is no name of a credential; use letters, digits, dot, dash and underscore";
    }) cfg.credentials;

  needs = process: others: why: {
    assertion = has process -> lib.all has others;
    message = "${name}.processes: ${process} needs ${lib.concatStringsSep ", " others}${why}; add what is missing or leave ${process} out";
  };
  proof = if written.chain.proof == null then "required" else written.chain.proof;
  processAssertions = [
    {
      assertion = cfg.processes != [ ] && lib.unique cfg.processes == cfg.processes;
      message = "${name}.processes: name one process at least, and each once";
    }
    (needs "p2p" [ "s5" "inference" "chain" ] "")
    (needs "chain" [ "s5" ] " for the evidence of its claims")
    {
      assertion = has "chain" && proof != "off" -> has "prover";
      message = "${name}.processes: prover is missing; add it, or set ${name}.settings.chain.proof = \"off\"";
    }
    {
      assertion = has "prover" -> cfg.package.withEzkl or true;
      message = "${name}.processes: prover needs EZKL, which ${name}.package was built without; set packages.x86_64-linux.node-ezkl of the flake (node-cuda-ezkl with GPUs), or leave prover out and set ${name}.settings.chain.proof = \"off\"";
    }
    {
      assertion = set written.updater.restic_repository -> has "updater";
      message = "${name}.processes: updater is missing, which makes the backups; add it or remove ${name}.settings.updater.restic_repository";
    }
  ];
  chainNames = map (chain: {
    assertion = builtins.match "[a-z][a-z0-9]{0,15}" chain != null;
    message = "${name}.settings.chains.${chain}: ${chain} is no name of a chain; use at most 16 small letters and digits, a letter first";
  }) (lib.attrNames written.chains);
in
{
  options.services.fabstir-node = {
    writablePaths = lib.mkOption {
      type = lib.types.listOf own.absolutePath;
      default = [ ];
      description = "Further directories, which must exist, that the service may write; `backups` adds its repository.";
      example = [ "/mnt/models" ];
    };
  };

  config = mkIf cfg.enable {
    assertions =
      storeAssertions
      ++ credentialAssertions
      # A file that others write is theirs to judge.
      ++ lib.optionals (cfg.configFile == null) (keyAssertions ++ chainNames ++ processAssertions);

    services.fabstir-node = {
      settings.node = {
        processes = mkDefault cfg.processes;
        state_dir = mkDefault cfg.stateDir;
        # So that commands find the running node by the settings file alone.
        run_dir = mkDefault "/run/fabstir";
        cache_dir = mkDefault cfg.cacheDir;
      };
      settings.chain = {
        deployment_file = mkIf (cfg.deploymentFile != null) (mkDefault "${cfg.deploymentFile}");
        keystore_file = mkIf (cfg.wallet.keystoreFile != null) (mkDefault "credential:keystore");
        password_file = mkIf (cfg.wallet.passwordFile != null) (mkDefault "credential:password");
      };
      credentials = {
        keystore = mkIf (cfg.wallet.keystoreFile != null) { file = cfg.wallet.keystoreFile; };
        password = mkIf (cfg.wallet.passwordFile != null) { file = cfg.wallet.passwordFile; };
      };
    };

    environment.etc."fabstir/node.toml" = mkIf (cfg.configFile == null) {
      text = import ./lib/toml.nix (lib.filterAttrs (_: isSomething) written);
    };
    environment.systemPackages = [ cfg.package ];

    # systemd itself makes what lies below /var/lib and /var/cache.
    systemd.tmpfiles.rules =
      lib.optional (!lib.hasPrefix "/var/lib/" cfg.stateDir) (ownDirectory cfg.stateDir)
      ++ lib.optional (!lib.hasPrefix "/var/cache/" cfg.cacheDir) (ownDirectory cfg.cacheDir);

    systemd.services.fabstir-node = {
      description = "Fabstir node: LLM inference for the peer-to-peer marketplace";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      startLimitIntervalSec = 300;
      startLimitBurst = 10;
      unitConfig.RequiresMountsFor = [
        cfg.stateDir
        cfg.cacheDir
      ]
      ++ cfg.writablePaths;
      restartTriggers = lib.optional (
        cfg.configFile == null
      ) config.environment.etc."fabstir/node.toml".text;
      path = cfg.extraPackages;
      inherit (cfg) environment;
      serviceConfig = lib.filterAttrs (_: value: value != null) serviceConfig;
    };
  };
}
