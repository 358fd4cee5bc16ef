# As in NixOS: the image, and the store with its verity data in partitions of their own.
{ lib, ... }:
let
  loose = lib.mkOption {
    type = lib.types.attrsOf lib.types.anything;
    default = { };
    description = "";
  };
in
{
  options.image.repart = {
    imageFileBasename = lib.mkOption {
      type = lib.types.str;
      default = "disk";
      description = "";
    };
    mkfsOptions = loose;
    name = lib.mkOption {
      type = lib.types.str;
      description = "";
    };
    partitions = loose;
    seed = lib.mkOption {
      type = lib.types.str;
      description = "";
    };
    verityStore = loose;
    version = lib.mkOption {
      type = lib.types.str;
      description = "";
    };
  };
}
