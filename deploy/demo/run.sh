#!/bin/bash
# The guest's side of `cargo xtask demo`: starts Guard with a short review deadline, runs the governed session(s) as alice,
# answers requests as bob, shows the log live, and prints what xtask checks as lines that start with `@@`.
# Usage: run.sh demo | run.sh trace
mode=$1
here=$(dirname "$0")
state=/run/guard-demo
share=/usr/local/share/guard-demo
mkdir -p $state $share
install -m 755 "$here"/session.sh "$here"/project.sh "$here"/reviewer.sh $share/
install -m 644 "$here"/replay.py $share/
as() { # USER COMMAND…: as that user, with the user's groups and home
    local user=$1; shift
    setpriv --reuid "$user" --regid "$user" --init-groups env -i HOME="/home/$user" USER="$user" LANG=C.UTF-8 \
        PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "$@"
}
fail() { printf '@@failed %s\n' "$*"; tail -n 15 /run/guard-agent.log /run/guard-collector.log; exit 1; }

printf '@@progress starting collector and daemon\n'
cp -r /mnt/payload/etc $state/etc
printf '\n[hold]\nmax_seconds = 20\nreview_deadline_seconds = %s\n' "${REVIEW_DEADLINE:-12}" >> $state/etc/agent.toml
mount --bind $state/etc /mnt/payload/etc
bash /mnt/payload/guard-up.sh > $state/guard-up.log 2>&1 || { cat $state/guard-up.log; fail "Guard did not start"; }
guardctl status

# The reviewer is a person of their own: own user, own certificate.
install -d -o bob -g bob -m 700 /home/bob/.config /home/bob/.config/guard
for file in ca.pem cert.pem key.pem; do
    install -o bob -g bob -m 600 /var/lib/guard/collector/clients/bob/$file /home/bob/.config/guard/$file
done
printf 'collector = "https://localhost:7443"\nca = "ca.pem"\ncert = "cert.pem"\nkey = "key.pem"\n' \
    > /home/bob/.config/guard/guardctl.toml
chown bob:bob /home/bob/.config/guard/guardctl.toml
as bob guardctl whoami

# Jobs of their own, so that each can be ended whole: a pipeline whose reader is gone lives until its next line.
set -m
as bob bash $share/reviewer.sh "$mode" &
reviewer=$(jobs -p %%)
# A record may take several lines; its first one starts with its leaf.
guardctl tail -f | awk '/^ *[0-9]+  /{show = !/  (exit|canary) /} show {print; fflush()}' &
tail=$(jobs -p %%)
set +m

session() { # FOLDER COMMAND…: one governed session of alice's; prints its id
    local folder=$1 code; shift
    ( cd "$folder" && as alice guardctl --output json run --agent coder --ttl 60m --purpose "demo" -- "$@" ) \
        > $state/session.out 2> $state/session.err
    code=$?
    id=$(sed -n 's/.*"event":"started".*"session":"\([0-9A-Z]*\)".*/\1/p' $state/session.err | tr -d '\r' | head -n 1)
    [ -n "$id" ] || { cat $state/session.err; fail "no session started (exit $code)"; }
    ids+=("$id")
    cat $state/session.out >> $state/sessions.out
}

ids=()
if [ "$mode" = demo ]; then
    printf '@@progress making the repository\n'
    as alice bash $share/project.sh > $state/project.log 2>&1 || { cat $state/project.log; fail "no repository"; }
    printf '@@progress the governed session\n'
    session /home/alice/project bash $share/session.sh
    printf '\nWhat the agent saw:\n'
    # Indented, so that nothing that a session prints can pass for a line of this script.
    sed 's/^/  | /' $state/session.out
    grep '"event":"message"' $state/session.err | jq -r '"guard: " + .text'
    printf '\n'
    [ "$(cat /home/alice/precious/thesis.txt)" = 'years of work' ] || fail "precious files are gone"
    [ -s /home/alice/.ssh/id_ed25519 ] || fail "the key is gone"
    grep -q 'not a real key' $state/session.out && fail "the key was read"
    [ "$(as alice git -C /home/alice/project log --oneline | wc -l)" = 3 ] || fail "the approved commit is not there"
    [ -z "$(as alice git -C /home/alice/upstream.git branch)" ] || fail "the push that nobody approved went through"
    printf '@@intact\n'
else
    for trace in /mnt/copy/traces/*.json; do
        name=$(basename "$trace" .json)
        printf '@@progress session %s\n' "$name"
        work=$(python3 $share/replay.py prepare "$trace" alice $state/plan.json "${COMMANDS:-100000}") || fail "cannot prepare $name"
        chmod 644 $state/plan.json
        [ "$(jq '.commands | length' $state/plan.json)" -gt 0 ] && session "$work" python3 $share/replay.py run $state/plan.json
        jq -c '{name, commands: (.commands | length), skipped}' $state/plan.json | sed 's/^/@@replayed /'
    done
fi

# The journal is shipped in the background: ask until the log covers what the daemon wrote.
for _ in $(seq 60); do
    [ "$(guardctl --output json status --local | jq .report.journal_backlog)" = 0 ] && break
    sleep 0.5
done
sleep 1
kill -- -$tail -$reviewer 2> /dev/null
wait 2> /dev/null
for id in "${ids[@]}"; do
    [ "$mode" = demo ] && guardctl session show "$id"
    printf '@@session '
    guardctl --output json session show "$id" || fail "session show $id"
done
printf '\n'
guardctl log verify || fail "log verify"
printf '@@verified '
guardctl --output json log verify || fail "log verify"
[ "$KEEP" = 1 ] || bash /mnt/payload/guard-down.sh > /dev/null 2>&1
printf '@@done\n'
