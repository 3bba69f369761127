#!/bin/bash
# Stops the daemon and then the collector, as a host's shutdown would.
pkill -TERM -o -x guard-agent
for _ in $(seq 40); do pgrep -x guard-agent > /dev/null || break; sleep 0.25; done
pkill -TERM -x guard-collector
for _ in $(seq 20); do pgrep -x guard-collector > /dev/null || break; sleep 0.25; done
