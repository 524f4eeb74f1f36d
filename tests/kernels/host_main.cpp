// One launch in a process of its own, for kernels under AddressSanitizer, which a running Python cannot load.
// The launch and its arrays come from the standard input, the arrays go to the standard output: the format is
// that of `_launch_apart` in host.py. Each array is an allocation that ends where the array does.

#include "host_launch.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static void take(void* bytes, std::size_t size) {
    if (std::fread(bytes, 1, size, stdin) != size) std::exit(3);
}
template <class T>
static T take() {
    T value;
    take(&value, sizeof value);
    return value;
}

int main() {
    const int kernel = take<int>();
    const auto launch = take<bnfold::host::Launch>();

    struct Array {
        char* bytes;
        std::size_t size;
    };
    std::vector<Array> arrays(take<int>());
    for (Array& array : arrays) {
        const int offset = take<int>();  // the same distance from a multiple of 16 as in the other process
        array.size = take<long long>();
        array.bytes = new char[offset + array.size] + offset;
        take(array.bytes, array.size);
    }

    std::vector<bnfold::host::Argument> arguments(take<int>());
    for (auto& argument : arguments) {
        argument.type = take<bnfold::host::Parameter>();
        char* bytes = new char[argument.type.size];
        argument.bytes = bytes;
        if (argument.type.kind == 'p') {
            const int index = take<int>();
            char* pointer = index < 0 ? nullptr : arrays[index].bytes;
            std::memcpy(bytes, &pointer, sizeof pointer);
        } else {
            take(bytes, argument.type.size);
        }
    }

    const char* wrong = bnfold_launch(kernel, &launch, arguments.data(), static_cast<int>(arguments.size()));
    const std::string message = wrong == nullptr ? "" : wrong;
    const int length = static_cast<int>(message.size());
    std::fwrite(&length, sizeof length, 1, stdout);
    std::fwrite(message.data(), 1, message.size(), stdout);
    for (const Array& array : arrays) std::fwrite(array.bytes, 1, array.size, stdout);
    return 0;
}
