# The option declarations as a test sees them: which are incomplete, and the reference.
{
  library ? "",
}:
let
  lib = if library == "" then import ./lib.nix else import (/. + library);
  machine = lib.evalModules {
    specialArgs.pkgs = { };
    modules = [
      ./stubs.nix
      ../../nixos-modules
    ];
  };
  options = machine.options.services.fabstir-node;

  walk =
    place: set:
    builtins.concatMap (
      name:
      let
        one = set.${name};
        here = place ++ [ name ];
        inner = removeAttrs (one.type.getSubOptions here) [
          "_module"
          "_freeformOptions"
        ];
      in
      if !lib.isOption one then walk here one else [ { inherit here one; } ] ++ walk here inner
    ) (builtins.attrNames (removeAttrs set [ "_module" ]));
  isText = value: builtins.isAttrs value && builtins.elem (value._type or "") [ "literalExpression" "literalMD" ];
  faults =
    { here, one }:
    map (what: "${builtins.concatStringsSep "." here}: ${what}") (
      lib.optional (!(one ? type)) "no type"
      ++ lib.optional (one.description or "" == "") "no description"
      ++ lib.optional (!(one ? example)) "no example"
      ++ lib.optional (
        one ? example && !isText one.example && !one.type.check one.example
      ) "the example is not of the type"
      ++ lib.optional (
        one ? default && !(one ? defaultText) && !one.type.check one.default
      ) "the default is not of the type"
    );
  all = walk [ ] options;
in
{
  count = builtins.length all;
  faults = builtins.concatMap faults all;
  # What has no default must be set by whoever uses it.
  required = map ({ here, ... }: builtins.concatStringsSep "." here) (
    builtins.filter ({ one, ... }: !(one ? default)) all
  );
  reference = import ../../nixos-modules/lib/options-doc.nix { inherit lib options; };
}
