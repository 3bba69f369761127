#!/bin/bash
# Starts collector and daemon in a guest and waits until the daemon says, measured, that it enforces.
set -e
base=/var/lib/guard/collector
mkdir -p /etc/guard /run/guard
if [ ! -e $base/collector.toml ]; then
    guard-collector init --dir $base --name guest --host localhost
    guard-collector client --dir $base --name bob --role reviewer --out $base/clients/bob
fi
cp /mnt/payload/etc/agent.toml /mnt/payload/etc/guardctl.toml /etc/guard/
if [ -e /mnt/payload/etc/policy.yaml ]; then
    cp /mnt/payload/etc/policy.yaml /etc/guard/policy.yaml
    sed -i 's|^files = .*|files = ["/etc/guard/policy.yaml"]|' /etc/guard/agent.toml
fi
for person in admin bob; do
    sed "s|/clients/admin/|/clients/$person/|" /etc/guard/guardctl.toml > /etc/guard/guardctl-$person.toml
done
guard-collector serve --config $base/collector.toml > /run/guard-collector.log 2>&1 &
guard-agent run --config /etc/guard/agent.toml > /run/guard-agent.log 2>&1 &
tries=0
until guardctl status --output json 2> /dev/null | grep -q '"enforcing"'; do
    tries=$((tries + 1))
    [ $tries -gt 120 ] && { echo "guest: Guard does not enforce"; guardctl status; exit 1; }
    kill -0 $! || { echo "guest: guard-agent ended"; exit 1; }
    sleep 0.25
done
