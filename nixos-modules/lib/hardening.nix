# What the node's unit gives up. Pure builtins: any Nix evaluates it. docs/install.md has the score and why each
# exposure that is left is needed.
{
  CapabilityBoundingSet = "";
  AmbientCapabilities = "";
  NoNewPrivileges = true;
  # The GPUs' device files only; systemd passes over a kind that this machine has not. Drivers are loaded before the
  # unit starts: it may not load them.
  DevicePolicy = "closed";
  DeviceAllow = [
    "char-nvidia rw"
    "char-nvidia-frontend rw"
    "char-nvidiactl rw"
    "char-nvidia-uvm rw"
    "char-nvidia-caps rw"
    "char-drm rw"
    "char-kfd rw"
  ];
  LockPersonality = true;
  # MemoryDenyWriteExecute is not set: the CUDA compiler writes the code it runs.
  PrivateMounts = true;
  PrivateTmp = true;
  PrivateUsers = true;
  ProtectClock = true;
  ProtectControlGroups = true;
  ProtectHome = true;
  ProtectHostname = true;
  ProtectKernelLogs = true;
  ProtectKernelModules = true;
  ProtectKernelTunables = true;
  ProtectProc = "invisible";
  ProtectSystem = "strict";
  RemoveIPC = true;
  RestrictAddressFamilies = "AF_UNIX AF_INET AF_INET6 AF_NETLINK";
  RestrictNamespaces = true;
  RestrictRealtime = true;
  RestrictSUIDSGID = true;
  SystemCallArchitectures = "native";
  SystemCallErrorNumber = "EPERM";
  # The calls by which processes confine themselves further are in no group of @system-service. supervisord gives its
  # socket to the account it runs as: without a capability chown can do no more.
  SystemCallFilter = [
    "@system-service"
    "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp"
    "~@privileged"
    "@chown"
  ];
}
