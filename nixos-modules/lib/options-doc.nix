# docs/options.md out of the option declarations. Pure: only `isOption` of lib is used.
#
#     import ./options-doc.nix { inherit lib; options = evaluated.options.services.fabstir-node; }
{ lib, options }:
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    filter
    isAttrs
    isList
    isString
    length
    map
    match
    replaceStrings
    split
    toJSON
    ;
  root = "services.fabstir-node";

  # A value as one writes it in Nix.
  key = name: if match "[A-Za-z_][A-Za-z0-9_'-]*" name != null then name else toJSON name;
  nix =
    value:
    if isAttrs value && value._type or "" == "literalExpression" then
      value.text
    else if isAttrs value then
      if value == { } then
        "{ }"
      else
        "{ ${concatStringsSep " " (map (name: "${binding name value.${name}};") (attrNames value))} }"
    else if isList value then
      if value == [ ] then "[ ]" else "[ ${concatStringsSep " " (map nix value)} ]"
    else if isString value then
      replaceStrings [ "\${" ] [ "\\\${" ] (toJSON value)
    else if value == null then
      "null"
    else
      toJSON value;
  binding =
    name: value:
    if isAttrs value && length (attrNames value) == 1 && !(value ? _type) then
      let
        inner = builtins.head (attrNames value);
      in
      "${key name}.${binding inner value.${inner}}"
    else
      "${key name} = ${nix value}";

  code = value: "`${nix value}`";
  default =
    option:
    if option ? defaultText then
      if option.defaultText._type or "" == "literalMD" then option.defaultText.text else code option.defaultText
    else if option ? default then
      code option.default
    else
      "none: it must be set";
  oneLine = text: concatStringsSep " " (filter (part: isString part && part != "") (split "[ \n]+" text));
  cell = text: replaceStrings [ "|" ] [ "\\|" ] (oneLine text);

  shownPlace =
    place: concatStringsSep "." (map (part: if part == "<name>" || part == "*" then "NAME" else if part == root then root else key part) place);

  entry = place: option: ''
    ### ${shownPlace place}
    ${oneLine option.description}

    - type: ${oneLine option.type.description}
    - default: ${default option}
    - example: ${code option.example}
  '';

  inner =
    place: option:
    let
      found = option.type.getSubOptions place;
    in
    removeAttrs found [
      "_module"
      "_freeformOptions"
    ];
  isHidden = option: option.internal or false;

  entries =
    place: set:
    concatMap (
      name:
      let
        one = set.${name};
        here = place ++ [ name ];
      in
      if !lib.isOption one then
        entries here one
      else if isHidden one then
        [ ]
      else if name == "settings" then
        [ (entry here one) ]
      else
        [ (entry here one) ] ++ entries here (inner here one)
    ) (attrNames set);

  settings = inner [ "settings" ] options.settings;
  row =
    name: option:
    "| `${name}` | ${cell (withoutNull option.type.description)} | ${cell (replaceStrings [ "left to the node: " ] [ "" ] (default option))} | ${cell option.description} |";
  withoutNull =
    text:
    let
      bare = match "null or \\(?(.*[^)])\\)?" text;
    in
    if bare == null then text else builtins.head bare;
  section =
    name:
    let
      keys = inner [ name ] settings.${name};
    in
    ''
      ### settings.${name}
      ${oneLine settings.${name}.description}

      | key | type | default of the node | meaning |
      |---|---|---|---|
      ${concatStringsSep "\n" (map (one: row one keys.${one}) (attrNames keys))}
    '';
in
''
  # Options of ${root}

  Written by `make options` out of the declarations below nixos-modules; a test holds the two equal. How they play together: [nixos.md](nixos.md).

  ## The module
''
+ "\n"
+ concatStringsSep "\n" (entries [ root ] options)
+ "\n"
+ ''
  ## settings: the file node.toml
  Every key is `null` unless it is set, and then left to the node. `settings.chains.NAME` has the keys of
  `settings.chain`.
''
+ "\n"
+ concatStringsSep "\n" (map section (filter (name: name != "chains") (attrNames settings)))
