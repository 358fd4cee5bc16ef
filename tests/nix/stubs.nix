# The options of NixOS that our modules set, with the types NixOS gives them, written down here so
# that a wrong name or value fails. What NixOS makes of them is not here.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  option =
    type: default:
    mkOption {
      inherit type default;
      description = "";
    };
  switch = option types.bool false;
  names = option (types.listOf types.str) [ ];
  # types.listOf with duplicates taken out, as the firewall does.
  ports = mkOption {
    type = types.listOf types.port;
    default = [ ];
    apply = list: lib.unique (builtins.sort builtins.lessThan list);
    description = "";
  };

  # A directive: lists of several definitions are joined, anything else must be the same in all.
  directive = lib.mkOptionType {
    name = "systemd option";
    description = "systemd option";
    check =
      value:
      builtins.isBool value
      || builtins.isInt value
      || builtins.isString value
      || builtins.isPath value
      || builtins.isList value
      || lib.isDerivation value;
    merge =
      loc: defs:
      let
        values = map (def: def.value) defs;
        first = builtins.head values;
      in
      if builtins.all builtins.isList values then
        builtins.concatLists values
      else if builtins.all (value: value == first) values then
        first
      else
        throw "The option `${lib.showOption loc}' has conflicting definition values";
  };
  section = option (types.attrsOf directive) { };
  oneOf =
    key: allowed: set:
    !(set ? ${key}) || builtins.elem set.${key} allowed;
  serviceSection = option (types.addCheck (types.attrsOf directive) (
    set:
    oneOf "Type" [ "exec" "simple" "forking" "oneshot" "dbus" "notify" "notify-reload" "idle" ] set
    && oneOf "Restart" [ "no" "on-success" "on-failure" "on-abnormal" "on-abort" "always" ] set
  )) { };
  unitName = types.strMatching "[a-zA-Z0-9@%:_.\\-]+[.](service|socket|device|mount|automount|swap|target|path|timer|scope|slice)";
  units = option (types.listOf unitName) [ ];

  anyUnit = {
    enable = option types.bool true;
    description = option types.str "";
    documentation = names;
    requires = units;
    wants = units;
    after = units;
    before = units;
    bindsTo = units;
    partOf = units;
    conflicts = units;
    requiredBy = units;
    wantedBy = units;
    onFailure = units;
    unitConfig = section;
    # Without a default in NixOS, which writes them where they are set.
    startLimitBurst = option (types.nullOr types.int) null;
    startLimitIntervalSec = option (types.nullOr types.int) null;
    restartTriggers = option (types.listOf types.anything) [ ];
  };
  service = {
    options = anyUnit // {
      environment = option (types.attrsOf (
        types.nullOr (
          types.oneOf [
            types.str
            types.path
            types.package
          ]
        )
      )) { };
      path = option (types.listOf (
        types.oneOf [
          types.package
          types.str
        ]
      )) [ ];
      serviceConfig = serviceSection;
      restartIfChanged = option types.bool true;
      stopIfChanged = option types.bool true;
    };
  };
  socket.options = anyUnit // {
    listenStreams = names;
    socketConfig = section;
  };

  etcFile = {
    options = {
      enable = option types.bool true;
      text = option (types.nullOr types.lines) null;
      source = option (types.nullOr types.path) null;
      mode = option types.str "symlink";
      user = option types.str "+0";
      group = option types.str "+0";
    };
  };
  user = {
    options = {
      isSystemUser = switch;
      isNormalUser = switch;
      uid = option (types.nullOr types.int) null;
      description = option types.str "";
      group = option types.str "";
      extraGroups = names;
      home = option types.path "/var/empty";
      createHome = switch;
    };
  };
  group.options = {
    gid = option (types.nullOr types.int) null;
    members = names;
  };
  interface.options = {
    allowedTCPPorts = ports;
    allowedUDPPorts = ports;
  };
in
{
  options = {
    assertions = option (types.listOf types.anything) [ ];
    warnings = names;
    environment.etc = option (types.attrsOf (types.submodule etcFile)) { };
    environment.systemPackages = option (types.listOf types.package) [ ];
    networking.firewall = interface.options // {
      interfaces = option (types.attrsOf (types.submodule interface)) { };
    };
    users.users = option (types.attrsOf (types.submodule user)) { };
    users.groups = option (types.attrsOf (types.submodule group)) { };
    systemd.services = option (types.attrsOf (types.submodule service)) { };
    systemd.sockets = option (types.attrsOf (types.submodule socket)) { };
    systemd.tmpfiles.rules = names;
    services.prometheus = {
      enable = switch;
      scrapeConfigs = option (types.listOf (types.attrsOf types.anything)) [ ];
      rules = names;
    };
    services.xserver.videoDrivers = names;
    hardware.graphics.enable = switch;
    hardware.nvidia = {
      open = option (types.nullOr types.bool) null;
      nvidiaPersistenced = switch;
      nvidiaSettings = option types.bool true;
      datacenter.enable = switch;
    };
    nix.settings.experimental-features = names;
  };
}
