# Types that more than one part of the module uses.
{ lib }:
let
  inherit (lib) types;
  narrowed =
    base: check: description:
    types.addCheck base check // { inherit description; };
in
rec {
  inherit narrowed;

  # A Nix path literal is refused by its kind: it would be copied into the store.
  absolutePath = narrowed types.str (lib.hasPrefix "/") "absolute path, as a string";
  positiveSeconds = narrowed types.number (value: value > 0 && value <= 86400) "seconds, above 0 and at most 86400";
  memory = types.strMatching "[0-9]+[KMGT]?|[0-9]{1,2}%|100%|infinity";
  interface = types.strMatching "[A-Za-z0-9_.@-]{1,15}";
  directive = types.nullOr (
    types.oneOf [
      types.bool
      types.int
      types.str
      (types.listOf types.str)
    ]
  );

  # Everybody on the machine can read the store.
  inStore = file: lib.hasPrefix "${builtins.storeDir}/" file || lib.hasPrefix "/nix/store/" file;
}
