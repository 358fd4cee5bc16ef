# The root helper of the updater: a socket for the node's group, one service for each request.
# Pure builtins; `appliance/systemd/fabstir-update*` are these for the flashed image.
{
  command,
  group ? "fabstir",
  # nixos-rebuild instead of systemd-sysupdate: Nix fetches and builds, so little can be taken away.
  withNix ? false,
}:
let
  common = {
    Type = "oneshot";
    ExecStart = command;
    StandardInput = "socket";
    StandardOutput = "socket";
    StandardError = "journal";
    TimeoutStartSec = 3700;
    UMask = "0077";
    LockPersonality = true;
    NoNewPrivileges = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    RestrictRealtime = true;
    SystemCallArchitectures = "native";
  };
  # Root's record of which generation ran which release; what `nixos-rebuild build` leaves behind.
  forNix = {
    StateDirectory = "fabstir-update";
    StateDirectoryMode = "0700";
    WorkingDirectory = "/var/lib/fabstir-update";
  };
  forImage = {
    # Partition tables, files of another user, immutable EFI variables.
    CapabilityBoundingSet = "CAP_SYS_ADMIN CAP_DAC_OVERRIDE CAP_LINUX_IMMUTABLE";
    AmbientCapabilities = "";
    DevicePolicy = "closed";
    DeviceAllow = [
      "block-* rw"
      "/dev/loop-control rw"
    ];
    IPAddressDeny = "any";
    MemoryDenyWriteExecute = true;
    PrivateMounts = true;
    PrivateNetwork = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    ReadWritePaths = "-/boot -/efi -/sys/firmware/efi/efivars";
    RestrictAddressFamilies = "AF_UNIX AF_NETLINK";
    RestrictNamespaces = true;
    RestrictSUIDSGID = true;
    SystemCallErrorNumber = "EPERM";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
  };
in
{
  socketConfig = {
    ListenStream = "/run/fabstir-update.sock";
    SocketMode = "0660";
    SocketUser = "root";
    SocketGroup = group;
    Accept = true;
    MaxConnections = 1;
  };
  unitConfig.CollectMode = "inactive-or-failed";
  serviceConfig = common // (if withNix then forNix else forImage);
}
