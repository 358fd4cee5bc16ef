# What the flake and its packages use of nixpkgs' lib besides lib.nix, where it is not at hand.
rec {
  inherit (builtins) concatStringsSep;
  concatMapStrings = function: list: concatStringsSep "" (map function list);
  getLib = package: package.lib or package;
  getDev = package: package.dev or package;
  getExe = package: "${package}/bin/${package.meta.mainProgram}";
  makeBinPath = list: concatStringsSep ":" (map (one: "${one}/bin") list);
  makeLibraryPath = list: concatStringsSep ":" (map (one: "${one}/lib") list);
  makeOverridable =
    function: arguments:
    function arguments // { override = more: makeOverridable function (arguments // more); };
  licenses = {
    asl20.free = true;
    mit.free = true;
    unfree.free = false;
  };
}
