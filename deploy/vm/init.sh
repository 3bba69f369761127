#!/bin/bash
# Second script of a guest: a small system, then Guard if asked for, then the command of this boot.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=${TERM:-xterm}
. /mnt/payload/flags
# A guest whose console lacks this line died before anything of Guard ran.
echo 'guest: its kernel is up' > /dev/console
if [ "$SYSTEMD" = 1 ] && [ $$ = 1 ]; then
    # systemd first; this script again as its one service.
    cat > /etc/systemd/system/guest.service << 'END'
[Unit]
After=basic.target systemd-user-sessions.service
[Service]
Type=simple
ExecStart=/bin/bash /mnt/payload/init.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
END
    mkdir -p /etc/systemd/system/multi-user.target.wants
    ln -sfn ../guest.service /etc/systemd/system/multi-user.target.wants/guest.service
    ln -sfn /usr/lib/systemd/system/multi-user.target /etc/systemd/system/default.target
    # No questions, no login on a console that no device manager announces.
    tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id
    for unit in systemd-firstboot.service serial-getty@ttyS0.service nftables.service; do
        ln -sfn /dev/null "/etc/systemd/system/$unit"
    done
    exec /usr/lib/systemd/systemd --log-target=console
fi
if [ "$SYSTEMD" != 1 ]; then
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t securityfs securityfs /sys/kernel/security
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mount -t ext4 /dev/vdc /var/lib/guard
ln -sfn /proc/self/fd /dev/fd; ln -sfn /proc/self/fd/0 /dev/stdin; ln -sfn /proc/self/fd/1 /dev/stdout; ln -sfn /proc/self/fd/2 /dev/stderr
ip link set lo up
hostname guest
mount --bind /mnt/payload/copy /mnt/copy
mkdir -p /usr/local/bin
for program in /mnt/payload/bin/*; do [ -f "$program" ] && install -m 755 "$program" /usr/local/bin/; done
mkdir -p /dev/virtio-ports
# The kernel learns of the ports one by one.
for name in guard.out guard.err guard.exit guard.marker; do
    for _ in $(seq 200); do port=$(grep -lx "$name" /sys/class/virtio-ports/*/name 2> /dev/null) && break; sleep 0.02; done
    port=${port%/name}
    ln -sfn "/dev/${port##*/}" "/dev/virtio-ports/$name"
done
chmod 666 /dev/virtio-ports/guard.marker
code=0
if [ "$GUARD" = 1 ]; then
    bash /mnt/payload/guard-up.sh > /dev/console 2>&1 || { code=99; tail -n 30 /run/guard-*.log > /dev/virtio-ports/guard.err 2>&1; }
fi
if [ $code = 0 ]; then
    cd /root
    bash /mnt/payload/command.sh < /dev/null > /dev/virtio-ports/guard.out 2> /dev/virtio-ports/guard.err
    code=$?
fi
[ "$SHELL_AFTER" = 1 ] && { echo "guest: a shell; leave with exit"; setsid -c bash -l < /dev/ttyS0 > /dev/ttyS0 2>&1; }
echo $code > /dev/virtio-ports/guard.exit
[ "$GUARD" = 1 ] && bash /mnt/payload/guard-down.sh > /dev/console 2>&1
cat /run/guard-*.log > /dev/console 2> /dev/null
sync
umount /var/lib/guard 2> /dev/null
sleep 0.1
echo 1 > /proc/sys/kernel/sysrq
echo b > /proc/sysrq-trigger
sleep 30
