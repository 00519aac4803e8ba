# Process 1 in the host's userland: makes it a system, runs the command, tells its exit code.
# Before this text, `machine` sets kernel_root, share, name, directory, and $@: the command.
system_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH=/run/guest/bin:$system_path
# What comes and goes in the host's /tmp is seen in the guest's.
export HOME=/root USER=root LANG=C.UTF-8 TERM=dumb TMPDIR=/run/tmp
cd /run/guest || exit
mkdir -p /run/lock /run/netns /run/tmp /dev/pts /dev/shm /lib/modules
ln -sf /proc/self/fd /dev/fd
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount --bind "$kernel_root/lib/modules" /lib/modules
for entry in bpf:/sys/fs/bpf tracefs:/sys/kernel/tracing debugfs:/sys/kernel/debug \
  cgroup2:/sys/fs/cgroup securityfs:/sys/kernel/security; do
  mount -t "${entry%%:*}" "${entry%%:*}" "${entry#*:}"
done
ip link set lo up
hostname "$name"
if [ -n "$share" ]; then
  mkdir -p "$share"
  mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none share "$share"
fi

for port in /sys/class/virtio-ports/*; do
  read -r label <"$port/name"
  ln -s "/dev/${port##*/}" "$label"
done
# A port opens only once and takes 32 KiB a write: pipes and cat stand between.
mkfifo stdout stderr
cat <stdout >out & pump_out=$!
cat <stderr >err & pump_err=$!
exec 7>control 8>stdout 9>stderr
echo started >&7
(
  exec 7>&- </dev/null >&8 2>&9 8>&- 9>&-
  ulimit -l unlimited
  cd "$directory" || exit
  PATH=$system_path exec setsid "$@"
)
code=$?
exec 8>&- 9>&-
# Something that the command left behind may hold the pipes: 2 s, not forever.
tries=40
while [ $tries -gt 0 ] && { kill -0 $pump_out || kill -0 $pump_err; } 2>/dev/null; do
  sleep 0.05
  tries=$((tries - 1))
done
[ -z "$share" ] || umount "$share"
echo "exit $code" >&7
sleep 100 # the host ends it
