#!/bin/busybox sh
# Process 1 in the initramfs: mounts the host's root read-only below a tmpfs, goes on there.
export PATH=/bin
for name in sh mount umount mkdir mkfifo cat cp ln insmod switch_root sleep ip hostname kill; do
  /bin/busybox ln -s busybox "/bin/$name" # relative: the directory moves
done
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

die() { # the host reads the console when a guest ends early
  echo "guest: $*"
  echo b >/proc/sysrq-trigger
  sleep 100
}

while read -r module; do
  insmod "/modules/$module" || die "cannot insert $module"
done </modules/order

for word in $(cat /proc/cmdline); do
  case $word in job=*) job=${word#job=} ;; esac
done

mkdir /host /written /root
# Nothing below changes while a guest runs, so the loose cache is right, and the fastest.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host ||
  die "cannot mount the host's root"
mount -t tmpfs -o mode=755,size=75% tmpfs /written
mkdir /written/files /written/work
mount -t overlay -o lowerdir=/host,upperdir=/written/files,workdir=/written/work,index=off,xino=off \
  root /root || die "cannot lay a tmpfs over the host's root"
for directory in proc sys dev; do mount --move "/$directory" "/root/$directory"; done

# busybox stays in memory: programs of the host's root start slowly.
mount -t tmpfs -o mode=755 run /root/run
mkdir /root/run/guest
cp -a /bin /root/run/guest/bin
cp "/root$job/job.sh" /root/run/guest/job.sh || die "no job in $job"
exec switch_root /root /run/guest/bin/busybox sh /run/guest/job.sh
