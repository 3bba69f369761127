#!/bin/busybox sh
# First program of a guest: loads modules, finds the root disk and hands over to the payload's own script.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module.ko"; done < /modules/order
tries=0
while [ ! -b /dev/vda ] || [ ! -b /dev/vdb ]; do
    tries=$((tries + 1)); [ $tries -gt 100 ] && { echo "guest: no disks"; /bin/busybox poweroff -f; }
    /bin/busybox usleep 50000
done
if /bin/busybox grep -qw guard.overlay /proc/cmdline; then
    /bin/busybox mkdir /lower /upper
    /bin/busybox mount -t ext4 -o noatime,ro /dev/vda /lower
    /bin/busybox mount -t tmpfs -o size=60% upper /upper
    /bin/busybox mkdir /upper/files /upper/work
    /bin/busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /newroot || echo "guest: no overlay"
else
    /bin/busybox mount -t ext4 -o noatime /dev/vda /newroot
fi
/bin/busybox mount -t ext4 -o noatime,ro /dev/vdb /newroot/mnt/payload
/bin/busybox mount -o move /dev /newroot/dev
/bin/busybox mount -o move /proc /newroot/proc
/bin/busybox mount -o move /sys /newroot/sys
exec /bin/busybox switch_root /newroot /bin/bash /mnt/payload/init.sh
