# The flashed machine: an image without Nix, its store under verity, two slots, state on btrfs.
#
# /      tmpfs; /usr and /nix/store are the slot, read-only and checked block by block
# /boot  the ESP: systemd-boot and the UKIs of both slots
# state  subvolumes of one btrfs, see lib/state.nix
{
  config,
  lib,
  modulesPath,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkDefault
    mkForce
    mkIf
    mkOption
    types
    ;
  cfg = config.fabstir.appliance;
  node = config.services.fabstir-node;
  state = import ./lib/state.nix;
  transfers = import ./lib/sysupdate.nix { name = config.system.image.id; };
  nvidia = config.hardware.nvidia.package;
  # File name → text, below /etc/fabstir/sysupdate.
  etcOf =
    part: files:
    lib.mapAttrs' (name: text: lib.nameValuePair "fabstir/sysupdate/${part}/${name}" { inherit text; }) files;
in
{
  imports = [
    "${modulesPath}/profiles/image-based-appliance.nix"
    ../image/repart.nix
    ../image/uki.nix
    ./default.nix
    ./provision.nix
  ];

  options.fabstir.appliance = {
    version = mkOption {
      type = types.strMatching "[0-9]+\\.[0-9]+\\.[0-9]+(-rc\\.[0-9]+)?";
      description = "The release: in the slots' labels, the UKI's name and os-release.";
      example = "0.2.0";
    };
    profile = mkOption {
      type = types.enum (lib.attrNames (import ../image/sizes.nix));
      default = "cuda";
      description = "Sizes of the disk's parts, and whether there is a GPU driver: image/sizes.nix.";
      example = "small";
    };
    releaseKeyring = mkOption {
      type = types.path;
      description = "Public half of the key that signs a release's SHA256SUMS, as `gpg --export` writes it.";
      example = lib.literalExpression "./import-pubring.gpg";
    };
    watchdogSeconds = mkOption {
      type = types.ints.between 10 600;
      default = 60;
      description = "The hardware's watchdog resets a machine whose systemd says nothing for so long.";
      example = 30;
    };
  };

  config = {
    assertions = [
      {
        # An older library finds no GPU with a newer module, and the other way round.
        assertion =
          node.gpu.devices != "none" -> lib.any (
            module:
            lib.hasPrefix "nvidia-open" (lib.getName module) && lib.hasSuffix "-${nvidia.version}" module.name
          ) config.boot.extraModulePackages;
        message = "fabstir.appliance: no open NVIDIA kernel module of version ${nvidia.version}, which hardware.nvidia.package's libraries need; set hardware.nvidia.open = true and take both from boot.kernelPackages.nvidiaPackages";
      }
      {
        assertion = !config.nix.enable;
        message = "fabstir.appliance: nix.enable must stay off; the store is read-only and an update is another slot";
      }
      {
        assertion = lib.stringLength "${config.system.image.id}_${cfg.version}" <= 36;
        message = "fabstir.appliance.version: ${config.system.image.id}_${cfg.version} is longer than the 36 characters of a partition's label";
      }
    ];

    system.image = {
      id = mkDefault "fabstir-node";
      inherit (cfg) version;
    };
    system.stateVersion = mkDefault config.system.nixos.release;
    # /usr is the read-only store.
    environment.usrbinenv = mkForce null;
    system.activationScripts.usrbinenv = mkForce "";

    fileSystems = {
      "/" = {
        fsType = "tmpfs";
        options = [ "mode=0755" ];
      };
      "/usr" = {
        device = "/dev/mapper/usr";
        fsType = "erofs";
        # systemd-remount-fs fails without it.
        options = [ "ro" ];
      };
      "/nix/store" = {
        device = "/usr/nix/store";
        options = [ "bind" ];
      };
      "/boot" = {
        device = "/dev/disk/by-partlabel/esp";
        fsType = "vfat";
        options = [
          "umask=0077"
          "nosuid"
          "nodev"
          "noexec"
        ];
      };
    }
    // lib.listToAttrs (
      map (
        subvolume:
        lib.nameValuePair subvolume.path {
          inherit (state) device;
          fsType = "btrfs";
          options = state.options subvolume;
        }
      ) state.subvolumes
    );

    # Blessing, which systemd's generator pulls in on a counted boot; fabstir-health is in its way.
    # Not as additionalUpstreamSystemUnits: some nixpkgs have them already, and twice is an error.
    systemd.targets.boot-complete = {
      description = "Boot completion check";
      requires = [ "sysinit.target" ];
      after = [ "sysinit.target" ];
    };
    systemd.services.systemd-bless-boot = {
      description = "Mark the booted entry as good";
      requires = [ "boot-complete.target" ];
      after = [
        "local-fs.target"
        "boot-complete.target"
      ];
      conflicts = [ "shutdown.target" ];
      before = [ "shutdown.target" ];
      unitConfig.DefaultDependencies = false;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = [
          # Clears what a unit of nixpkgs' own says.
          ""
          "${config.systemd.package}/lib/systemd/systemd-bless-boot good"
        ];
      };
    };
    systemd.settings.Manager = {
      RuntimeWatchdogSec = "${toString cfg.watchdogSeconds}s";
      RebootWatchdogSec = "10min";
    };
    # A machine in a cellar reboots; it waits for nobody's password.
    systemd.enableEmergencyMode = false;

    services.fabstir-node = {
      enable = true;
      stateDir = "/var/lib/fabstir";
      # Provisioning writes it at boot, from the CONFIG partition.
      configFile = mkDefault "/etc/fabstir/node.toml";
      # The port that provisioning sets where CONFIG names none.
      openFirewall = mkDefault true;
      gpu.devices = mkIf (cfg.profile == "cuda") (mkDefault "all");
      updates.backend = "sysupdate";
      # As provisioning sets it: not in the state, whose snapshots keep what was removed for weeks.
      settings.inference.store_dir = mkDefault "/var/cache/fabstir/models";
    };
    # What lies on the state belongs to numbers: they are the same in every release.
    users.users.fabstir.uid = 390;
    users.groups.fabstir.gid = 390;

    environment.etc = etcOf "slot" transfers.slot // etcOf "boot" transfers.boot // {
      "systemd/import-pubring.gpg".source = cfg.releaseKeyring;
    };
    # systemd-pull asks gpg whether the signature is right.
    environment.systemPackages = [ pkgs.gnupg ];

    services.openssh = {
      enable = true;
      settings = {
        PasswordAuthentication = false;
        KbdInteractiveAuthentication = false;
        PermitRootLogin = "prohibit-password";
      };
    };
    # Who may log in comes with CONFIG, so no image has a way in.
    users.allowNoPasswordLogin = true;
  };
}
