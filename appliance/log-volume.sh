# log-volume.sh DEVICE OPTIONS DIRECTORY: makes the state ready for the machine's logs, before they are mounted.
#
# The subvolume, on a disk whose first release had none; and the directory of the journal. journald
# names it by the machine id, and until provisioning has run that is another one at every boot: the
# name of this boot leads to the one that lasts, or each boot would have logs of its own, never removed.
set -eu
device=$1 options=$2 top=$3
mount -t btrfs -o "subvolid=5,$options" "$device" "$top"
[ -d "$top/@log" ] || btrfs subvolume create "$top/@log"
mkdir -p "$top/@log/journal"
for one in "$top"/@log/journal/*; do
  if [ -L "$one" ]; then rm "$one"; fi
done
now=$(cat /etc/machine-id)
kept=$(cat "$top/@keys/machine-id" 2>/dev/null || true)
if [ -n "$now" ] && [ -n "$kept" ] && [ "$kept" != "$now" ]; then
  mkdir -p "$top/@log/journal/$kept"
  ln -s "$kept" "$top/@log/journal/$now"
fi
umount "$top"
