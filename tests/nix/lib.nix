# As much of nixpkgs' lib as the modules use, so that they evaluate where nixpkgs is not at hand:
# the module system (imports, options, definitions with conditions and priorities, submodules) and
# the types, each checking what it is given. Where FABSTIR_NIXPKGS_LIB names the real one, the same
# tests run with both and must find the same.
let
  inherit (builtins)
    all
    attrNames
    attrValues
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    genList
    head
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    map
    mapAttrs
    match
    stringLength
    substring
    tail
    toJSON
    ;

  # Text and lists.
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  hasSuffix =
    suffix: text:
    let
      rest = stringLength text - stringLength suffix;
    in
    rest >= 0 && substring rest (stringLength text) text == suffix;
  removePrefix =
    prefix: text: if hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;
  nameValuePair = name: value: { inherit name value; };
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  filterAttrs =
    keep: set:
    listToAttrs (
      map (name: nameValuePair name set.${name}) (filter (name: keep name set.${name}) (attrNames set))
    );
  mapAttrs' = f: set: listToAttrs (mapAttrsToList f set);
  genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
  recursiveUpdate =
    left: right:
    left
    // mapAttrs (
      name: value:
      if isAttrs value && isAttrs (left.${name} or null) then recursiveUpdate left.${name} value else value
    ) right;
  reverse = list: genList (index: builtins.elemAt list (length list - 1 - index)) (length list);
  unique = foldl' (found: one: if elem one found then found else found ++ [ one ]) [ ];

  # Properties of a definition.
  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkDefault = mkOverride 1000;
  defaultPriority = 100;
  kind = value: if isAttrs value then value._type or "" else "";

  # A property around a set is one around each of its values: conditions stay unevaluated.
  pushDown =
    value:
    {
      "if" = concatMap (set: [ (mapAttrs (_: mkIf value.condition) set) ]) (pushDown value.content);
      "merge" = concatMap pushDown value.contents;
      "override" = map (mapAttrs (_: mkOverride value.priority)) (pushDown value.content);
    }
    .${kind value} or [ value ];

  # What is left of a definition: values with their priorities.
  discharge =
    value:
    {
      "if" = if value.condition then discharge value.content else [ ];
      "merge" = concatMap discharge value.contents;
      "override" = map (one: { inherit (value) priority; inherit (one) value; }) (discharge value.content);
    }
    .${kind value} or [
      {
        priority = defaultPriority;
        inherit value;
      }
    ];
  strongest =
    found:
    let
      best = foldl' (least: one: if one.priority < least then one.priority else least) 99999 found;
    in
    map (one: one.value) (filter (one: one.priority == best) found);

  shownName =
    part: if match "[A-Za-z_][A-Za-z0-9_'-]*" part != null then part else toJSON part;
  showOption = place: concatStringsSep "." (map shownName place);

  # Every definition by its own kind, then together.
  mergeValues =
    place: type: values:
    let
      wrong = filter (value: !type.check value) values;
      shown =
        value:
        if isFunction value || isAttrs value || isPath value then
          "<${builtins.typeOf value}>"
        else
          toJSON value;
    in
    if wrong != [ ] then
      throw "A definition for option `${showOption place}' is not of type `${type.description}'. Definition values: ${shown (head wrong)}"
    else
      type.merge place values;

  isOption = value: kind value == "option";

  # Modules.
  load = module: if isPath module || isString module then import module else module;
  normal =
    arguments: module:
    let
      loaded = load module;
      value = if isFunction loaded then loaded arguments else loaded;
      isWhole = value ? config || value ? options;
    in
    {
      imports = value.imports or [ ];
      options = value.options or { };
      config =
        if isWhole then value.config or { } else removeAttrs value [ "imports" ];
    };
  collect =
    arguments: modules:
    concatMap (
      module:
      let
        one = normal arguments module;
      in
      [ one ] ++ collect arguments one.imports
    ) modules;

  mergeDeclarations =
    place: trees:
    let
      names = unique (concatMap attrNames trees);
      declared =
        name:
        let
          found = map (tree: tree.${name}) (filter (tree: tree ? ${name}) trees);
          here = place ++ [ name ];
        in
        if isOption (head found) then
          if length found == 1 then
            head found // { loc = here; }
          else
            throw "The option `${showOption here}' is declared more than once"
        else
          mergeDeclarations here found;
    in
    genAttrs names declared;

  valueOf =
    place: option: definitions:
    let
      found = strongest (
        concatMap discharge definitions
        ++ (
          if option ? default then
            [
              {
                priority = 1500;
                value = option.default;
              }
            ]
          else
            [ ]
        )
      );
      value = mergeValues place option.type found;
    in
    if found == [ ] then
      if option.type ? emptyValue then
        option.type.emptyValue
      else
        throw "The option `${showOption place}' was accessed but has no value defined"
    else if option.readOnly or false && concatMap discharge definitions != [ ] then
      throw "The option `${showOption place}' is read-only, but it is set"
    else if option ? apply then
      option.apply value
    else
      value;

  configOf =
    place: options: configs:
    let
      sets = concatMap pushDown configs;
      unknown = filter (name: !(options ? ${name})) (unique (concatMap attrNames sets));
      definitions = name: map (set: set.${name}) (filter (set: set ? ${name}) sets);
    in
    if unknown != [ ] then
      throw "The option `${showOption (place ++ [ (head unknown) ])}' does not exist."
    else
      mapAttrs (
        name: option:
        (if isOption option then valueOf else configOf) (place ++ [ name ]) option (definitions name)
      ) options;

  evalAt =
    place: given: modules:
    let
      arguments = given // {
        inherit config options lib;
      };
      collected = collect arguments modules;
      options = mergeDeclarations place (map (one: one.options) collected);
      # Later modules first, as nixpkgs' lib joins lists.
      config = configOf place options (reverse (map (one: one.config) collected));
    in
    {
      inherit config options;
    };

  # Types.
  mkType =
    type:
    {
      descriptionClass = "";
      getSubOptions = _: { };
    }
    // type;
  phrase =
    bare: type: if elem type.descriptionClass bare then type.description else "(${type.description})";
  equal =
    place: values:
    if all (value: value == head values) values then
      head values
    else
      throw "The option `${showOption place}' has conflicting definition values";
  simple =
    description: check:
    mkType {
      inherit description check;
      descriptionClass = "noun";
      merge = equal;
    };
  addCheck = type: check: type // { check = value: type.check value && check value; };
  between =
    lowest: highest:
    addCheck types.int (value: value >= lowest && value <= highest)
    // {
      description = "integer between ${toString lowest} and ${toString highest} (both inclusive)";
    };
  either =
    left: right:
    mkType {
      description = "${
        phrase [ "noun" "conjunction" ] left
      } or ${phrase [ "noun" "conjunction" "composite" ] right}";
      descriptionClass = "conjunction";
      check = value: left.check value || right.check value;
      merge = place: values: (if all left.check values then left else right).merge place values;
    };

  types = {
    anything = mkType {
      description = "anything";
      descriptionClass = "noun";
      check = _: true;
      merge =
        place: values:
        if all isAttrs values && !(isDerivation (head values)) then
          (types.attrsOf types.anything).merge place values
        else if all isList values then
          builtins.concatLists values
        else
          equal place values;
    };
    bool = simple "boolean" isBool;
    int = simple "signed integer" isInt;
    number = either types.int types.float;
    float = simple "floating point number" isFloat;
    str = simple "string" isString;
    lines = simple "strings concatenated with \"\\n\"" isString // {
      merge = _: concatStringsSep "\n";
    };
    path = simple "absolute path" (value: isPath value || (isString value && hasPrefix "/" value));
    package = simple "package" (value: isDerivation value || (isString value && hasPrefix builtins.storeDir value));
    port = between 0 65535 // {
      description = "16 bit unsigned integer; between 0 and 65535 (both inclusive)";
    };
    ints = {
      inherit between;
      positive = addCheck types.int (value: value > 0) // {
        description = "positive integer, meaning >0";
        descriptionClass = "nonRestrictiveClause";
      };
    };
    strMatching =
      pattern: simple "string matching the pattern ${pattern}" (value: isString value && match pattern value != null);
    enum =
      values:
      let
        shown = map (value: if isString value then "\"${value}\"" else toString value) values;
      in
      simple (
        if length values == 1 then
          "value ${head shown} (singular enum)"
        else
          "one of ${concatStringsSep ", " shown}"
      ) (value: elem value values)
      // {
        descriptionClass = if length values < 2 then "noun" else "conjunction";
      };
    nullOr =
      type:
      mkType {
        description = "null or ${phrase [ "noun" "conjunction" ] type}";
        descriptionClass = "conjunction";
        check = value: value == null || type.check value;
        merge =
          place: values:
          if all (value: value == null) values then
            null
          else if elem null values then
            throw "The option `${showOption place}' is defined both null and not null"
          else
            type.merge place values;
        inherit (type) getSubOptions;
      };
    inherit either;
    oneOf = choices: foldl' either (head choices) (tail choices);
    inherit addCheck;
    listOf =
      type:
      mkType {
        description = "list of ${phrase [ "noun" "composite" ] type}";
        descriptionClass = "composite";
        check = isList;
        merge =
          place: lists:
          concatMap (
            list:
            concatMap (
              one:
              let
                found = strongest (discharge one);
              in
              if found == [ ] then [ ] else [ (mergeValues (place ++ [ "*" ]) type found) ]
            ) list
          ) lists;
        emptyValue = [ ];
        getSubOptions = place: type.getSubOptions (place ++ [ "*" ]);
      };
    attrsOf =
      type:
      mkType {
        description = "attribute set of ${phrase [ "noun" "composite" ] type}";
        descriptionClass = "composite";
        check = isAttrs;
        merge =
          place: values:
          let
            sets = concatMap pushDown values;
            found = name: strongest (concatMap (set: if set ? ${name} then discharge set.${name} else [ ]) sets);
            names = filter (name: found name != [ ]) (unique (concatMap attrNames sets));
          in
          genAttrs names (name: mergeValues (place ++ [ name ]) type (found name));
        emptyValue = { };
        getSubOptions = place: type.getSubOptions (place ++ [ "<name>" ]);
      };
    submodule =
      modules:
      let
        list = if isList modules then modules else [ modules ];
      in
      mkType {
        description = "submodule";
        check = value: isAttrs value || isFunction value;
        merge =
          place: values:
          (evalAt place { name = builtins.elemAt place (length place - 1); } (
            list ++ map (value: { config = value; }) values
          )).config;
        emptyValue = { };
        getSubOptions = place: (evalAt place { name = "<name>"; } list).options;
      };
  };
  isDerivation = value: isAttrs value && value.type or "" == "derivation";

  text = type: text: {
    _type = type;
    inherit text;
  };

  lib = {
    inherit
      all
      attrNames
      attrValues
      concatLists
      concatMap
      concatStringsSep
      elem
      elemAt
      filter
      filterAttrs
      genAttrs
      hasPrefix
      hasSuffix
      head
      isDerivation
      isOption
      length
      listToAttrs
      mapAttrs
      mapAttrs'
      mapAttrsToList
      mkDefault
      mkIf
      mkMerge
      mkOverride
      nameValuePair
      recursiveUpdate
      removePrefix
      showOption
      types
      unique
      ;
    mkOption = option: option // { _type = "option"; };
    mkOptionType = type: mkType ({ merge = equal; } // type // {
      merge = place: values: type.merge place (map (value: { inherit value; file = ""; }) values);
    });
    mkEnableOption =
      what:
      lib.mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether to enable ${what}.";
      };
    literalExpression = text "literalExpression";
    literalMD = text "literalMD";
    evalModules =
      {
        modules,
        specialArgs ? { },
      }:
      evalAt [ ] specialArgs modules;
    mkForce = mkOverride 50;
    id = value: value;
    flip = f: a: b: f b a;
    singleton = value: [ value ];
    last = list: builtins.elemAt list (length list - 1);
    take = count: list: genList (builtins.elemAt list) (if count < length list then count else length list);
    imap0 = f: list: genList (index: f index (builtins.elemAt list index)) (length list);
    zipListsWith =
      f: left: right:
      genList (index: f (builtins.elemAt left index) (builtins.elemAt right index)) (
        if length left < length right then length left else length right
      );
    optional = condition: value: if condition then [ value ] else [ ];
    optionals = condition: values: if condition then values else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: value: if condition then value else "";
    concatMapStringsSep = separator: f: list: concatStringsSep separator (map f list);
    concatMapAttrs = f: set: foldl' (found: one: found // one) { } (mapAttrsToList f set);
    toInt = builtins.fromJSON;
    inherit (builtins) any stringLength;
    getName = package: package.pname or package.name;
    toUpper = builtins.replaceStrings (letters "abcdefghijklmnopqrstuvwxyz") (
      letters "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    );
  };
  letters = text: genList (at: substring at 1 text) (stringLength text);
  inherit (builtins) concatLists elemAt;
in
lib
