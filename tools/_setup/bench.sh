# Shared by the tools that compare with peers: sourced, not run. Makes .venv-bench once; see setup.sh.

. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

set_up_bench() {
    local python venv=.venv-bench stamp
    begin "This tool"
    stamp=$(sha256sum constraints-bench.txt)
    [ "$(cat "$venv/.stamp-timm" 2>/dev/null)" = "$stamp" ] || rm -f "$venv"/.stamp-*
    make_venv "$venv" "$python" bench "$torch" -c constraints-bench.txt -e '.[onnxruntime,torch,tensorrt-rtx]' \
        onnxsim onnxslim onnxoptimizer safetensors pyyaml pillow scipy || exit 1
    if [ ! -e "$venv/.stamp-timm" ]; then
        # Their own requirements would bring another torch, and a client for weights that nobody downloads here.
        install "$venv" --no-deps -c constraints-bench.txt timm torchvision || exit 1
        echo "$stamp" >"$venv/.stamp-timm"
    fi
    exec 9>&-
}
