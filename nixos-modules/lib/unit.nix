# serviceConfig of the node's one unit. supervisord runs below it, so the control group leaves no orphan.
{
  command,
  configFile ? "/etc/fabstir/node.toml",
  directory,
  user ? "fabstir",
}:
import ./hardening.nix
// {
  Type = "notify";
  # systemd is told by the command itself, which is the unit's main process or its child.
  NotifyAccess = "all";
  ExecStart = "${command} run --config ${configFile} --state-dir /var/lib/fabstir";
  WorkingDirectory = directory;
  User = user;
  Group = user;
  StateDirectory = "fabstir";
  StateDirectoryMode = "0700";
  RuntimeDirectory = "fabstir";
  RuntimeDirectoryMode = "0700";
  CacheDirectory = "fabstir";
  Environment = [
    "FABSTIR_CACHE=/var/cache/fabstir"
    "FABSTIR_NODE__RUN_DIR=/run/fabstir"
  ];
  Restart = "always";
  RestartSec = 5;
  # The first start under Nix builds llama.cpp.
  TimeoutStartSec = 1800;
  TimeoutStopSec = 30;
  KillMode = "control-group";
  # A killed inference process is restarted by supervisord; the rest goes on earning.
  OOMPolicy = "continue";
  LimitNOFILE = 65536;
  UMask = "0077";
}
