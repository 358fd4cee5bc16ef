# A machine that takes its settings from a CONFIG partition: units, ssh keys and network of lib/boot-units.nix.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.fabstir-node;
  boot = import ./lib/boot-units.nix {
    command = "${cfg.package}/bin/fabstir-node";
    directory = "${cfg.package}/lib/fabstir-node";
    hostname = "${pkgs.inetutils}/bin/hostname";
    path = lib.concatMapStringsSep ":" (tool: "${tool}/bin") [
      pkgs.btrfs-progs
      pkgs.coreutils
      pkgs.util-linux
    ];
    inherit (cfg) user;
  };
  isUnit = name: lib.hasSuffix ".service" name || lib.hasSuffix ".mount" name;
  # NixOS takes no [Install]: it makes these links itself.
  install = name: key: lib.optional (boot.units.${name}.Install ? ${key}) boot.units.${name}.Install.${key};
in
{
  systemd.units = lib.mapAttrs (name: text: {
    inherit text;
    wantedBy = install name "WantedBy";
    requiredBy = install name "RequiredBy";
  }) (lib.filterAttrs (name: _: isUnit name) boot.texts);

  systemd.services.fabstir-node = {
    after = [ boot.units."fabstir-node.service.d/appliance.conf".Unit.After ];
    unitConfig.ConditionPathExists =
      boot.units."fabstir-node.service.d/appliance.conf".Unit.ConditionPathExists;
  };

  systemd.targets.boot-complete.unitConfig = boot.units."boot-complete.target.d/appliance.conf".Unit;
  boot.initrd.systemd.services.emergency = {
    unitConfig = boot.initrd."emergency.service.d/fabstir.conf".Unit;
    serviceConfig = boot.initrd."emergency.service.d/fabstir.conf".Service;
  };
  boot.initrd.systemd.targets.initrd.unitConfig = boot.initrd."initrd.target.d/fabstir.conf".Unit;

  environment.etc."systemd/journald.conf.d/fabstir.conf".text = boot.journal;

  # The screen is the console's; a login is on the next ones.
  systemd.services."getty@tty1".enable = false;

  services.openssh = {
    hostKeys = [
      {
        # Made at the first boot, by provisioning.
        path = "/var/lib/fabstir-keys/ssh/ssh_host_ed25519_key";
        type = "ed25519";
      }
    ];
    authorizedKeysFiles = lib.mkForce [ "/run/fabstir-provision/authorized_keys" ];
  };

  networking.useNetworkd = true;
  # Name servers come with the network; before, /etc/resolv.conf already names resolved.
  services.resolved.enable = true;
  networking.useDHCP = false;
  networking.hostName = lib.mkDefault "";
  # Where CONFIG says nothing about the network; appliance/network/80-fabstir.network says the same.
  systemd.network.networks."80-fabstir" = {
    matchConfig.Name = "en* eth*";
    networkConfig.DHCP = "yes";
  };
}
