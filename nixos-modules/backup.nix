# Backups of journal, keys and blobs by restic. The node makes and test-restores them itself: this
# part gives it the programs, the secrets, the schedule and, on this machine, the directory.
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
  backups = cfg.backups;
  isDirectory = lib.hasPrefix "/" backups.repository;

  secretFile =
    credential: what:
    mkOption {
      type = types.nullOr own.absolutePath;
      default = null;
      description = "${what} Handed to the service as the credential `${credential}`.";
      example = "/run/agenix/${credential}";
    };
  kept =
    what: least: most: default:
    mkOption {
      type = types.ints.between least 10000;
      inherit default;
      description = "${what} that are kept.";
      example = most;
    };
  seconds =
    what: default:
    mkOption {
      type = own.positiveSeconds;
      inherit default;
      description = what;
      example = default * 2;
    };
in
{
  options.services.fabstir-node.backups = {
    enable = mkOption {
      type = types.bool;
      default = false;
      description = "Back the node up. Without it the money of open sessions is lost with the disk.";
      example = true;
    };
    repository = mkOption {
      type = types.str;
      default = "";
      description = "Where backups go, as restic names it: a directory, `sftp:user@host:/path`, `s3:https://host/bucket`.";
      example = "sftp:me@nas:/node";
    };
    passwordFile = secretFile "restic-password" "Password of the repository.";
    environmentFile = secretFile "restic-environment" "`NAME=VALUE` lines for restic, e.g. `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.";
    recoveryPasswordFile = secretFile "recovery-password" "Seals wallet key and p2p identity apart inside the backup; null: keys are left out.";
    intervalSeconds = seconds "A backup is made so often when something changed." 300;
    stateSnapshotSeconds = seconds "Time between two read-only snapshots, where `stateDir` is a btrfs subvolume." 3600;
    keep = {
      last = kept "Newest backups" 1 100 24;
      daily = kept "Days of which the last backup is one" 0 30 7;
      weekly = kept "Weeks of which the last backup is one" 0 52 8;
    };
  };

  config = mkIf (cfg.enable && backups.enable) {
    services.fabstir-node = {
      settings.updater = {
        restic_repository = mkDefault backups.repository;
        restic_password_file = mkIf (backups.passwordFile != null) (mkDefault "credential:restic-password");
        restic_environment_file = mkIf (backups.environmentFile != null) (
          mkDefault "credential:restic-environment"
        );
        recovery_password_file = mkIf (backups.recoveryPasswordFile != null) (
          mkDefault "credential:recovery-password"
        );
        backup_interval_seconds = mkDefault backups.intervalSeconds;
        state_snapshot_interval_seconds = mkDefault backups.stateSnapshotSeconds;
        keep_last = mkDefault backups.keep.last;
        keep_daily = mkDefault backups.keep.daily;
        keep_weekly = mkDefault backups.keep.weekly;
      };
      credentials = {
        restic-password = mkIf (backups.passwordFile != null) { file = backups.passwordFile; };
        restic-environment = mkIf (backups.environmentFile != null) { file = backups.environmentFile; };
        recovery-password = mkIf (backups.recoveryPasswordFile != null) {
          file = backups.recoveryPasswordFile;
        };
      };
      writablePaths = lib.optional isDirectory backups.repository;
    };

    systemd.services.fabstir-node.path = [
      pkgs.restic
      pkgs.btrfs-progs
      pkgs.openssh
    ];
    systemd.tmpfiles.rules = lib.optional isDirectory "d '${backups.repository}' 0700 ${cfg.user} ${cfg.group} - -";

    assertions = [
      {
        assertion = backups.repository != "";
        message = "${name}.backups.repository: say where backups go: a directory, sftp:user@host:/path or s3:https://host/bucket";
      }
      {
        assertion = backups.passwordFile != null || cfg.finalSettings.updater.restic_password_file != null;
        message = "${name}.backups.passwordFile: set the file with the repository's password; keep a copy of it elsewhere, without it nothing can be restored";
      }
      {
        assertion = builtins.match ".*://[^/@]*:[^/@]*@.*" backups.repository == null;
        message = "${name}.backups.repository: it holds a password, which would come into the world-readable Nix store; put it into ${name}.backups.environmentFile";
      }
      {
        assertion = isDirectory -> !(lib.hasPrefix "${cfg.stateDir}/" "${backups.repository}/");
        message = "${name}.backups.repository: ${backups.repository} lies in ${name}.stateDir and would be lost with it; name a directory on another disk";
      }
    ];
    warnings = lib.optional (
      backups.recoveryPasswordFile == null && cfg.finalSettings.updater.recovery_password_file == null
    ) "${name}.backups.recoveryPasswordFile is not set: backups hold no keys, keep copies of keystore and password elsewhere";
  };
}
