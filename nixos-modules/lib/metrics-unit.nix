# serviceConfig of the service that shows the node's metrics. Pure builtins.
# It reads the processes' Unix sockets, which answer their own account only; no state, no devices.
{
  command,
  directory,
  configFile,
  address,
  user,
  group,
  stateDir,
  cacheDir,
}:
removeAttrs (import ./hardening.nix) [
  "DeviceAllow"
  "DevicePolicy"
]
// {
  Type = "exec";
  ExecStart = "${command} metrics --listen ${address} --config ${configFile}";
  WorkingDirectory = directory;
  User = user;
  Group = group;
  Environment = [
    "FABSTIR_CACHE=${cacheDir}"
    "FABSTIR_NODE__RUN_DIR=/run/fabstir"
  ];
  InaccessiblePaths = "-${stateDir}";
  PrivateDevices = true;
  # A socket is asked there all the same.
  ReadOnlyPaths = "-/run/fabstir";
  Restart = "always";
  RestartSec = 5;
  MemoryMax = "256M";
  UMask = "0077";
}
