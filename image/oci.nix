# The node as an OCI image by Nix; image/Containerfile makes the same from Debian packages.
{ config, pkgs }:
let
  node = config.services.fabstir-node.package;
in
pkgs.dockerTools.buildLayeredImage {
  name = "fabstir-node";
  tag = config.system.image.version;
  contents = [
    node
    pkgs.cacert
    pkgs.dockerTools.fakeNss
  ];
  # The node's own account; its state is the volume's owner.
  fakeRootCommands = ''
    mkdir -p var/lib/fabstir var/cache/fabstir tmp
    chown 65534:65534 var/lib/fabstir var/cache/fabstir
    chmod 1777 tmp
  '';
  config = {
    User = "65534:65534";
    Entrypoint = [ "${node}/bin/fabstir-node" ];
    Cmd = [
      "run"
      "--config"
      "/etc/fabstir/node.toml"
      "--state-dir"
      "/var/lib/fabstir"
    ];
    Env = [
      "FABSTIR_CACHE=/var/cache/fabstir"
      "SSL_CERT_FILE=${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt"
    ];
    Volumes = {
      "/var/lib/fabstir" = { };
      "/var/cache/fabstir" = { };
    };
    StopSignal = "SIGTERM";
  };
}
