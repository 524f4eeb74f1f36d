# Shared by the tools: sourced, not run. Makes the environments that they need, once.
#
#   set_up NAME TORCH REQUIREMENT...      .venv for Python 3.11, with this checkout installed in it; $torch is the pin
#   set_up_other VERSION REQUIREMENT...   .venv-VERSION for another interpreter; fails if there is none
#   set_up_models NAME SIZE               the trained models that NAME.txt pins, beside this file, in .cache/NAME
#   set_up_wheels NAME WHAT PYTHON        the packages that NAME.txt pins, in .cache/NAME
#
# A stamp file holds a hash of all that the environment was made from: an unchanged second run starts at once.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit 1
torch=$(grep '^torch==' constraints.txt)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s\n' "$*" >&2; }

# The path of a working Python of that version: on the PATH, or one that pyenv or uv keeps.
find_python() {
    local candidate
    for candidate in "python$1" python3 python \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/"python$1" \
        "${XDG_DATA_HOME:-$HOME/.local/share}"/uv/python/cpython-"$1".*/bin/"python$1"; do
        if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

# stamp_of WORD...: what an environment is made from, as one hash.
stamp_of() { { cat pyproject.toml constraints.txt; echo "$root" "$@"; } | sha256sum | cut -d' ' -f1; }

# install VENV ARGUMENT...: pip, silent unless it fails. Python compiles what it imports, a small part of all.
install() {
    local venv=$1 log
    shift
    log=$(mktemp)
    if ! "$venv/bin/python" -m pip install -qq --no-compile -c constraints.txt "$@" >"$log" 2>&1; then
        say "Installing failed: pip install $*"
        tail -n 15 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# make VENV PYTHON STAMP-NAME SEPARATE-REQUIREMENT-OR-EMPTY REQUIREMENT...
make_venv() {
    local venv=$1 python=$2 name=$3 first=$4 stamp
    shift 4
    stamp=$(stamp_of "$python" "$first" "$@")
    [ "$(cat "$venv/.stamp-$name" 2>/dev/null)" = "$stamp" ] && return
    say "Setting up $venv for tools/$name (the first time only; this takes a minute or two) ..."
    if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        rm -rf "$venv"
        "$python" -m venv "$venv" || return 1
    fi
    # Building with the environment's own setuptools keeps the build as pinned as all the rest.
    install "$venv" setuptools || return 1
    # By itself and with its version, so that a CPU build at hand is preferred to the CUDA one.
    [ -z "$first" ] || install "$venv" "$first" || return 1
    # One at a time: it writes bnfold.egg-info, which all environments share.
    (
        if command -v flock >/dev/null; then flock 8; fi
        install "$venv" --no-build-isolation "$@"
    ) 8>.cache/editable.lock || return 1
    echo "$stamp" >"$venv/.stamp-$name"
}

# begin WHO: sets `python`, and waits: two tools started at once must not install into one environment.
begin() {
    if ! python=$(find_python 3.11); then
        say "$1 needs Python 3.11 and found none: install python3.11 (with its venv module), then run this again."
        exit 1
    fi
    mkdir -p .cache
    exec 9>.cache/lock
    if command -v flock >/dev/null; then flock 9; fi
}

set_up() {
    local name=$1 first=$2 python
    shift 2
    begin "tools/$name"
    make_venv .venv "$python" "$name" "$first" "$@" || exit 1
    exec 9>&-
}

set_up_other() {
    local version=$1 python
    shift
    python=$(find_python "$version") || return 1
    mkdir -p .cache
    make_venv ".venv-$version" "$python" test "" "$@" || exit 1
}

set_up_wheels() {
    local name=$1 what=$2 python=$3 list=tools/_setup/$1.txt stamp
    stamp=$(sha256sum "$list" | cut -d' ' -f1)
    [ "$(cut -d' ' -f1 ".cache/$name/.stamp" 2>/dev/null)" = "$stamp" ] && return
    say "Getting $what ($list, the first time only) ..."
    rm -rf ".cache/$name"
    # No constraints here: with hashes, pip takes nothing but what the list pins.
    "$python" -m pip install -qq --no-deps --no-compile --require-hashes --only-binary :all: \
        --target ".cache/$name" -r "$list" >&2 || exit 1
    echo "$stamp" >".cache/$name/.stamp"
}

set_up_models() { set_up_wheels "$1" "trained models, $2" .venv/bin/python; }
