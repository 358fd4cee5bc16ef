# TOML 1.0 from an attribute set of tables. Pure builtins: any Nix evaluates it.
# Nulls are left out (TOML has none); paths are refused, because turning one into text would copy
# the file it names, maybe a key, into the world-readable Nix store.
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    filter
    isAttrs
    isFloat
    isList
    isPath
    isString
    match
    replaceStrings
    toJSON
    ;

  # JSON's escapes are TOML's, but TOML wants DEL escaped, too.
  text = value: replaceStrings [ delete ] [ "\\u007F" ] (toJSON value);
  delete = builtins.fromJSON "\"\\u007f\"";

  key = name: if match "[A-Za-z0-9_-]+" name != null then name else text name;

  # Older Nix writes six digits in JSON and six decimals in text: whichever says the same number.
  # A whole number stays a float: `1` and `1.0` are of different types in TOML.
  number =
    value:
    let
      isExact = shown: builtins.fromJSON shown == value;
      shown = builtins.head (
        filter isExact [
          (toJSON value)
          (toString value)
        ]
        ++ [ (toJSON value) ]
      );
    in
    if match "-?[0-9]+" shown != null then "${shown}.0" else shown;

  scalar =
    place: value:
    if isPath value then
      throw "${place}: ${baseNameOf value} is a Nix path, which would be copied into the Nix store; write it as a string"
    else if isString value then
      text value
    else if isFloat value then
      number value
    else if isList value then
      "[${concatStringsSep ", " (map (scalar place) value)}]"
    else if isAttrs value then
      "{ ${concatStringsSep ", " (map (name: "${key name} = ${scalar "${place}.${name}" value.${name}}") (present value))} }"
    else if value == null then
      throw "${place}: null inside a list has no form in TOML"
    else
      toJSON value;

  present = table: filter (name: table.${name} != null) (attrNames table);
  dotted = path: concatStringsSep "." (map key path);

  # A table's own values come before its tables: after a header, TOML has no way back.
  tables =
    path: table:
    let
      names = present table;
      values = filter (name: !isAttrs table.${name}) names;
      inner = filter (name: isAttrs table.${name}) names;
      lines = map (
        name: "${key name} = ${scalar (dotted (path ++ [ name ])) table.${name}}\n"
      ) values;
      header = if path == [ ] || (values == [ ] && inner != [ ]) then "" else "[${dotted path}]\n";
      own = header + concatStringsSep "" lines;
    in
    (if own == "" then [ ] else [ own ]) ++ concatMap (name: tables (path ++ [ name ]) table.${name}) inner;
in
settings: concatStringsSep "\n" (tables [ ] settings)
