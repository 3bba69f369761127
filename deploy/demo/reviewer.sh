#!/bin/bash
# The simulated reviewer: reads requests as they appear and answers some, each with a `guardctl review approve` of its own.
# $1 = demo: approves tests, the edit, `git add` and `git commit` in the project, narrowly; leaves all else to its deadline.
# $1 = trace: approves every request, for its own category and at most 40 execs. Runs as the reviewer's user.
guardctl --output json review list --watch | while read -r line; do
    { read -r request; read -r category; read -r command; } < <(jq -r '.request, .verdict.category, .command' <<< "$line")
    scope=(--scope root --max-execs 40)
    case "$1:$command" in
        "demo:git add "* | "demo:sed -i "*) scope=(--scope once) ;;
        "demo:git commit "* | "demo:python3 -m unittest "* | trace:*) ;;
        *) continue ;;
    esac
    if said=$(guardctl review approve "$request" "${scope[@]}" --confirm "${request: -6}" --reason "simulated reviewer" 2>&1 < /dev/null); then
        printf '@@review approved %s  %s  (%s)\n' "$category" "$command" "${scope[1]}"
    else
        printf '@@review failed to approve %s: %s\n' "$command" "$(tail -n 2 <<< "$said" | tr '\n' ' ')"
    fi
done
