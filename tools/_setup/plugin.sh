# What tools/build_plugin does: sourced, not run. See setup.sh.
#
# A library is kept in .cache/plugin under a hash of all that it is made from, so that nothing is compiled twice;
# other builds compile in one folder, and only what has changed.

here=$PWD # where the paths that are given begin
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

fail() { say "build_plugin: $*"; exit 2; }

absolute() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }

# A python with pip: the tools' own, or the one on the PATH.
find_pip() {
    local candidate
    for candidate in .venv/bin/python python3 python; do
        if "$candidate" -m pip --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "getting headers needs a python with pip on the PATH; or give --tensorrt-include DIR"
}

# get_headers NAME WHAT: the wheels that NAME.txt pins, in .cache/NAME
get_headers() {
    local python
    python=$(find_pip) || exit 2
    set_up_wheels "$1" "$2" "$python"
}

# Sets `tensorrt` and `cuda`, the folders of the headers, and `nvcc`, which may be empty.
find_headers() {
    nvcc=${CUDACXX:-$(command -v nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2>/dev/null || true)}
    if [ -z "$tensorrt" ]; then
        tensorrt=.cache/tensorrt-headers/kernel_lens/include/tensorrt
        get_headers tensorrt-headers "TensorRT's headers"
        tensorrt=$root/$tensorrt
    fi
    [ -e "$tensorrt/NvInferRuntime.h" ] || fail "there is no NvInferRuntime.h in $tensorrt"
    cuda=
    if [ -n "$nvcc" ]; then
        cuda=$("$nvcc" -dryrun -x cu -E /dev/null 2>&1 | sed -n 's/^#\$ INCLUDES="-I\([^"]*\)".*/\1/p' | head -n 1) || cuda=
    fi
    if [ ! -e "$cuda/cuda_runtime_api.h" ]; then
        get_headers cuda-headers "CUDA's headers"
        cuda=$root/.cache/cuda-headers/nvidia/cu13/include
    fi
    cuda=$(cd "$cuda" && pwd)
}

# All architectures of the defaults that nvcc knows: code for each, and PTX of the last for newer ones.
default_architectures() {
    local known each found=
    known=$("$nvcc" --list-gpu-arch)
    for each in 75 80 90 100 120; do
        case $known in *compute_$each*) found="$found $each" ;; esac
    done
    echo "$found" | sed 's/ \([0-9]*\)/ \1-real/g; s/-real$//; s/^ //'
}

build_plugin() {
    local architectures= kernels=yes output=build/libbnfold_plugin.so only_headers= what key kept work start=$SECONDS
    tensorrt=${TENSORRT_INCLUDE_DIR:-}
    while [ $# -gt 0 ]; do
        case $1 in
            --tensorrt-include | --architectures | --output)
                [ $# -ge 2 ] || fail "$1 needs a value"
                case $1 in
                    --tensorrt-include) tensorrt=$(absolute "$2") ;;
                    --architectures) architectures=$2 ;;
                    --output) output=$(absolute "$2") ;;
                esac
                shift
                ;;
            --no-kernels) kernels= ;;
            --headers) only_headers=yes ;;
            -h | --help)
                sed -n '2,/^set/s/^# \{0,1\}//p' tools/build_plugin
                exit 0
                ;;
            *) fail "there is no option $1; --help lists them" ;;
        esac
        shift
    done

    mkdir -p .cache/plugin
    exec 8>.cache/plugin/lock # two at once would compile in one folder
    if command -v flock >/dev/null; then flock 8; fi
    find_headers
    if [ -n "$only_headers" ]; then
        echo "$tensorrt"
        echo "$cuda"
        exit 0
    fi
    command -v cmake >/dev/null || fail "cmake is not found: apt install cmake, or pip install cmake, and run this again"
    command -v "${CXX:-g++}" >/dev/null || fail "${CXX:-g++} is not found: apt install g++, and run this again"
    if [ -n "$kernels" ] && [ -z "$nvcc" ]; then
        say "nvcc is not found: building without kernels, for tests. Install the CUDA toolkit for a library that runs."
        kernels=
    fi
    if [ -n "$kernels" ]; then
        [ -n "$architectures" ] || architectures=$(default_architectures)
        what="kernels for compute capabilities $architectures"
        set -- -DBNFOLD_KERNELS=ON -DCMAKE_CUDA_COMPILER="$nvcc" -DCMAKE_CUDA_ARCHITECTURES="${architectures// /;}"
        work=.cache/plugin/work-kernels
    else
        what="no kernels"
        set -- -DBNFOLD_KERNELS=OFF -DCUDA_INCLUDE_DIR="$cuda"
        work=.cache/plugin/work-host
    fi

    key=$({
        cat plugins/*.?pp plugins/*.cu plugins/exports.map plugins/CMakeLists.txt bnfold/kernels/*.cuh \
            "$tensorrt"/NvInfer*.h
        "${CXX:-g++}" --version
        [ -z "$nvcc" ] || "$nvcc" --version
        echo "$@" "${CXXFLAGS:-}" "${CUDAFLAGS:-}" # which cmake reads
    } | sha256sum | cut -c1-32)
    kept=.cache/plugin/$key.so
    if [ ! -e "$kept" ]; then
        say "Building the plugin library ($what) ..."
        if command -v ninja >/dev/null; then set -- -G Ninja "$@"; fi
        rm -f "$work/CMakeCache.txt" # what it remembers of other headers and compilers
        if ! { cmake -S plugins -B "$work" -DTENSORRT_INCLUDE_DIR="$tensorrt" "$@" &&
            cmake --build "$work" --parallel; } >"$work.log" 2>&1; then
            grep -m 20 -iE 'error|fatal' "$work.log" >&2 || tail -n 20 "$work.log" >&2
            fail "the plugin library does not build; all of it is in $work.log"
        fi
        cp "$work/libbnfold_plugin.so" "$kept.half"
        mv "$kept.half" "$kept"
        find .cache/plugin -maxdepth 1 -name '*.so' -mtime +7 -delete
    fi
    touch "$kept"
    mkdir -p "$(dirname "$output")"
    cp "$kept" "$output.half"
    mv "$output.half" "$output"
    exec 8>&-
    echo "$output: $what, $(du -h "$output" | cut -f1), in $((SECONDS - start)) s"
}
