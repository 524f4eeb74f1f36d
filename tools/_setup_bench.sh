# Shared by the tools that compare with peers: sourced, not run. Makes .venv-bench once; see _setup.sh.

. "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

set_up_bench() {
    local python venv=.venv-bench stamp
    if ! python=$(find_python 3.11); then
        say "This tool needs Python 3.11 and found none: install python3.11 (with its venv module), then run this again."
        exit 1
    fi
    mkdir -p .cache
    # Two tools started at once must not install into one environment.
    exec 9>.cache/lock
    if command -v flock >/dev/null; then flock 9; fi
    stamp=$(sha256sum constraints-bench.txt)
    [ "$(cat "$venv/.stamp-timm" 2>/dev/null)" = "$stamp" ] || rm -f "$venv"/.stamp-*
    make_venv "$venv" "$python" bench "torch==2.13.0" -c constraints-bench.txt -e '.[onnxruntime,torch,tensorrt-rtx]' \
        onnxsim onnxslim onnxoptimizer safetensors pyyaml pillow || exit 1
    if [ ! -e "$venv/.stamp-timm" ]; then
        # Their own requirements would bring another torch, and a client for weights that nobody downloads here.
        install "$venv" --no-deps -c constraints-bench.txt timm torchvision || exit 1
        echo "$stamp" >"$venv/.stamp-timm"
    fi
    exec 9>&-
}
