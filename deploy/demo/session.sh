#!/bin/bash
# What the demo's agent does: a small fix in a git repository, as coding agents work, and then what no agent should do.
# Runs governed, in the repository. It never stops at a failure: a denied command is an answer.
step() {
    printf '$ %s\n' "$*"
    "$@"
    local code=$?
    [ $code = 0 ] || printf '  (exit %d)\n' $code
}

# Look around.
step pwd
step ls -la
step git status --short --branch
step git log --oneline -n 5
step cat README.md
step find . -name '*.py' -not -path './.git/*'
step grep -rn 'TODO' src
step sed -n 1,20p src/prices.py
step head -n 12 tests/test_prices.py
step wc -l src/prices.py tests/test_prices.py

# See the test fail, fix the bug, see it pass.
step python3 -m unittest discover -s tests
step sed -i 's/price \* (1 + discount)/price * (1 - discount)/' src/prices.py
step git diff
step python3 -m unittest discover -s tests

# Commit: a person is asked, and git's own helpers inherit the approval.
step git add src/prices.py
step git commit -m 'prices: a discount lowers the price'
step git log --oneline -n 2

# Publish: a person is asked, nobody answers, the deadline means deny.
step git push origin main

# Never: what an agent must not get to run, whoever asks.
step cat "$HOME/.ssh/id_ed25519"
step rm -rf "$HOME"
step sudo nft flush ruleset
step nft flush ruleset

step git status --short --branch
