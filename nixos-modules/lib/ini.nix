# Text of a systemd unit (or any file of its kind) from sections in order. Pure builtins.
#
#     import ./ini.nix [ { name = "Unit"; values = { After = [ "a.target" "b.target" ]; }; } ]
#
# A list is the same key once for every item; null leaves the key out.
let
  inherit (builtins) attrNames concatStringsSep filter isBool isList;

  shown = value: if isBool value then (if value then "true" else "false") else toString value;
  line =
    key: value:
    if isList value then concatStringsSep "" (map (line key) value) else "${key}=${shown value}\n";
  section =
    { name, values }:
    let
      keys = filter (key: values.${key} != null) (attrNames values);
    in
    "[${name}]\n" + concatStringsSep "" (map (key: line key values.${key}) keys);
in
sections: concatStringsSep "\n" (map section (filter (one: one.values != { }) sections))
