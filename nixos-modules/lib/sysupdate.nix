# The transfers of systemd-sysupdate: which file of a release goes where. Pure text; two sets,
# because the UKI comes last: without it the other slot's partitions are never booted.
# xz, not zstd: systemd-pull 257 writes a .zst into the partition as it is, still packed.
#
# The source is where the updater put a release that it verified by TUF; Verify=yes makes root
# check its SHA256SUMS.gpg again, against /etc/systemd/import-pubring.gpg.
{
  name ? "fabstir-node",
  downloads ? "/var/cache/fabstir/downloads",
  tries ? 3,
}:
let
  section = title: values: "[${title}]\n${builtins.concatStringsSep "" (map line values)}";
  line = entry: "${builtins.elemAt entry 0}=${builtins.elemAt entry 1}\n";
  transfer = pattern: target:
    builtins.concatStringsSep "\n" [
      (section "Transfer" [
        [ "Verify" "yes" ]
        [ "ProtectVersion" "%A" ]
      ])
      (section "Source" [
        [ "Type" "url-file" ]
        [ "Path" "file://${downloads}/" ]
        [ "MatchPattern" pattern ]
      ])
      (section "Target" (target ++ [ [ "InstancesMax" "2" ] ]))
    ];
  partition = part: type:
    transfer "${name}_@v_@u.${part}.raw.xz" [
      [ "Type" "partition" ]
      [ "Path" "auto" ]
      [ "MatchPattern" "${name}_@v" ]
      [ "MatchPartitionType" type ]
      [ "ReadOnly" "1" ]
    ];
in
{
  slot = {
    "10-verity.transfer" = partition "verity" "usr-verity";
    "20-store.transfer" = partition "store" "usr";
  };
  boot = {
    "30-uki.transfer" = transfer "${name}_@v.efi" [
      [ "Type" "regular-file" ]
      [ "Path" "/EFI/Linux" ]
      [ "PathRelativeTo" "boot" ]
      [ "MatchPattern" "${name}_@v+@l-@d.efi ${name}_@v+@l.efi ${name}_@v.efi" ]
      [ "TriesLeft" (toString tries) ]
      [ "TriesDone" "0" ]
      [ "Mode" "0444" ]
    ];
  };
}
