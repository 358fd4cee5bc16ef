# The node as an OCI image by Nix; image/Containerfile makes one from Debian's packages. Same account,
# places, ports and command, so that what runs one runs the other.
{ config, pkgs }:
let
  node = config.services.fabstir-node.package;
  account = "990:990";
in
pkgs.dockerTools.buildLayeredImage {
  name = "fabstir-node";
  tag = config.system.image.version;
  contents = [
    node
    pkgs.cacert
    (pkgs.writeTextDir "etc/passwd" "fabstir:x:${account}::/var/lib/fabstir:/sbin/nologin\n")
    (pkgs.writeTextDir "etc/fabstir/node.toml" (builtins.readFile ../appliance/node.toml))
    (pkgs.writeTextDir "etc/group" "fabstir:x:990:\n")
  ];
  fakeRootCommands = ''
    mkdir -p var/lib/fabstir var/cache/fabstir run/fabstir tmp
    chown ${account} var/lib/fabstir var/cache/fabstir run/fabstir
    chmod 0700 var/lib/fabstir run/fabstir
    chmod 1777 tmp
  '';
  config = {
    User = account;
    # tini takes up children whose parent was killed.
    Entrypoint = [
      "${pkgs.tini}/bin/tini"
      "--"
      "${node}/bin/fabstir-node"
    ];
    Cmd = [
      "run"
      "--config"
      "/etc/fabstir/node.toml"
    ];
    Env = [
      "HOME=/var/lib/fabstir"
      "FABSTIR_CACHE=/var/cache/fabstir"
      "FABSTIR_NODE__STATE_DIR=/var/lib/fabstir"
      "FABSTIR_NODE__RUN_DIR=/run/fabstir"
      "FABSTIR_P2P__LISTEN=/ip4/0.0.0.0/tcp/9000"
      "SSL_CERT_FILE=${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt"
    ];
    ExposedPorts."9000/tcp" = { };
    Volumes = {
      "/var/lib/fabstir" = { };
      "/var/cache/fabstir" = { };
    };
    StopSignal = "SIGTERM";
  };
}
