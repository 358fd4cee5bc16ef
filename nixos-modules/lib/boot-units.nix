# Units of a provisioned machine: CONFIG before the network, the health gate before boot-complete, the console.
# Pure builtins. `units` has the sections (NixOS takes
# wantedBy and requiredBy from Install), `texts` the files of appliance/systemd.
{
  command ? "/opt/fabstir-node/.venv/bin/fabstir-node",
  directory ? "/opt/fabstir-node",
  hostname ? "/usr/bin/hostname",
  # Where mount, btrfs and the like are.
  path ? "/usr/sbin:/usr/bin:/sbin:/bin",
  user ? "fabstir",
  # Others where the health gate judges a NixOS machine that is not the image.
  configFile ? "/etc/fabstir/node.toml",
  stateDir ? "/var/lib/fabstir",
}:
let
  inherit (builtins) map mapAttrs;

  options = "--config ${configFile} --state-dir ${stateDir}";
  media = "/run/media/CONFIG";
  state = import ./state.nix;
  commas = builtins.concatStringsSep ",";
  confined = {
    AmbientCapabilities = "";
    DevicePolicy = "closed";
    IPAddressDeny = "any";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateNetwork = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RestrictAddressFamilies = "AF_UNIX";
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
  };
  # Asks the node's processes over their sockets, as the node's own user.
  asking = confined // {
    CapabilityBoundingSet = "";
    Environment = "FABSTIR_NODE__RUN_DIR=/run/fabstir";
    PrivateUsers = true;
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
    UMask = "0077";
    User = user;
    Group = user;
    WorkingDirectory = directory;
  };
  units = {
    # The partition, or a stick, with this label. Unmounted again when it was read.
    "run-media-CONFIG.mount" = {
      Unit = {
        Description = "Fabstir node: the CONFIG partition";
        DefaultDependencies = false;
        Conflicts = "umount.target";
        Before = "umount.target";
        StopWhenUnneeded = true;
      };
      Mount = {
        What = "/dev/disk/by-label/CONFIG";
        Where = media;
        Type = "vfat";
        Options = "nodev,nosuid,noexec,umask=0077";
        # What lies there is secret until it is wiped.
        DirectoryMode = "0700";
      };
      Install = { };
    };
    # Logs outlive a reboot. Not in fstab: NixOS would mount this one in the initrd, and what cannot be
    # mounted must keep nothing from starting.
    "var-log.mount" = {
      Unit = {
        Description = "Fabstir node: the machine's logs";
        ConditionVirtualization = "!container";
        Wants = "fabstir-log.service";
        After = "fabstir-log.service";
      };
      Mount = {
        What = state.device;
        Where = "/var/log";
        Type = "btrfs";
        Options = commas ([ "subvol=/${state.log.name}" ] ++ state.shared);
      };
      Install.WantedBy = "local-fs.target";
    };
    "fabstir-log.service" = {
      Unit = {
        Description = "Fabstir node: the place of the machine's logs";
        Documentation = "file:${directory}/docs/image.md";
        DefaultDependencies = false;
        ConditionVirtualization = "!container";
        Wants = state.deviceUnit;
        After = "${state.deviceUnit} local-fs-pre.target";
        Before = "var-log.mount shutdown.target";
        Conflicts = "shutdown.target";
      };
      Service = confined // {
        Type = "oneshot";
        ExecStart = "/bin/sh ${directory}/appliance/log-volume.sh ${state.device} ${commas state.shared} /run/fabstir-log";
        Environment = "PATH=${path}";
        TimeoutStartSec = 300;
        RuntimeDirectory = "fabstir-log";
        RuntimeDirectoryMode = "0700";
        # A mount of its own, gone with it.
        PrivateMounts = true;
        # systemd makes it after local-fs.target, which waits for the logs.
        PrivateTmp = false;
        CapabilityBoundingSet = "CAP_SYS_ADMIN";
        DeviceAllow = "block-* rw";
        SystemCallFilter = [
          "@system-service @mount"
          "~@resources"
        ];
        UMask = "0022";
      };
      Install = { };
    };
    "fabstir-provision.service" = {
      Unit = {
        Description = "Fabstir node: settings, wallet and network from the CONFIG partition";
        Documentation = "file:${directory}/docs/provisioning.md";
        DefaultDependencies = false;
        Wants = [
          "run-media-CONFIG.mount"
          "network-pre.target"
        ];
        # The last one lifts the machine id of this boot off the place of the lasting one.
        After = "local-fs.target run-media-CONFIG.mount systemd-machine-id-commit.service";
        Before = "network-pre.target systemd-networkd.service ssh.service sshd.service fabstir-node.service fabstir-health.service fabstir-console.service shutdown.target";
        Conflicts = "shutdown.target";
        # Wanted only: where they cannot be mounted an operator must still get in, and a trial be judged.
        WantsMountsFor = "/var/lib/fabstir /var/lib/fabstir-keys";
      };
      Service = confined // {
        Type = "oneshot";
        ExecStart = "${command} provision apply --media ${media}";
        # Only systemd may change the name of the machine that runs; also after a CONFIG was refused.
        ExecStopPost = "-+${hostname} --file /etc/hostname";
        TimeoutStartSec = 300;
        # Files of root and of the node's user; nothing else of root's power.
        CapabilityBoundingSet = "CAP_CHOWN CAP_SETGID CAP_SETUID";
        ReadWritePaths = "/etc /run -/var/lib/fabstir -/var/lib/fabstir-keys";
        SystemCallFilter = [
          "@system-service"
          "~@resources"
        ];
        UMask = "0022";
      };
      Install.WantedBy = "multi-user.target";
    };
    "fabstir-health.service" = {
      Unit = {
        Description = "Fabstir node: is the release on trial healthy?";
        Documentation = "file:${directory}/docs/updates.md";
        After = "fabstir-provision.service";
        Before = "boot-complete.target";
        # Were it required, the gate would not be started without it, which is no failure to systemd.
        WantsMountsFor = stateDir;
      };
      Service = asking // {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${command} health --boot ${options}";
        # Longer than any verdict: only a hang comes here.
        TimeoutStartSec = 1800;
        # Missing, it is told by the gate: a unit that cannot start would reboot a blessed release for ever.
        ReadWritePaths = "-${stateDir}";
      };
      # What an operator goes back to is booted without a count: there the judge itself asks for the
      # way on, and however it ends no blessed release reboots for ever.
      Install = {
        RequiredBy = "boot-complete.target";
        WantedBy = "multi-user.target";
      };
    };
    "fabstir-console.service" = {
      Unit = {
        Description = "Fabstir node: what the operator sees on the screen and the serial line";
        Documentation = "file:${directory}/docs/provisioning.md";
        After = "fabstir-provision.service";
        Conflicts = "getty@tty1.service";
      };
      Service = asking // {
        # It shows the machine's addresses; it sends and receives nothing.
        PrivateNetwork = false;
        RestrictAddressFamilies = "AF_UNIX AF_INET AF_NETLINK";
        ExecStart = "${command} console --follow ${options}";
        # It ends well where the machine has no console at all.
        Restart = "on-failure";
        RestartSec = 60;
        DeviceAllow = [
          "char-tty rw"
          "char-ttyAMA rw"
          "char-hvc rw"
        ];
        SupplementaryGroups = "tty dialout";
      };
      Install.WantedBy = "multi-user.target";
    };
    # Only a boot that the boot loader counts waits for this target, so no blessed release is rebooted.
    # Failed: the count goes down, and the boot loader returns to the release before.
    # The time is longer than provisioning and the judge together: only a hang comes here.
    "boot-complete.target.d/appliance.conf" = {
      Unit = {
        OnFailure = "reboot.target";
        OnFailureJobMode = "replace-irreversibly";
        JobTimeoutSec = 2400;
        JobTimeoutAction = "reboot";
      };
      Install = { };
    };
    # Of fabstir-node.service on a provisioned machine: it waits for its settings.
    "fabstir-node.service.d/appliance.conf" = {
      Unit = {
        After = "fabstir-provision.service";
        ConditionPathExists = "/etc/fabstir/node.toml";
        # On an empty state it would begin anew as another.
        RequiresMountsFor = "/var/lib/fabstir /var/cache/fabstir";
      };
      Service = { };
      Install = { };
    };
  };
  # In the initrd, where nothing counts and nobody is asked: what does not come to its root starts anew,
  # and systemd-boot has counted down. Not at once, so that a screen can be read.
  initrd = {
    "emergency.service.d/fabstir.conf" = {
      Unit = {
        SuccessAction = "reboot-force";
        FailureAction = "reboot-force";
      };
      Service = {
        RuntimeMaxSec = 120;
        # The shell need not hear of it.
        TimeoutStopSec = 5;
      };
    };
    "initrd.target.d/fabstir.conf".Unit = {
      JobTimeoutSec = 1200;
      JobTimeoutAction = "reboot-force";
    };
  };
  section = unit: name: {
    inherit name;
    values = unit.${name} or { };
  };
  text =
    unit:
    import ./ini.nix (
      map (section unit) [
        "Unit"
        "Mount"
        "Service"
        "Install"
      ]
    );
in
{
  inherit initrd units;
  texts = mapAttrs (_name: text) units;
  initrdTexts = mapAttrs (_name: text) initrd;
  # journald.conf(5): what the state has room for.
  journal = ''
    [Journal]
    Storage=persistent
    SystemMaxUse=256M
  '';
  # sshd_config(5) of the machine; root's keys come with CONFIG, its own are made at the first boot.
  sshd = ''
    HostKey /var/lib/fabstir-keys/ssh/ssh_host_ed25519_key
    AuthorizedKeysFile /run/fabstir-provision/authorized_keys
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    PermitRootLogin prohibit-password
  '';
  # Where CONFIG says nothing about the network.
  network = ''
    [Match]
    Name=en* eth*

    [Network]
    DHCP=yes
  '';
}
