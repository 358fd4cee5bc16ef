# Without NixOS's own modules: see tests/nix/test_flake.py.
_arguments: throw "nixosSystem needs nixpkgs' lib and the stub options"
