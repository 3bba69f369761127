#!/bin/bash
# Lays out, in a mount namespace of its own, what a guest of the demo has (payload, users, folders), then runs run.sh.
# Usage: native.sh REPOSITORY TARGET MODE COPY…   (in `unshare --mount --propagation private`, as root)
set -e
repository=$1 target=$2 mode=$3; shift 3
base=$target/demo-native
rm -rf "$base"
mkdir -p "$base"/{payload/bin,payload/etc,payload/copy,home/alice,home/bob,etc-guard,lib-guard,share,run}
cp "$repository"/deploy/vm/guard-{up,down}.sh "$base"/payload/
cp "$repository"/deploy/vm/{agent,guardctl}.toml "$base"/payload/etc/
for name in guard-agent guard-collector guardctl; do
    strip -g -o "$base/payload/bin/$name" "$target/debug/$name"
done
for path in "$@"; do cp -a "$path" "$base"/payload/copy/; done
{ grep -vE '^(alice|bob):' /etc/passwd; printf '%s:x:%s:%s::/home/%s:/bin/bash\n' alice 61000 61000 alice bob 61001 61001 bob; } > "$base"/passwd
{ grep -vE '^(alice|bob|guard):' /etc/group; printf 'alice:x:61000:\nbob:x:61001:\nguard:x:61009:alice,bob\n'; } > "$base"/group
chown 61000:61000 "$base"/home/alice; chown 61001:61001 "$base"/home/bob
mkdir -p /mnt/payload /mnt/copy /etc/guard /var/lib/guard /usr/local/share/guard-demo /run/guard
mount --bind "$base"/payload /mnt/payload
mount --bind "$base"/payload/copy /mnt/copy
mount --bind "$base"/passwd /etc/passwd
mount --bind "$base"/group /etc/group
mount --bind "$base"/home /home
mount --bind "$base"/etc-guard /etc/guard
mount --bind "$base"/lib-guard /var/lib/guard
mount --bind "$base"/share /usr/local/share/guard-demo
mount --bind "$base"/payload/bin /usr/local/bin
mount --bind "$base"/run /run/guard
PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin exec bash /mnt/copy/demo/run.sh "$mode" 2>&1
