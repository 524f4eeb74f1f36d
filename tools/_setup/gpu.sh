# Shared by the tools that need a GPU: sourced, not run. See setup.sh.
#
#   set_up_gpu TOOL ARGUMENT...   sets `python`, and `arguments` without --here
#
# --here takes the python on the PATH as it is, with what is installed there, and needs no network.

. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

set_up_gpu() {
    local tool=$1 here="" argument
    shift
    arguments=()
    for argument; do
        if [ "$argument" = --here ]; then here=yes; else arguments+=("$argument"); fi
    done
    if [ -n "$here" ]; then
        python=$(command -v python3 || command -v python) || {
            say "tools/$tool --here needs a python on the PATH and found none."
            exit 1
        }
    else
        # Before anything is installed for it.
        if [ ! -e /proc/driver/nvidia/version ] && ! nvidia-smi -L >/dev/null 2>&1; then
            say "$tool needs an NVIDIA GPU: no driver was found. Nothing was written."
            exit 2
        fi
        set_up "$tool" "$torch" -e '.[onnxruntime,dev,gpu]'
        python=.venv/bin/python
    fi
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
}
