# The unified kernel image: what it is called, and what its kernel is told. Pure.
{
  name ? "fabstir-node",
  version,
}:
{
  # A release's file. systemd-sysupdate installs it as <name>_<version>+3-0.efi: three tries. The one
  # on a flashed disk is not counted, since there is nothing to fall back to.
  file = "${name}_${version}.efi";

  # usrhash=, which says what /usr must be, is added from the finished store.
  kernelParams = [
    "console=tty0"
    # The last one is /dev/console: where the operator's text and an initrd's complaints go.
    "console=ttyS0,115200"
    # A kernel that panics, or a damaged store, must come back by itself, for the counter to fall.
    "panic=10"
    "systemd.verity_usr_options=panic-on-corruption"
  ];
}
