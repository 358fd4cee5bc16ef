# node.toml from an attribute set of flat sections. JSON's scalars and lists are TOML's.
settings:
let
  section =
    name:
    let
      values = settings.${name};
      line = key: "${key} = ${builtins.toJSON values.${key}}\n";
    in
    "[${name}]\n" + builtins.concatStringsSep "" (map line (builtins.attrNames values));
in
builtins.concatStringsSep "\n" (map section (builtins.attrNames settings))
