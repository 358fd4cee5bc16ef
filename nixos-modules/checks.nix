# What `nix flake check` builds.
{
  pkgs,
  node,
  self,
}:
{
  package = node;
  # Every Nix file is formatted as `nix fmt` would, and every script is sound.
  format = pkgs.runCommand "fabstir-node-format" {
    nativeBuildInputs = [
      pkgs.nixfmt
      pkgs.shellcheck
    ];
  } "source ${./format.sh} ${self}";
  # The built node starts: its command line loads, and it accepts the settings file it ships.
  start = pkgs.runCommand "fabstir-node-start" { nativeBuildInputs = [ node ]; } ''
    export HOME="$NIX_BUILD_TOP"
    fabstir-node --help > "$out"
    fabstir-node config check --config ${node}/${node.root}/appliance/node.toml >> "$out"
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
