# Types of the options below `settings`, out of the node's own description of its settings
# (settings.json, written by `python -m appliance.nixos_settings`, held equal by a test).
# null is allowed everywhere and means: not written, so the node's own default holds.
{ lib }:
let
  inherit (lib) mkOption types;
  sections = builtins.fromJSON (builtins.readFile ../settings.json);
  examples = import ./settings-examples.nix;

  above = schema: value: !(schema ? exclusiveMinimum) || value > schema.exclusiveMinimum;
  atLeast = schema: value: !(schema ? minimum) || value >= schema.minimum;
  atMost = schema: value: !(schema ? maximum) || value <= schema.maximum;
  inRange = schema: value: above schema value && atLeast schema value && atMost schema value;

  # toString writes six decimals of a float; a reader wants 0.5, and 86400 without any.
  plain =
    value:
    let
      parts = builtins.match "(-?[0-9]+)([.]([0-9]*[1-9])?0*)?" (toString value);
      decimals = builtins.elemAt parts 2;
    in
    builtins.elemAt parts 0 + lib.optionalString (decimals != null) ".${decimals}";
  range =
    schema:
    let
      bounds =
        lib.optional (schema ? exclusiveMinimum) "above ${plain schema.exclusiveMinimum}"
        ++ lib.optional (schema ? minimum) "at least ${plain schema.minimum}"
        ++ lib.optional (schema ? maximum) "at most ${plain schema.maximum}";
    in
    lib.optionalString (bounds != [ ]) ", ${lib.concatStringsSep " and " bounds}";

  # addCheck keeps the description of the type it narrows; the reader is to see the bounds.
  narrowed =
    base: check: description:
    types.addCheck base check // { inherit description; };

  number =
    schema:
    let
      isWhole = schema.type == "integer";
      base = if isWhole then types.int else types.number;
    in
    narrowed base (inRange schema) (
      (if isWhole then "whole number" else "number") + range schema
    );

  list =
    schema:
    let
      most = schema.maxItems or null;
      item = typeOf schema.items;
      base = types.listOf item;
    in
    if most == null then
      base
    else
      narrowed base (
        value: builtins.length value <= most
      ) "list of at most ${toString most}: ${item.description}";

  tuple =
    schema:
    let
      parts = map typeOf schema.prefixItems;
      fits =
        value:
        builtins.length value == builtins.length parts
        && lib.all lib.id (lib.zipListsWith (part: one: part.check one) parts value);
    in
    narrowed (types.listOf types.anything) fits (
      "list of exactly: " + lib.concatMapStringsSep "; " (part: part.description) parts
    );

  typeOf =
    schema:
    if schema ? anyOf then
      types.oneOf (map typeOf schema.anyOf)
    else if schema ? enum then
      types.enum schema.enum
    else if schema ? prefixItems then
      tuple schema
    else
      {
        string = if schema ? pattern then types.strMatching schema.pattern else types.str;
        boolean = types.bool;
        integer = number schema;
        number = number schema;
        array = list schema;
      }
      .${schema.type};

  keyOption =
    section: key: entry:
    mkOption {
      type = types.nullOr (typeOf entry.schema);
      default = null;
      defaultText = lib.literalMD "left to the node: `${builtins.toJSON entry.default}`";
      example = examples.${section}.${key} or entry.default;
      inherit (entry) description;
    };

  sectionModule = name: { options = lib.mapAttrs (keyOption name) sections.${name}.keys; };
  sectionOption =
    name:
    let
      first = lib.head (lib.attrNames sections.${name}.keys);
    in
    mkOption {
      type = types.submodule (sectionModule name);
      default = { };
      example.${first} = examples.${name}.${first} or sections.${name}.keys.${first}.default;
      description = "Section `[${name}]` of node.toml: ${sections.${name}.description}";
    };
in
{
  inherit sections;

  # No freeform type: a section or key that the node would refuse is refused here, by its name.
  settings = types.submodule {
    options = lib.mapAttrs (name: _: sectionOption name) sections // {
      chains = mkOption {
        type = types.attrsOf (types.submodule (sectionModule "chain"));
        default = { };
        example.base.chain_id = 8453;
        description = "Further chains, tables `[chains.NAME]` with the keys of `[chain]`; each has a process of its own.";
      };
    };
  };
}
