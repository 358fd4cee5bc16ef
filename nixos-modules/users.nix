# The account the node runs as. Another one than the default is the machine's own affair.
{
  config,
  lib,
  ...
}:
let
  cfg = config.services.fabstir-node;
  isOurs = cfg.user == "fabstir";
in
{
  config = lib.mkIf cfg.enable {
    users.users = lib.optionalAttrs isOurs {
      fabstir = {
        isSystemUser = true;
        description = "Fabstir node";
        group = cfg.group;
        # Where ssh keeps the key and the known hosts of a backup over SFTP.
        home = cfg.stateDir;
        # The GPU's device files belong to these groups.
        extraGroups = lib.optionals (cfg.gpu.devices != "none") [
          "video"
          "render"
        ];
      };
    };
    users.groups = lib.optionalAttrs (cfg.group == "fabstir") { fabstir = { }; };
  };
}
