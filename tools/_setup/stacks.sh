# Shared by tools/stacks: sourced, not run. Makes the environments of the stacks, each once, on top of .venv-bench.
#
#   set_up_stack NAME     .venv-stacks/NAME: what stack-NAME.txt beside this file pins, and all of .venv-bench

. "$(dirname "${BASH_SOURCE[0]}")/bench.sh"

set_up_stack() {
    local name=$1 venv=.venv-stacks/$1 list=tools/_setup/stack-$1.txt stamp
    stamp=$(sha256sum "$list" constraints.txt constraints-bench.txt | sha256sum | cut -d' ' -f1)
    [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$stamp" ] && return
    say "Setting up $venv for tools/stacks (the first time only) ..."
    rm -rf "$venv"
    .venv-bench/bin/python -m venv "$venv" || return 1
    # What is pinned here comes first; torch and all else are those of .venv-bench.
    echo "import site; site.addsitedir('$root/.venv-bench/lib/python3.11/site-packages')" \
        >"$venv/lib/python3.11/site-packages/bench.pth"
    # Their own requirements would bring another torch, and much that nothing here uses.
    if ! "$venv/bin/python" -m pip install -qq --no-deps --no-compile -r "$list" >&2; then
        say "tools/stacks: $name cannot be installed here"
        return 1
    fi
    # torchaudio's compiled half asks for CUDA's libraries; without it, it does without.
    rm -rf "$venv"/lib/python3.11/site-packages/torchaudio/lib
    echo "$stamp" >"$venv/.stamp"
}
