# services.fabstir-node: the node on any NixOS machine. What is set: docs/options.md; how: docs/nixos.md.
{
  imports = [
    ./options.nix
    ./unit.nix
    ./users.nix
    ./firewall.nix
    ./gpu.nix
    ./backup.nix
    ./updates.nix
    ./monitoring.nix
  ];
}
