# Shared by the tools that need a GPU: sourced, not run. See setup.sh.
#
#   set_up_gpu TOOL ARGUMENT...   sets `python`, and `arguments` without --here and --with DIR
#
# --here takes the python on the PATH as it is, with what is installed there, and needs no network; --with DIR puts
# the wheels of DIR (tools/gpu_check --wheels DIR fetches them) before that. What needs no GPU is not asked for one.

from=$PWD # where the folders that are given begin
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

under_from() { case $1 in /*) echo "$1" ;; *) echo "$from/$1" ;; esac; }

set_up_gpu() {
    local tool=$1 here="" wheels="" idle="" site=.cache/gpu_check/site each
    shift
    arguments=()
    while [ $# -gt 0 ]; do
        case $1 in
            --here) here=yes ;;
            --with)
                wheels=$(under_from "${2:?--with needs a folder of wheels}")
                shift
                ;;
            --wheels)
                arguments+=("$1" "$(under_from "${2:?--wheels needs a folder}")")
                idle=yes
                shift
                ;;
            *)
                case $1 in --list | -h | --help) idle=yes ;; esac
                arguments+=("$1")
                ;;
        esac
        shift
    done
    if [ -n "$here" ]; then
        python=$(command -v python3 || command -v python) || {
            say "tools/$tool --here needs a python on the PATH and found none."
            exit 1
        }
    else
        # Before anything is installed for it.
        if [ -z "$idle" ] && [ ! -e /proc/driver/nvidia/version ] && ! nvidia-smi -L >/dev/null 2>&1; then
            say "$tool needs an NVIDIA GPU: no driver was found. Nothing was written."
            exit 2
        fi
        set_up "$tool" "$torch" -e '.[onnxruntime,dev,gpu]'
        python=.venv/bin/python
    fi
    if [ -n "$wheels" ]; then
        rm -rf "$site"
        mkdir -p "$site"
        for each in "$wheels"/*.whl; do
            "$python" -m zipfile -e "$each" "$site" || { # a wheel of Python's own format; pip may be missing
                say "tools/$tool --with $wheels: $each cannot be unpacked."
                exit 1
            }
        done
        PYTHONPATH=$root/$site${PYTHONPATH:+:$PYTHONPATH}
    fi
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
}
