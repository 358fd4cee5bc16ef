# serviceConfig of the node's one unit. supervisord runs below it, so the control group leaves no orphan.
# Pure builtins; with command and directory alone it is appliance/systemd/fabstir-node.service.
{
  command,
  configFile ? "/etc/fabstir/node.toml",
  directory,
  user ? "fabstir",
  group ? user,
  stateDir ? "/var/lib/fabstir",
  cacheDir ? "/var/cache/fabstir",
  # NAME:PATH, as LoadCredential= and LoadCredentialEncrypted= take them.
  credentials ? [ ],
  encryptedCredentials ? [ ],
  environmentFiles ? [ ],
  # Directories beside the node's own that may be written, e.g. a backup repository.
  writable ? [ ],
  hardening ? import ./hardening.nix,
  # More directives, which win.
  extra ? { },
}:
let
  # systemd makes and owns directories below its own roots; others must exist and be let through.
  below =
    root: path:
    let
      length = builtins.stringLength root;
    in
    if builtins.substring 0 length path == root then
      builtins.substring length (builtins.stringLength path) path
    else
      null;
  state = below "/var/lib/" stateDir;
  cache = below "/var/cache/" cacheDir;
  outside = builtins.filter (path: path != "") [
    (if state == null then stateDir else "")
    (if cache == null then cacheDir else "")
  ];
  readWrite = outside ++ writable;
  listed = name: values: if values == [ ] then { } else { ${name} = values; };
  made =
    name: value: mode:
    if value == null then
      { }
    else
      { ${name} = value; } // (if mode == null then { } else { "${name}Mode" = mode; });
in
hardening
// {
  Type = "notify";
  # systemd is told by the command itself, which is the unit's main process or its child.
  NotifyAccess = "all";
  ExecStart = "${command} run --config ${configFile} --state-dir ${stateDir}";
  WorkingDirectory = directory;
  User = user;
  Group = group;
  RuntimeDirectory = "fabstir";
  RuntimeDirectoryMode = "0700";
  Environment = [
    "FABSTIR_CACHE=${cacheDir}"
    "FABSTIR_NODE__RUN_DIR=/run/fabstir"
  ];
  Restart = "always";
  RestartSec = 5;
  # Ready means that the model is loaded: tens of gigabytes are read, and hashed the first time.
  TimeoutStartSec = 1800;
  TimeoutStopSec = 30;
  KillMode = "control-group";
  # A killed inference process is restarted by supervisord; the rest goes on earning.
  OOMPolicy = "continue";
  LimitNOFILE = 65536;
  UMask = "0077";
}
// made "StateDirectory" state "0700"
// made "CacheDirectory" cache null
// listed "LoadCredential" credentials
// listed "LoadCredentialEncrypted" encryptedCredentials
// listed "EnvironmentFile" environmentFiles
// listed "ReadWritePaths" ((if hardening ? ReadWritePaths then hardening.ReadWritePaths else [ ]) ++ readWrite)
// extra
