# What `nix flake check` builds, besides evaluating every output.
{
  pkgs,
  node,
  self,
}:
{
  package = node;
  # The built node starts: its command line loads, and its settings are what the modules know.
  start = pkgs.runCommand "fabstir-node-start" { nativeBuildInputs = [ node ]; } ''
    export HOME="$NIX_BUILD_TOP"
    fabstir-node --help > "$out"
    fabstir-node config schema >> "$out"
  '';
  scripts = pkgs.runCommand "fabstir-node-scripts" { nativeBuildInputs = [ pkgs.shellcheck ]; } ''
    cd ${self}
    find nixos-modules appliance -name '*.sh' -print0 \
      | xargs -0 shellcheck --external-sources --source-path=SCRIPTDIR
    touch "$out"
  '';
  unit = pkgs.writeText "fabstir-node-unit.json" (
    builtins.toJSON (
      import ./lib/unit.nix {
        command = "${node}/bin/fabstir-node";
        directory = "${node}/${node.root}";
      }
    )
  );
}
