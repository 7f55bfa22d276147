# The inside of a container of the process node. Runs as process 1 of fresh mount, pid and uts namespaces, and ends by
# becoming the container's program.
#
# Arguments: the container's folder, host name, working directory, "ro" or "rw" for the root file system, the program's
# PATH, the program's name. The folder's file "mounts" has one line per mount, fields separated by tabs: ro|rw, source,
# target; sources are real paths (no symbolic links). Its file "command" is a line of shell that becomes the program.
# Descriptor 3 gets "pid <n>" (in the caller's pid namespace), then "started" or "error <message>".
#
# The root is a tmpfs that mirrors the machine's own root: each folder as an overlay whose writes go to the container's
# folder, so that a pod sees the machine's programs but can neither change them nor litter it with mount points.
set -eu
folder=$1 hostname=$2 directory=$3 access=$4 path=$5 program=$6
command=$(cat "$folder/command")

# Opened by this shell itself, through the caller's /proc: the process id as the caller counts.
read -r pid _ </proc/self/stat
echo "pid $pid" >&3

fail() {
  echo "error $1" >&3
  exit 128
}

root=$folder/root
mkdir -p "$root"
mount -t tmpfs -o mode=755 sluice "$root"
for entry in /*; do
  name=${entry#/}
  if [ -L "$entry" ]; then
    cp -P "$entry" "$root/$name"
  elif [ -d "$entry" ]; then
    mkdir "$root/$name"
    case $name in dev | proc | sys) continue ;; esac
    # The container's folder may lie on a file system that cannot hold an overlay's upper layer; the tmpfs can.
    for upper in "$folder/layers/$name" "$root/.layers/$name"; do
      mkdir -p "$upper/files" "$upper/work"
      # The overlay's root takes its mode from the upper folder.
      chmod --reference="$entry" "$upper/files"
      layers="lowerdir=$entry,upperdir=$upper/files,workdir=$upper/work"
      mount -t overlay overlay -o "$layers${SANDBOX_OVERLAY_OPTIONS-}" "$root/$name" 2>/dev/null && continue 2
    done
    mount --rbind "$entry" "$root/$name"
  fi
done
# What is mounted below those folders is not part of their overlays.
while read -r _ _ _ _ target _; do
  case $target in
  /dev/* | /proc/* | /sys/* | /run/* | /var/lib/* | "$folder"/*) continue ;;
  /*/*) ;;
  *) continue ;;
  esac
  if [ -d "$target" ] && [ -d "$root$target" ]; then
    mount --rbind "$target" "$root$target" 2>/dev/null || true
  fi
done </proc/self/mountinfo
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
for device in /dev/nvidia* /dev/dri; do
  [ -e "$device" ] || continue
  if [ -d "$device" ]; then mkdir "$root$device"; else : >"$root$device"; fi
  mount --rbind "$device" "$root$device"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
mkdir -m 1777 "$root/dev/shm"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"

# From here on / is the container's, and a path such as /var/run resolves inside it.
mkdir "$root/.host"
cd "$root"
pivot_root . .host
tab=$(printf '\t')
make_mount_point() {
  if [ -d "/.host$1" ]; then
    mkdir -p "$2"
  else
    mkdir -p "${2%/*}/" && { [ -e "$2" ] || : >"$2"; }
  fi || fail "cannot make the mount point $2"
}
while IFS=$tab read -r _ source target; do
  make_mount_point "$source" "$target"
done <"/.host$folder/mounts"
mkdir -p "$directory" || fail "cannot make the working directory $directory"
if [ "$access" = ro ]; then
  for entry in /*; do
    case $entry in /dev | /proc | /sys) continue ;; esac
    if [ ! -L "$entry" ] && mountpoint -q "$entry"; then mount -o remount,bind,ro "$entry"; fi
  done
fi
while IFS=$tab read -r mode source target; do
  # Again: it may lie in a volume that was mounted a line above.
  make_mount_point "$source" "$target"
  mount --rbind "/.host$source" "$target" || fail "cannot mount $source at $target"
  if [ "$mode" = ro ]; then
    mount -o remount,bind,ro "$target" || fail "cannot mount $target read-only"
  fi
done <"/.host$folder/mounts"
umount -l /.host
rmdir /.host
if [ "$access" = ro ]; then mount -o remount,bind,ro /; fi
hostname "$hostname" 2>/dev/null || true
cd "$directory" || fail "cannot enter the working directory $directory"
case $program in
*/*)
  if [ ! -f "$program" ] || [ ! -x "$program" ]; then fail "exec: \"$program\": no such program"; fi
  ;;
*)
  (PATH=$path && command -v -- "$program" >/dev/null) ||
    fail "exec: \"$program\": executable file not found in \$PATH"
  ;;
esac
echo started >&3
exec 3>&-
eval "$command"
