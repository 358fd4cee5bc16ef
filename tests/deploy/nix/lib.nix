# As much of nixpkgs' lib as the module uses, so that it evaluates without nixpkgs.
rec {
  mkOption = option: option // { _type = "option"; };
  mkEnableOption = description: mkOption { inherit description; default = false; };
  mkIf = condition: value: if condition then value else { };
  optional = condition: value: if condition then [ value ] else [ ];
  optionalAttrs = condition: value: if condition then value else { };
  literalExpression = text: { inherit text; };
  toInt = builtins.fromJSON;
  last = list: builtins.elemAt list (builtins.length list - 1);
  splitString = separator: text: builtins.filter builtins.isString (builtins.split separator text);
  types = {
    package = "package";
    str = "str";
    bool = "bool";
    anything = "anything";
    attrsOf = inner: "attrsOf ${inner}";
  };
  makeBinPath = builtins.concatStringsSep ":";
  makeLibraryPath = builtins.concatStringsSep ":";
}
